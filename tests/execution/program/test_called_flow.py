"""A flow's code calls another flow, as with promptflow's `Flow.load`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import InputNotFound, InputTypeError, InvalidOptionError, ToolExecutionError
from prefect_batchflow.execution.program.called_flow import AsyncFlow, CallableFlow, load_called_flow
from prefect_batchflow.execution.program.loader import load_program
from prefect_batchflow.tools.prompty import AsyncPrompty, Prompty

if TYPE_CHECKING:
    from pathlib import Path

    from model_server import ModelServer

pytestmark = pytest.mark.usefixtures("fresh_imports")

DAG = """
inputs: {n: {type: int, default: 3}, note: {type: string}}
outputs: {doubled: {reference: "${double.output}"}}
nodes:
- {name: double, type: python, source: {type: code, path: double.py}, inputs: {n: "${inputs.n}"}}
"""
DOUBLE = """
from promptflow.core import tool
@tool
def double(n: int) -> int:
    if n == 13:
        raise ValueError("no 13")
    return 2 * n
"""


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "flow.dag.yaml").write_text(DAG)
    (folder / "double.py").write_text(DOUBLE)
    return folder


def test_it_gives_its_outputs_with_defaults_and_types(inner: Path) -> None:
    flow = CallableFlow.load(inner)

    assert flow(n=4, note="") == {"doubled": 8}
    assert flow(note="") == {"doubled": 6}
    assert flow(n="5", note="", unknown=1) == {"doubled": 10}


@pytest.mark.parametrize("name", ["invoke", "context", "name"])
def test_what_only_promptflows_has_is_told(inner: Path, name: str) -> None:
    flow = CallableFlow.load(inner)

    with pytest.raises(AttributeError, match=rf"can only be called, such as flow\(question=…\): it has no '{name}'"):
        getattr(flow, name)


def test_it_is_awaited_also_many_times_at_once(inner: Path) -> None:
    flow = AsyncFlow.load(inner)

    async def many() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(flow(n=n, note="") for n in range(5))))

    assert asyncio.run(many()) == [{"doubled": 2 * n} for n in range(5)]


@pytest.mark.parametrize(
    ("load", "kind"),
    [(CallableFlow.load, Prompty), (load_called_flow, Prompty), (AsyncFlow.load, AsyncPrompty)],
    ids=["Flow.load", "load_flow", "AsyncFlow.load"],
)
def test_a_prompty_is_given_as_one(load: Any, kind: type[Prompty], tmp_path: Path) -> None:
    file = tmp_path / "ask.prompty"
    file.write_text("---\nmodel: {configuration: {type: openai, model: m, api_key: k}}\n---\nsystem:\nHi.\n")
    assert type(load(file)) is kind
    assert load(file, model={"parameters": {"max_tokens": 5}}).estimate_token_count() > 5


def test_only_a_prompty_takes_a_model(inner: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"cannot take model\. Only a \.prompty file"):
        load_called_flow(inner, model={})


def test_load_flow_is_the_same_as_flow_load(inner: Path) -> None:
    assert load_called_flow(inner)(n=4, note="") == {"doubled": 8}


def test_an_async_flow_is_called_from_sync_code_inside_a_running_loop(tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text("async def later(n: int):\n    return {'n': n + 1}\n")
    flow = CallableFlow.load(f"{tmp_path / 'later.py'}:later")

    async def call() -> dict[str, Any]:
        return flow(n=1)

    assert asyncio.run(call()) == {"n": 2}


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (
            {"note": "", "n": 13},
            ToolExecutionError,
            "'inner' failed: Execution failure in 'double': \\(ValueError\\) no 13",
        ),
        ({"n": 1}, InputNotFound, "needs the input 'note'"),
        ({"note": "", "n": "x"}, InputTypeError, "'n' of the flow 'inner' must be int, found 'x'"),
    ],
    ids=["node", "missing", "type"],
)
def test_what_goes_wrong_is_raised(inner: Path, given: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        CallableFlow.load(inner)(**given)


def test_inputs_by_position_are_refused(inner: Path) -> None:
    with pytest.raises(InvalidOptionError, match="by name"):
        CallableFlow.load(inner)(1)


def test_a_flow_of_a_run_has_its_connections_and_its_tokens_count_for_the_line(
    tmp_path: Path, model_server: ModelServer
) -> None:
    asked, outer = tmp_path / "asked", tmp_path / "outer"
    asked.mkdir()
    outer.mkdir()
    (asked / "flow.dag.yaml").write_text(
        """
inputs: {q: {type: string}}
outputs: {a: {reference: "${ask.output}"}}
nodes:
- name: ask
  type: llm
  source: {type: code, path: ask.jinja2}
  inputs: {model: m, q: "${inputs.q}"}
  connection: my_ai
  api: chat
"""
    )
    (asked / "ask.jinja2").write_text("# user:\n{{ q }}\n")
    (outer / "main.py").write_text(
        f"from promptflow.core import Flow\nflow = Flow.load({str(asked)!r})\n"
        "def main(q: str):\n    return {'twice': [flow(q=q)['a'], flow(q=q + '!')['a']]}\n"
    )
    spec = {"type": "OpenAIConnection", "value": {"api_key": "k", "base_url": model_server.base_url}}
    program = load_program(load_flow(f"{outer / 'main.py'}:main"), connections={"my_ai": spec})

    run = program.run_line(0, {"q": "why"})

    assert run["output"] == {"twice": ["echo: why", "echo: why!"]}
    assert run["tokens"] == model_server.tokens
