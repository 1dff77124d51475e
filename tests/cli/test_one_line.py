"""`batchflow test`: one line of a flow, as typed and as shown, without a server and without a trace."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from typed_command import Shown

from prefect_batchflow.cli.commands import app, main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_server import ModelServer

pytestmark = pytest.mark.programs

CANARY = "sk-canary-0a1b2c3d4e5f"
CODE = """
    import asyncio, os, sys

    def shout(text: str, times: int = 1, more: dict | None = None) -> dict:
        print("shouting", text)
        if text == "bad":
            raise ValueError("this is bad")
        if text == "exit":
            os._exit(3)
        if text == "hang":
            import threading
            threading.Event().wait()
        return {"loud": text.upper() * times, "kind": type(text).__name__, "more": more}

    async def later(text: str) -> str:
        await asyncio.sleep(0)
        return text + "!"

    class Adder:
        def __init__(self, start: int, step: int = 1) -> None:
            self.start = start

        def __call__(self, n: int) -> int:
            return self.start + n

        def __aggregate__(self, results: list) -> dict:
            return {"n": len(results)}
"""


@pytest.fixture
def batchflow(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Shown]:
    """Type `batchflow test` in a folder of the test's own, with some flows in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flows.py").write_text(dedent(CODE))

    def call(*words: str | Path) -> Shown:
        capsys.readouterr()
        return Shown(main(["test", *map(str, words)]), *capsys.readouterr())

    return call


def output(shown: Shown) -> Any:
    assert shown.status == 0, shown.err
    return shown.document["output"]


def test_a_line_shows_its_output_and_what_it_printed(batchflow: Callable[..., Shown]) -> None:
    shown = batchflow("flows.py:shout", "--input", "text=a b")

    assert shown.status == 0
    lines = [line.rstrip() for line in shown.out.splitlines()]
    assert lines[:4] == ["shout: completed", "", "Output", "  loud  A B"]
    assert lines[lines.index("Printed") + 1] == "  shouting a b"
    assert "Tokens  0" in lines
    assert any(line.startswith("Time    ") and "for the line" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "loud", "kind"),
    [
        (["--input", "text=x"], "X", "str"),
        (["-i", "text=x", "-i", "times=2"], "XX", "str"),
        (["--input", "text=5"], "5", "str"),
        (["--input", "text=true"], "TRUE", "str"),
        (["--input", 'text="q"'], '"Q"', "str"),
        (["--input", "text=a=b"], "A=B", "str"),
        (["--inputs", "text=x", "times=3"], "XXX", "str"),
        (["--inputs", "row.json"], "ROWROW", "str"),
        (["--inputs", "row.json", "--input", "text=over"], "OVEROVER", "str"),
        (["--data", "row.json"], "ROWROW", "str"),
        (["--data", "pretty.jsonl"], "ROWROW", "str"),
        (["--data", "rows.jsonl"], "FIRST", "str"),
        (["--data", "list.json"], "FIRST", "str"),
        (["--data", "rows.csv"], "CSVCSV", "str"),
        (["--data", "rows.csv", "--map", "text=${data.times}"], "22", "str"),
        (["--data", "rows.jsonl", "--map", "text=a constant"], "A CONSTANT", "str"),
    ],
    ids=" ".join,
)
def test_inputs_come_from_the_words_and_from_data(
    batchflow: Callable[..., Shown], tmp_path: Path, words: list[str], loud: str, kind: str
) -> None:
    row = {"text": "row", "times": 2, "unused": None}
    (tmp_path / "row.json").write_text(json.dumps(row, indent=2))
    (tmp_path / "pretty.jsonl").write_text(json.dumps(row, indent=2) + "\n" + json.dumps(row, indent=2))
    (tmp_path / "rows.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    (tmp_path / "list.json").write_text('[{"text": "first"}, {"text": "second"}]')
    (tmp_path / "rows.csv").write_text("text,times\ncsv,2\n")

    found = output(batchflow("flows.py:shout", *words, "--json"))

    assert (found["loud"], found["kind"]) == (loud, kind)


def test_standard_input_has_a_row(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(dedent(CODE))
    assert app.parse_args(["run", "f", "--data", "-"], exit_on_error=False)[1].kwargs["data"] == ["-"]
    words = [sys.executable, "-m", "prefect_batchflow.cli", "test", "flows.py:shout", "--data", "-", "--json"]
    done = subprocess.run(words, input='{\n "text": "x"\n}', cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["output"]["loud"] == "X", done.stderr


def test_nothing_of_prefect_is_imported_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(dedent(CODE))
    code = (
        "import sys; from prefect_batchflow.cli.commands import main; "
        "main(['test', 'flows.py:shout', '--input', 'text=x']); "
        "print([m for m in ('prefect', 'pydantic', 'httpx', 'fsspec') if m in sys.modules])"
    )
    home = tmp_path / "home"
    env = {**os.environ, "PREFECT_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert not home.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["flows.py"]


def test_an_async_line_and_a_class_run(batchflow: Callable[..., Shown]) -> None:
    assert output(batchflow("flows.py:later", "--input", "text=a", "--json")) == {"output": "a!"}

    shown = batchflow("flows.py:Adder", "--input", "n=2", "--init", "start=40")
    assert "  output  42" in shown.out
    assert "Aggregation" in shown.out
    assert "batchflow run" in shown.out
    assert batchflow("flows.py:Adder", "--input", "n=2", "--init", "start=40", "--json").document["has_aggregation"]


def test_an_error_shows_the_traceback_of_the_flows_code(batchflow: Callable[..., Shown]) -> None:
    shown = batchflow("flows.py:shout", "--input", "text=bad")

    assert shown.status == 3
    said = [line.strip() for line in shown.out.splitlines()]
    assert said[0] == "shout: failed"
    assert "Execution failure in 'shout': (ValueError) this is bad" in said
    assert 'raise ValueError("this is bad")' in said
    assert "shouting bad" in said
    document = batchflow("flows.py:shout", "--input", "text=bad", "--json").document
    assert (document["status"], document["output"]) == ("Failed", None)
    assert document["error"]["message"] == "Execution failure in 'shout': (ValueError) this is bad"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--input", "text=exit"], "ProcessCrashError"),
        (["--input", "text=hang", "--line-timeout", "0.5"], "LineExecutionTimeoutError"),
    ],
)
def test_a_line_that_crashes_or_hangs_is_a_failed_line(
    batchflow: Callable[..., Shown], words: list[str], code: str
) -> None:
    shown = batchflow("flows.py:shout", *words)
    assert (shown.status, code in shown.out) == (3, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["flows.py:shout"], "The flow 'shout' needs 'text'. Give --input text=…, or a row with --data."),
        (["flows.py:shout", "--input", "txt=x"], "Did you mean it by 'txt'? Its inputs: text, times, more."),
        (["flows.py:shout", "--input", "text"], "--input takes name=value, found 'text'"),
        (["flows.py:shout", "--input", "text=a", "--input", "text=b"], "--input gives 'text' twice"),
        (["flows.py:shout", "--input", "text=a", "--input", "times=many"], "input 'times'"),
        (["flows.py:shout", "--data", "no.json"], "no.json"),
        (["flows.py:shout", "--data", "empty.jsonl"], "there is no row in it"),
        (["flows.py:shout", "--data", "broken.json"], "broken.json"),
        (["flows.py:shout", "--data", "a.json", "--inputs", "b.json"], "both give a row. Leave one of them out"),
        (["flows.py:shout", "--inputs", "a.json", "b.json"], "--inputs takes one file, found a.json, b.json"),
        (["flows.py:nothing", "--input", "text=a"], "nothing"),
        (["nowhere", "--input", "text=a"], "No flow at"),
        (["flows:shout", "--working-dir", "nowhere"], "working_dir: 'nowhere' is not a folder (looked for /"),
        (["flows.py:shout", "--working-dir", "/nowhere"], "working_dir: '/nowhere' is not a folder. "),
        (["flows.py:shout", "--input", "text=a", "--image-root", "nowhere"], "image_roots: 'nowhere' is not a folder"),
        (["flows.py:Adder", "--input", "n=1"], "start"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_told(batchflow: Callable[..., Shown], tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.json").write_text('{"text": ')
    shown = batchflow(*words)
    assert shown.status in (2, 3)
    assert said in " ".join((shown.err + shown.out).split())


# --- flows with nodes and models -------------------------------------------------------------------------------------


@pytest.fixture
def dag(tmp_path: Path) -> Path:
    folder = tmp_path / "dag"
    folder.mkdir()
    (folder / "flow.dag.yaml").write_text(
        dedent(
            """
            inputs: {q: {type: string, default: the default}}
            outputs: {out: {type: string, reference: "${tidy.output}"}}
            nodes:
            - name: ask
              type: llm
              source: {type: code, path: ask.jinja2}
              inputs: {model: m, temperature: 0, q: "${inputs.q}"}
              connection: test_ai
              api: chat
              use_variants: false
            - {name: tidy, type: python, source: {type: code, path: tidy.py}, inputs: {text: "${ask.output}"}}
            - name: count
              type: python
              aggregation: true
              source: {type: code, path: count.py}
              inputs: {all: "${tidy.output}"}
            """
        )
    )
    (folder / "ask.jinja2").write_text("# system:\nBe kind.\n# user:\nSay {{q}}.\n")
    tool = "from promptflow.core import tool\n\n@tool\ndef f({}):\n    {}\n"
    (folder / "tidy.py").write_text(tool.format("text: str", "return text.strip() if 'bad' not in text else 1 / 0"))
    (folder / "count.py").write_text(tool.format("all: list", "return len(all)"))
    return folder


def test_the_prompt_as_sent_and_its_tokens_are_shown(
    batchflow: Callable[..., Shown], dag: Path, tmp_path: Path, model_server: ModelServer
) -> None:
    (tmp_path / "ai.yml").write_text(f"type: open_ai\napi_key: {CANARY}\nbase_url: {model_server.base_url}\n")
    words = [dag, "--connection", "test_ai=ai.yml"]

    shown = batchflow(*words, "--input", f"q=hello {CANARY}")

    lines = [line.rstrip() for line in shown.out.splitlines()]
    start = lines.index("Prompt 1, node ask, m")
    assert lines[start + 1 : start + 6] == [
        "  system:",
        "    Be kind.",
        "  user:",
        "    Say hello **data_scrubbed**.",
        "  temperature=0",
    ]
    assert CANARY not in shown.out + shown.err
    assert f"Tokens       {model_server.tokens['total_tokens']}: " in shown.out
    assert "Aggregation  not run" in shown.out
    assert [line.split()[:2] for line in lines if line.startswith(("  ask ", "  tidy "))] == [
        ["ask", "completed"],
        ["tidy", "completed"],
    ]

    document = batchflow(*words, "--json").document
    assert document["inputs"] == {"q": "the default"}
    assert document["prompts"][0]["messages"][1] == {"role": "user", "content": "Say the default."}
    assert (document["prompts"][0]["node"], document["prompts"][0]["model"]) == ("ask", "m")
    assert document["tokens"]["total_tokens"] > 0


def test_a_failing_node_is_named(
    batchflow: Callable[..., Shown], dag: Path, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_AI_API_KEY", CANARY)
    monkeypatch.setenv("TEST_AI_BASE_URL", model_server.base_url)

    shown = batchflow(dag, "--input", "q=bad")

    assert shown.status == 3
    said = [line.strip() for line in shown.out.splitlines()]
    assert "ToolExecutionError, node tidy" in said
    assert "ZeroDivisionError: division by zero" in said
    assert "Prompt 1, node ask, m" in said, "what led to it"


def test_a_prompty_takes_its_sample_and_calls_of_the_flows_own_code_are_shown(
    batchflow: Callable[..., Shown], tmp_path: Path, model_server: ModelServer
) -> None:
    (tmp_path / "ask.prompty").write_text(
        f"---\nname: asks\nmodel:\n  api: chat\n  configuration: {{type: openai, model: m, base_url: "
        f"{model_server.base_url}, api_key: {CANARY}}}\ninputs: {{q: {{type: string}}}}\nsample: {{q: of the sample}}\n"
        "---\nuser:\nTell {{q}}\n"
    )
    shown = batchflow("ask.prompty", "--json")
    assert output(shown) == {"output": "echo: Tell of the sample"}
    assert [prompt["messages"][-1]["content"] for prompt in shown.document["prompts"]] == ["Tell of the sample"]
    assert output(batchflow("ask.prompty", "--input", "q=mine", "--json")) == {"output": "echo: Tell mine"}

    (tmp_path / "own.py").write_text(
        dedent(
            f"""
            from concurrent.futures import ThreadPoolExecutor
            from openai import OpenAI

            def ask(q: str) -> int:
                client = OpenAI(api_key="k", base_url="{model_server.base_url}")
                def one(n):
                    return client.chat.completions.create(model="m", messages=[{{"role": "user", "content": f"{{q}} {{n}}"}}])
                with ThreadPoolExecutor(2) as pool:
                    return len(list(pool.map(one, range(2))))
            """
        )
    )
    sent = batchflow("own.py:ask", "--input", "q=own", "--json").document["prompts"]
    assert sorted(prompt["messages"][0]["content"] for prompt in sent) == ["own 0", "own 1"]


def test_an_image_is_shown_by_its_size(batchflow: Callable[..., Shown], tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(3_000))
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "flow.dag.yaml").write_text(
        "inputs: {picture: {type: image}}\noutputs: {same: {type: image, reference: '${look.output}'}}\n"
        "nodes: [{name: look, type: python, source: {type: code, path: look.py}, inputs: {picture: '${inputs.picture}'}}]\n"
    )
    (tmp_path / "look" / "look.py").write_text(
        "from promptflow.contracts.multimedia import Image\nfrom promptflow.core import tool\n\n@tool\n"
        "def look(picture: Image):\n    print(len(picture))\n    return picture\n"
    )
    (tmp_path / "i" / "row.json").write_text('{"picture": {"data:image/png;path": "a.png"}}')

    shown = batchflow("look", "--data", "i/row.json")

    assert shown.status == 0, shown.err + shown.out
    assert "\n  3008" in shown.out
    assert " bytes)" in shown.out

    given = ("look", "--input", 'picture={"data:image/png;path": "a.png"}')
    assert batchflow(*given).status == 3
    assert batchflow(*given, "--image-root", "i").status == 0
    assert len(shown.out) < 1_000
    assert base64.b64encode(bytes(3_000)).decode()[:200] not in shown.out


def test_includes_variants_variables_and_the_folder_are_as_in_a_run(
    batchflow: Callable[..., Shown], tmp_path: Path
) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    (tmp_path / "shared.py").write_text("WHO = 'shared'\n")
    (folder / "a.py").write_text(
        "import os, shared\nfrom promptflow.core import tool\n\n@tool\ndef a(x: str):\n"
        "    return ' '.join([x, shared.WHO, os.environ['LEVEL'], os.environ['MORE']])\n"
    )
    (folder / "flow.dag.yaml").write_text(
        "additional_includes: [../shared.py]\nenvironment_variables: {LEVEL: low, MORE: none}\n"
        "inputs: {x: {type: string}}\noutputs: {o: {type: string, reference: '${a.output}'}}\n"
        "nodes: [{name: a, use_variants: true}]\nnode_variants:\n  a:\n    default_variant_id: one\n    variants:\n"
        "      one: {node: {type: python, source: {type: code, path: a.py}, inputs: {x: '${inputs.x}'}}}\n"
        "      two: {node: {type: python, source: {type: code, path: a.py}, inputs: {x: second}}}\n"
    )
    words = ["v", "--input", "x=1", "--environment-variables", "MORE=much", "--json"]
    assert output(batchflow(*words)) == {"o": "1 shared low much"}
    assert output(batchflow(*words, "--variant", "${a.two}")) == {"o": "second shared low much"}


def test_help_names_everything(batchflow: Callable[..., Shown]) -> None:
    shown = batchflow("--help")
    parts = ["--input", "--inputs", "--data", "--map", "--init", "--connection", "--variant", "--node-connections"]
    parts += ["--environment-variables", "--working-dir", "--line-timeout", "--json", "--debug", "Exit status"]
    assert (shown.status, [part for part in parts if part not in shown.out]) == (0, [])


@pytest.mark.parametrize(
    "text", ["x" * 3_000, "many words " * 300, "12345678" * 300], ids=["letters", "words", "digits"]
)
def test_a_long_text_is_not_taken_for_an_image(batchflow: Callable[..., Shown], text: str) -> None:
    shown = batchflow("flows.py:later", "--input", f"text={text}")

    assert "bytes)" not in shown.out
    assert text[:30] in shown.out
