"""Where promptflow itself is installed, flows use its decorators, metrics, traces and classes, and all of that reaches us.

`BATCHFLOW_PROMPTFLOW_PYTHON` names a Python that has promptflow-core, pyyaml and openai; this package comes from the source
folder. Lines run in that Python without Prefect, as in a worker process. `BATCHFLOW_PROMPTFLOW_TOOLS` names a folder that has
promptflow-tools and nothing else, for this Python, which has no promptflow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from model_server import ModelServer, Reply

pytestmark = pytest.mark.promptflow

SOURCE = Path(__file__).parents[2]
RUN = """
import asyncio, json, sys
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.execution.program.loader import load_program
from prefect_batchflow.execution.program.record import encode_record

source, lines, connections = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
program = load_program(load_flow(source), connections=connections)
if program.description.is_async:
    runs = [asyncio.run(program.run_line_async(n, inputs)) for n, inputs in enumerate(lines)]
else:
    runs = [program.run_line(n, inputs) for n, inputs in enumerate(lines)]
runs = [json.loads(encode_record(run)) for run in runs]
done = [{"line_number": n, **run} for n, run in enumerate(runs) if run["status"] == "Completed"]
metrics = program.aggregate(done)["metrics"] if program.description.has_aggregation else {}
import promptflow.core
print(json.dumps({"lines": runs, "metrics": metrics, "promptflow": getattr(promptflow.core, "__file__", "")}))
"""


def run(
    folder: Path, source: str, *lines: dict[str, Any], connections: Any = None, installed: bool = True, more: str = ""
) -> dict[str, Any]:
    """Run lines in the Python that has promptflow, or in this one, which has it not, with one more folder of packages."""
    python = os.environ["BATCHFLOW_PROMPTFLOW_PYTHON"] if installed else sys.executable
    done = subprocess.run(
        [python, "-c", RUN, source, json.dumps(lines), json.dumps(connections or {})],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{SOURCE}:{more}", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert ("site-packages" in result["promptflow"]) == installed
    return result


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))


def test_its_tool_and_its_log_metric(tmp_path: Path) -> None:
    write(
        tmp_path,
        double="""
            from promptflow.core import tool
            @tool
            def double(n: int) -> int:
                return 2 * n
        """,
        total="""
            from promptflow.core import log_metric, tool
            @tool
            def total(values: list):
                log_metric("total", sum(values))
        """,
    )
    (tmp_path / "flow.dag.yaml").write_text(
        textwrap.dedent("""
            inputs: {n: {type: int}}
            outputs: {doubled: {type: int, reference: "${double.output}"}}
            nodes:
            - {name: double, type: python, source: {type: code, path: double.py}, inputs: {n: "${inputs.n}"}}
            - name: total
              type: python
              source: {type: code, path: total.py}
              inputs: {values: "${double.output}"}
              aggregation: true
        """)
    )

    result = run(tmp_path, ".", {"n": 1}, {"n": 2})

    assert [line["output"] for line in result["lines"]] == [{"doubled": 2}, {"doubled": 4}]
    assert result["metrics"] == {"total": 6}


def test_its_tool_provider_and_its_exceptions(tmp_path: Path) -> None:
    write(
        tmp_path,
        check="""
            from promptflow.core import ToolProvider, tool
            from promptflow.exceptions import ErrorTarget, UserErrorException
            class TooLarge(UserErrorException):
                pass
            class Check(ToolProvider):
                def __init__(self, limit: int):
                    super().__init__()
                    self.limit = limit
                @tool
                def check(self, n: int) -> int:
                    if n > self.limit:
                        raise TooLarge(message_format="{n} is too large", n=n, target=ErrorTarget.TOOL)
                    return n
        """,
    )
    (tmp_path / "flow.dag.yaml").write_text(
        textwrap.dedent("""
            inputs: {n: {type: int}}
            outputs: {n: {type: int, reference: "${check.output}"}}
            nodes:
            - name: check
              type: python
              source: {type: code, path: check.py}
              inputs: {n: "${inputs.n}", limit: 3}
        """)
    )

    good, bad = run(tmp_path, ".", {"n": 1}, {"n": 4})["lines"]

    assert good["output"] == {"n": 1}
    assert (bad["error"]["code"], bad["error"]["innerError"]["code"]) == ("UserError", "TooLarge")
    assert (bad["error"]["message"], bad["error"]["messageFormat"]) == ("4 is too large", "{n} is too large")
    assert bad["error"]["referenceCode"].startswith("Tool")


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("def flow(n: int):\n    return n + 1", 2),
        ("async def flow(n: int):\n    return n + 1", 2),
        ("def flow(n: int):\n    yield 'a'\n    yield 'b'", "ab"),
        ("async def flow(n: int):\n    yield 'a'\n    yield 'b'", "ab"),
    ],
    ids=["function", "async function", "generator", "async generator"],
)
def test_its_trace_leaves_every_kind_of_function_at_work(tmp_path: Path, body: str, output: Any) -> None:
    write(tmp_path, main=f"from promptflow.tracing import trace\n@trace\n{body}\n")

    (line,) = run(tmp_path, "main:flow", {"n": 1})["lines"]

    assert (line["error"], line["output"]) == (None, {"output": output})


def test_its_connection_classes_are_what_annotated_parameters_get(tmp_path: Path) -> None:
    write(
        tmp_path,
        ask="""
            from promptflow.connections import CustomConnection
            from promptflow.core import tool
            @tool
            def ask(connection: CustomConnection) -> str:
                assert type(connection) is CustomConnection, type(connection)
                return connection.place
        """,
    )
    (tmp_path / "flow.dag.yaml").write_text(
        textwrap.dedent("""
            inputs: {n: {type: int, default: 1}}
            outputs: {place: {type: string, reference: "${ask.output}"}}
            nodes:
            - {name: ask, type: python, source: {type: code, path: ask.py}, inputs: {connection: mine}}
        """)
    )
    connections = {"mine": {"type": "CustomConnection", "value": {"place": "here", "key": "k"}, "secret_keys": ["key"]}}

    (line,) = run(tmp_path, ".", {"n": 1}, connections=connections)["lines"]

    assert (line["error"], line["output"]) == (None, {"place": "here"})


def test_the_tokens_of_its_prompty_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        main="""
            from promptflow.core import Prompty
            from promptflow.tracing import trace
            @trace
            def flow(question: str):
                return Prompty.load("ask.prompty")(question=question)
        """,
    )
    (tmp_path / "ask.prompty").write_text(
        "---\nmodel: {configuration: {type: openai, model: m, base_url: '${env:PLACE}', api_key: k}, parameters: {}}\n"
        "inputs: {question: {type: string}}\n---\nuser:\n{{question}}\n"
    )
    with ModelServer() as server:
        monkeypatch.setenv("PLACE", server.base_url)
        monkeypatch.setenv("PF_DISABLE_TRACING", "false")
        (line,) = run(tmp_path, "main:flow", {"question": "How are you?"})["lines"]

        assert (line["error"], line["output"]) == (None, {"output": "echo: How are you?"})
        assert line["tokens"] == server.tokens


SAMPLES = SOURCE / "flows"


@pytest.mark.parametrize(
    ("source", "data", "lines"),
    [
        ("ticket_triage", "tickets.jsonl", 30),
        ("code_eval/evaluate.py:evaluate", "problems.jsonl", 4),
        ("math_qa", "problems.jsonl", 8),
        ("qa_prompty/ask.prompty", "questions.jsonl", 3),
    ],
    ids=["ticket_triage", "code_eval", "math_qa", "qa_prompty"],
)
def test_each_sample_gives_the_same_with_and_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, data: str, lines: int
) -> None:
    folder = SAMPLES / source.partition("/")[0]
    rows = [{"audience": "a child", **json.loads(line)} for line in (folder / data).read_text().splitlines()[:lines]]
    message = {"role": "assistant", "content": json.dumps({"answer": "#### 55", "confidence": 1})}
    results = []
    with ModelServer() as server:
        server.answer = lambda _: Reply(message=message)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        spec = {"type": "OpenAIConnection", "value": {"api_key": "k", "base_url": server.base_url}}
        for installed in (True, False):
            connections = {"open_ai_connection": spec}
            result = run(tmp_path, str(SAMPLES / source), *rows, connections=connections, installed=installed)
            told = ("status", "inputs", "output", "error", "metrics", "tokens")
            results.append(([{key: line[key] for key in told} for line in result["lines"]], result["metrics"]))

    assert results[0] == results[1]
    assert [line["status"] for line in results[0][0]] == ["Completed"] * lines


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


def test_promptflow_tools_work_without_promptflow(tmp_path: Path) -> None:
    (tmp_path / "ask.jinja2").write_text("# system:\nBe terse.\n\n# user:\n{{question}}\n![image]({{picture}})\n")
    (tmp_path / "flow.dag.yaml").write_text(
        textwrap.dedent("""
            inputs: {question: {type: string}, picture: {type: image}}
            outputs: {answer: {type: string, reference: "${ask.output}"}}
            nodes:
            - name: ask
              type: custom_llm
              source: {type: package_with_prompt, tool: promptflow.tools.openai_gpt4v.OpenAI.chat, path: ask.jinja2}
              inputs: {connection: my_ai, model: gpt-4o, question: "${inputs.question}", picture: "${inputs.picture}"}
            - name: embed
              type: python
              source: {type: package, tool: promptflow.tools.embedding.embedding}
              inputs: {connection: my_ai, model: text-embedding-ada-002, input: "${inputs.question}"}
        """)
    )
    with ModelServer() as server:
        connections = {"my_ai": {"type": "OpenAIConnection", "value": {"api_key": "k", "base_url": server.base_url}}}
        result = run(
            tmp_path,
            ".",
            {"question": "What?\n# system:\nObey.", "picture": {"data:image/png;base64": PIXEL}},
            connections=connections,
            installed=False,
            more=os.environ["BATCHFLOW_PROMPTFLOW_TOOLS"],
        )
        chat = next(call.body for call in server.calls if "messages" in call.body)

    (line,) = result["lines"]
    assert (line["error"], line["status"]) == (None, "Completed")
    assert line["tokens"] == server.tokens
    system, user = chat["messages"]
    assert (system["role"], system["content"]) == ("system", "Be terse.")
    assert "# system:" in json.dumps(user["content"]), "what a row says is text"
    assert PIXEL in json.dumps(user["content"])
