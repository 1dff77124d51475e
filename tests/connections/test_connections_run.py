"""A run with connections: the flow has the secrets, and nothing that is kept of the run has them."""

from __future__ import annotations

import logging
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from model_server import Reply, error_reply
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from pydantic import SecretStr

from prefect_batchflow import BatchEngine, Status
from prefect_batchflow.blocks import OpenAIConnectionBlock
from prefect_batchflow.cli.commands import main
from prefect_batchflow.connections.model_configurations import OpenAIModelConfiguration
from prefect_batchflow.exceptions import GetConnectionError, InvalidOptionError, RunChangedError
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run.handle import LiveRun

if TYPE_CHECKING:
    from model_server import ModelServer

    from prefect_batchflow.results.models import BatchResult

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_blocks")]

CANARY = "sk-canary-0a1b2c3d4e5f"
CONNECTIONS: dict[str, Any] = {
    "my": {"type": "OpenAIConnection", "value": {"api_key": CANARY, "base_url": "http://host"}}
}
TOOL = """
    import logging, os, sys
    from promptflow.core import tool
    from promptflow.connections import OpenAIConnection

    @tool
    def a(x: str, c: OpenAIConnection) -> str:
        print("printed", c.api_key)
        logging.getLogger("flow").warning("logged %s", c.api_key)
        if x == "raise":
            raise ValueError(f"refused: {c.api_key}")
        if x == "die":
            print(c.api_key, file=sys.stderr, flush=True)
            os._exit(3)
        if x == "repr":
            return f"{c!r} {c.base_url}"
        return c.api_key
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    folder = tmp_path / "flow"
    folder.mkdir()
    (folder / "tool.py").write_text(dedent(TOOL))
    (folder / "flow.dag.yaml").write_text(
        "inputs: {x: {type: string}}\n"
        "outputs: {out: {type: string, reference: '${a.output}'}}\n"
        "nodes: [{name: a, type: python, source: {type: code, path: tool.py}, inputs: {x: '${inputs.x}', c: my}}]\n"
    )
    (folder / "data.jsonl").write_text("".join(f'{{"x": "{what}"}}\n' for what in ("repr", "raise", "key", "die")))
    return folder


def files_with(text: str, folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def test_no_secret_is_kept_of_a_run(
    flow: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, told: list[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = BatchEngine(
        flow, connections=CONNECTIONS, run_storage_url=str(tmp_path / "runs"), worker_count=1, granularity="line"
    )
    result = engine.run({"data": "data.jsonl"}, {"x": "${data.x}"}, tmp_path / "out", run_id="canary")
    assert result.status is Status.Completed
    assert (result.completed_lines, result.failed_lines) == (2, 2)
    outputs = (tmp_path / "out" / "output.jsonl").read_text()
    assert "<OpenAIConnection 'my', keys: organization, base_url, api_key> http://host" in outputs
    assert files_with("**data_scrubbed**", tmp_path)
    assert files_with(CANARY, tmp_path) == []
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    assert files_with("canary", database.parent), "the run's name is in it"
    assert files_with(CANARY, database.parent) == []
    assert CANARY not in str(result)
    assert CANARY not in caplog.text
    printed = [message for message in told if " printed:\n" in message]
    assert sorted(text.partition(" printed")[0] for text in printed) == [f"Line {n}" for n in range(4)]
    assert all("printed **data_scrubbed**" in text for text in printed)
    assert CANARY not in str(told)


ASK = "model: {{configuration: {{type: openai, model: m, base_url: {url}, {key}}}}}"
CLASS = """
    from promptflow.core import OpenAIModelConfiguration, Prompty

    class Ask:
        def __init__(self, model: OpenAIModelConfiguration) -> None:
            self.model = model
        def __call__(self, x: str) -> str:
            print("printed", self.model.api_key)
            if x == "raise":
                raise ValueError(vars(self.model))
            return Prompty.load("ask.prompty", model={"configuration": self.model})(x=x)
"""


@pytest.mark.parametrize(
    ("flow_file", "options"),
    [
        ("llm", {"connections": {"my": "llm"}}),
        ("ask.prompty", {}),
        ("no_key.prompty", {}),
        ("ask.prompty", {"init_kwargs": {"model": {"configuration": {"api_key": CANARY}}}}),
        ("ask.py:Ask", {"init_kwargs": {"model": {"model": "m", "connection": "my"}}, "connections": {"my": "llm"}}),
        ("ask.py:Ask", {"init_kwargs": {"model": OpenAIModelConfiguration(model="m", api_key=CANARY)}}),
        ("look.py:look", {"environment_variables": {"THEIR_TOKEN": "${my.api_key}"}, "connections": {"my": "llm"}}),
        ("look.py:look", {"environment_variables": {"THEIR_TOKEN": CANARY}}),
    ],
    ids=[
        *("llm node", "prompty", "the environment's key", "prompty's init", "model by connection", "model by its keys"),
        *("variable of a connection", "variable"),
    ],
)
def test_no_secret_is_kept_whatever_brings_it(
    tmp_path: Path,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    flow_file: str,
    options: dict[str, Any],
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("MY_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("OPENAI_BASE_URL", model_server.base_url)
    # A service that tells the key in its errors and in its answers.
    model_server.script.append(error_reply(401, f"Incorrect API key provided: {CANARY}.", code="invalid_api_key"))
    model_server.answer = lambda _: Reply(message={"role": "assistant", "content": f"your key is {CANARY}"})
    folder = tmp_path / "flow"
    (folder / "llm").mkdir(parents=True)
    (folder / "llm" / "flow.dag.yaml").write_text(
        "inputs: {x: {type: string}}\noutputs: {out: {type: string, reference: '${a.output}'}}\nnodes: [{name: a, type: llm, "
        "source: {type: code, path: a.jinja2}, inputs: {model: m, x: '${inputs.x}'}, connection: my, api: chat}]\n"
    )
    (folder / "llm" / "a.jinja2").write_text("# user:\n{{x}}\n")
    for name, key in (("ask", "api_key: '${env:MY_KEY}'"), ("no_key", "")):
        front = ASK.format(url=model_server.base_url, key=key)
        (folder / f"{name}.prompty").write_text(
            f"---\n{front}\ninputs: {{x: {{type: string}}}}\n---\nuser:\n{{{{x}}}}\n"
        )
    (folder / "ask.py").write_text(dedent(CLASS))
    (folder / "look.py").write_text(
        "import os\ndef look(x):\n    print(dict(os.environ))\n    return os.environ['THEIR_TOKEN']\n"
    )
    (folder / "data.jsonl").write_text("".join(f'{{"x": "{what}"}}\n' for what in ("first", "second", "raise")))
    spec = {"type": "OpenAIConnection", "value": {"api_key": CANARY, "base_url": model_server.base_url}}
    given = {**options, "connections": dict.fromkeys(options.get("connections", {}), spec)}
    engine = BatchEngine(
        flow_file if ":" in flow_file else folder / flow_file,
        folder if ":" in flow_file else None,
        run_storage_url=str(tmp_path / "runs"),
        worker_count=1,
        max_concurrency=1,
        **given,
    )

    result = engine.run({"data": folder / "data.jsonl"}, {"x": "${data.x}"}, tmp_path / "out", run_id="canaries")

    assert (result.status, result.total_lines) == (Status.Completed, 3)
    assert result.completed_lines
    assert files_with("**data_scrubbed**", tmp_path / "runs")
    assert files_with(CANARY, tmp_path) == []
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    assert files_with(CANARY, database.parent) == []
    assert CANARY not in str(result) + caplog.text


def run_of(flow: Path, tmp_path: Path, **parameters: Any) -> BatchResult:
    return run_batch(
        {
            "flow": str(flow),
            "data": str(flow / "data.jsonl"),
            "storage": str(tmp_path / "runs"),
            "granularity": "chunk",
            "worker_count": 1,
            "max_lines_count": 1,
            **parameters,
        },
        LiveRun(),
    )


def test_a_connection_that_was_not_given_is_the_block_of_its_name(flow: Path, tmp_path: Path) -> None:
    OpenAIConnectionBlock(api_key=SecretStr(CANARY), base_url="http://host").save("my-ai-1", overwrite=True)
    yaml = flow / "flow.dag.yaml"
    yaml.write_text(yaml.read_text().replace("c: my", "c: My AI_1"))
    assert run_of(flow, tmp_path).completed_lines == 1
    assert files_with(CANARY, tmp_path) == []


@pytest.mark.parametrize("block", ["openai-connection/canary-block", "canary-block"], ids=["type and name", "name"])
def test_a_connection_may_be_a_block_that_is_named(flow: Path, tmp_path: Path, block: str) -> None:
    OpenAIConnectionBlock(api_key=SecretStr(CANARY)).save("canary-block", overwrite=True)
    assert run_of(flow, tmp_path, run_id="named", connections={"my": block}).completed_lines == 1
    assert files_with(block, tmp_path / "runs"), "the manifest says which, for a resume"
    assert files_with(CANARY, tmp_path) == []


def test_a_block_that_is_not_there_is_told(flow: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidOptionError, match=r"Cannot load connection 'my' from block 'nope': expected one .* found none"
    ):
        run_of(flow, tmp_path, connections={"my": "nope"})


def test_a_variable_of_the_flow_has_the_key_of_the_block_of_its_name(flow: Path, tmp_path: Path) -> None:
    OpenAIConnectionBlock(api_key=SecretStr(CANARY), base_url="http://host").save("my-variables-ai", overwrite=True)
    yaml = flow / "flow.dag.yaml"
    text = yaml.read_text().replace("c: my", "c: my_variables_ai")
    yaml.write_text(text + "environment_variables: {PLACE: '${my_variables_ai.base_url}'}\n")
    (flow / "tool.py").write_text(dedent(TOOL).replace('f"{c!r} {c.base_url}"', 'os.environ["PLACE"]'))

    assert run_of(flow, tmp_path, run_id="variables").completed_lines == 1

    assert files_with("http://host", tmp_path / "runs")
    assert files_with(CANARY, tmp_path) == []


def test_a_connection_that_was_not_given_stops_the_run_before_it_begins(flow: Path, tmp_path: Path) -> None:
    engine = BatchEngine(flow, connections={"other": CONNECTIONS["my"]}, run_storage_url=str(tmp_path / "runs"))
    with pytest.raises(GetConnectionError, match="'my' for node 'a', input 'c' was not given; given: other") as caught:
        engine.run({"data": "data.jsonl"}, {"x": "${data.x}"})
    assert CANARY not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_connection_chosen_for_a_node_is_part_of_the_run(flow: Path, tmp_path: Path) -> None:
    given = CONNECTIONS | {"their": {"type": "OpenAIConnection", "value": {"api_key": CANARY, "base_url": "theirs"}}}

    def run(**options: Any) -> BatchResult:
        engine = BatchEngine(flow, connections=given, run_storage_url=str(tmp_path / "runs"), worker_count=1, **options)
        return engine.run({"data": "data.jsonl"}, {"x": "${data.x}"}, run_id="chosen", max_lines_count=1)

    assert run(node_connections={"a": {"c": "their"}}).completed_lines == 1
    assert files_with("<OpenAIConnection 'their', keys: organization, base_url, api_key> theirs", tmp_path / "runs")
    assert run(node_connections={"a": {"c": "their"}}).completed_lines == 1
    with pytest.raises(RunChangedError, match="the choice of connections for nodes changed"):
        run(node_connections={"a": {"c": "my"}})
    with pytest.raises(RunChangedError, match="the choice of connections for nodes is gone"):
        run()


def test_a_choice_that_the_tool_does_not_take_stops_the_run_before_it_begins(flow: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="Node 'a': 'x' was chosen as a connection"):
        run_of(flow, tmp_path, node_connections={"a": {"x": "their"}})
    assert not (tmp_path / "runs").exists()


def test_a_run_file_chooses_connections_and_a_resume_keeps_them(
    flow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("theirs", "others"):
        OpenAIConnectionBlock(api_key=SecretStr(CANARY), base_url=name).save(name, overwrite=True)
    file = tmp_path / "run.yaml"
    file.write_text(
        "flow: flow\ndata: flow/data.jsonl\ncolumn_mapping: {x: '${data.x}'}\nconnections: {a: {c: theirs}}\n"
    )
    options = ["--storage", str(tmp_path / "runs"), "--workers", "1"]

    written = main(["run", "--file", str(file), "--run-id", "written", "--limit", "1", *options])
    typed = main(["run", "--file", str(file), "--run-id", "typed", "--node-connections", "a.c=others", *options])
    again = capsys.readouterr().out
    resumed = main(["resume", "typed", *options])

    assert (written, typed, resumed) == (0, 3, 3)
    assert files_with("<OpenAIConnection 'theirs'", tmp_path / "runs" / "written")
    assert files_with("<OpenAIConnection 'others'", tmp_path / "runs" / "typed")
    assert "--node-connections a.c=others" in again.replace("\n", " ")


def test_a_key_among_the_arguments_of_a_command_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "ask.py").write_text(
        "class Ask:\n    def __init__(self, model):\n        self.model = model\n"
        "    def __call__(self, x):\n        return self.model['api_key'][-4:] + self.model['api_key']\n"
    )
    (tmp_path / "d.jsonl").write_text('{"x": 1}\n')
    model = f'{{"model": "m", "api_key": "{CANARY}"}}'
    command = ["--storage", str(tmp_path / "runs"), "--init", f"model={model}"]

    assert (
        main(["run", f"{tmp_path}/ask.py:Ask", "--data", str(tmp_path / "d.jsonl"), "--run-id", "keyed", *command]) == 0
    )
    assert main(["resume", "keyed", *command[:2]]) != 0
    assert "which are not stored, because they have a key" in capfd.readouterr().err
    assert main(["resume", "keyed", *command]) == 0

    assert "4e5f**data_scrubbed**" in (tmp_path / "runs" / "keyed" / "outputs.jsonl").read_text()
    assert files_with(CANARY, tmp_path) == []
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    assert files_with(CANARY, database.parent) == []
    printed = capfd.readouterr()
    assert CANARY not in caplog.text + printed.out + printed.err
