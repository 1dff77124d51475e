"""`batchflow connection`, and connections that a command gives to a run: by a file, by a block, by variables alone."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from typed_command import Shown

from prefect_batchflow.blocks import CustomConnectionBlock
from prefect_batchflow.cli.commands import main
from prefect_batchflow.connections.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_server import ModelServer

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_blocks")]

CANARY = "sk-canary-0a1b2c3d4e5f"
OTHER = "sk-second-9f8e7d6c5b4a"
OPEN_AI = f"name: cmd_ai\ntype: open_ai\napi_key: {CANARY}\nbase_url: https://x/v1\n"


@pytest.fixture
def batchflow(
    capsys: pytest.CaptureFixture[str], storage: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Shown]:
    """Type a command in a folder of the test's own, and see that it shows no secret."""
    monkeypatch.setenv("BATCHFLOW_STORAGE", str(storage))
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Shown:
        capsys.readouterr()
        shown = Shown(main([str(word) for word in words]), *capsys.readouterr())
        assert CANARY not in shown.out + shown.err
        assert OTHER not in shown.out + shown.err
        return shown

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "open_ai.yml"
    path.write_text(OPEN_AI)
    return path


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["create", "update", "list", "show", "delete"]),
        (["create"], ["--file", "-f", "--set", "--name", "-n", "--json"]),
        (["update"], ["NAME", "--set"]),
        (["list"], ["--json"]),
        (["show"], ["NAME", "--json"]),
        (["delete"], ["NAME", "--yes"]),
    ],
    ids=lambda value: " ".join(value) if value == [] or len(value) == 1 else "",
)
def test_each_command_has_help(batchflow: Callable[..., Shown], words: list[str], parts: list[str]) -> None:
    shown = batchflow("connection", *words, "--help")
    assert shown.status == 0
    assert [part for part in parts if part not in shown.out] == []


def test_a_connection_is_saved_shown_changed_and_deleted(batchflow: Callable[..., Shown], file: Path) -> None:
    made = batchflow("connection", "create", "-f", file, "--json")
    assert (made.status, made.document) == (
        0,
        {"name": "cmd_ai", "type": "open_ai", "block": "openai-connection/cmd-ai", "replaced": False},
    )
    assert {"name": "cmd-ai", "type": "open_ai", "block": "openai-connection/cmd-ai"} in batchflow(
        "connection", "list", "--json"
    ).document
    assert "cmd-ai" in batchflow("connection", "list").out
    facts = {
        "name": "cmd-ai",
        "type": "open_ai",
        "api_key": "******",
        "base_url": "https://x/v1",
        "block": "openai-connection/cmd-ai",
    }
    for name in ("cmd_ai", "cmd-ai", "openai-connection/cmd-ai"):
        assert batchflow("connection", "show", name, "--json").document == facts
    assert "******" in batchflow("connection", "show", "cmd_ai").out

    assert batchflow("connection", "update", "cmd_ai", "--set", "base_url=https://y", "organization=o").status == 0
    changed = batchflow("connection", "show", "cmd_ai", "--json").document
    assert changed == facts | {"base_url": "https://y", "organization": "o"}

    assert batchflow("connection", "delete", "cmd_ai", "--yes").status == 0
    gone = batchflow("connection", "show", "cmd_ai")
    assert gone.status == 2
    assert "There is no connection 'cmd_ai'. `batchflow connection list` shows the saved ones" in gone.err


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "CustomStrongTypeConnection"])
def test_every_kind_is_saved(batchflow: Callable[..., Shown], tmp_path: Path, kind: str) -> None:
    from prefect_batchflow.connections.files import fields_of, is_custom, yaml_type

    fields = [key for key, needed in fields_of(kind).items() if needed and key != "api_key"]
    text = f"type: {yaml_type(kind)}\n" + "".join(f"{key}: the {key}\n" for key in fields)
    text += f"secrets: {{token: {CANARY}}}\n" if is_custom(kind) else f"api_key: {CANARY}\n"
    (tmp_path / "c.yml").write_text(text)
    name = f"kind {kind}"

    assert batchflow("connection", "create", "--file", "c.yml", "--name", name).status == 0

    shown = batchflow("connection", "show", name, "--json").document
    assert shown["type"] == yaml_type(kind)
    assert shown["token" if is_custom(kind) else "api_key"] == "******"
    assert {key: shown[key] for key in fields} == {key: f"the {key}" for key in fields}


def test_another_type_takes_the_place_of_a_name(batchflow: Callable[..., Shown], file: Path) -> None:
    batchflow("connection", "create", "-f", file, "--name", "taken")
    file.write_text(f"type: azure_open_ai\napi_base: https://x\napi_key: {OTHER}\n")

    made = batchflow("connection", "create", "-f", file, "--name", "taken", "--json")

    assert made.document["replaced"] is True
    assert batchflow("connection", "show", "taken", "--json").document["block"] == "azure-openai-connection/taken"


def test_an_open_secret_is_asked_for(
    batchflow: Callable[..., Shown], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(OPEN_AI.replace(CANARY, "<user-input>"))
    refused = batchflow("connection", "create", "-f", file, "--name", "asked")
    assert refused.status == 2
    assert "needs api_key, and there is no terminal to ask at. Give --set api_key=" in refused.err

    asked: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    answers = iter(["", CANARY])

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(answers)

    monkeypatch.setattr(getpass, "getpass", ask)
    assert batchflow("connection", "create", "-f", file, "--name", "asked").status == 0
    assert asked == ["api_key of asked: "] * 2


def test_a_secret_can_stay_in_a_variable(
    batchflow: Callable[..., Shown], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(OPEN_AI.replace(CANARY, "${env:CMD_KEY}"))
    made = batchflow("connection", "create", "-f", file, "--name", "by variable")
    assert "Set CMD_KEY where the flow runs" in made.err
    assert batchflow("connection", "show", "by variable", "--json").document["api_key"] == "${env:CMD_KEY}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "--file", "no.yml"], "Expected the file of a connection"),
        (["create", "--file", "open_ai.yml", "--set", CANARY], "--set takes KEY=VALUE; number 1 has no equals sign"),
        (["create", "--file", "open_ai.yml", "--name", "?"], "has no letter or digit"),
        (["update", "nope", "--set", "api_key=x"], "There is no connection 'nope'"),
        (["update", "nope"], "Nothing to change. Give --set KEY=VALUE"),
        (["delete", "nope", "-y"], "There is no connection 'nope'"),
        (["create"], "See `batchflow connection create --help`"),
        (["make"], "See `batchflow connection --help`"),
    ],
)
def test_wrong_use_is_told(batchflow: Callable[..., Shown], file: Path, words: list[str], said: str) -> None:
    shown = batchflow("connection", *words)
    assert shown.status == 2
    assert said in " ".join(shown.err.split())


def test_a_name_that_two_blocks_have_is_told(batchflow: Callable[..., Shown], file: Path) -> None:
    batchflow("connection", "create", "-f", file, "--name", "twice")
    CustomConnectionBlock(configs={"a": "b"}).save("twice", overwrite=True)

    shown = batchflow("connection", "show", "twice")

    assert "'twice' is the name of 2 blocks: custom-connection/twice, openai-connection/twice" in shown.err
    assert batchflow("connection", "show", "custom-connection/twice", "--json").document["a"] == "b"


# --- connections of a run --------------------------------------------------------------------------------------------


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    folder = tmp_path / "flow"
    folder.mkdir()
    (folder / "flow.dag.yaml").write_text(
        "inputs: {q: {type: string}}\noutputs: {out: {type: string, reference: '${ask.output}'}}\n"
        "nodes: [{name: ask, type: llm, source: {type: code, path: ask.jinja2}, inputs: {model: m, q: '${inputs.q}'}, "
        "connection: run_ai, api: chat}]\n"
    )
    (folder / "ask.jinja2").write_text("# user:\n{{q}}\n")
    (tmp_path / "rows.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n')
    return folder


def keys_sent(server: ModelServer) -> set[str]:
    return {call.headers["authorization"].removeprefix("bearer ") for call in server.calls}


def kept_places(tmp_path: Path) -> list[Path]:
    """Everything that is kept of runs: the storage, and Prefect's database."""
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    return [file for folder in (tmp_path / "runs", database.parent) for file in folder.rglob("*") if file.is_file()]


def test_a_run_takes_a_connection_from_a_file_and_keeps_only_its_place(
    batchflow: Callable[..., Shown], flow: Path, tmp_path: Path, model_server: ModelServer, told: list[str]
) -> None:
    (tmp_path / "run.yml").write_text(f"type: open_ai\napi_key: {OTHER}\nbase_url: {model_server.base_url}\n")
    words = ["--data", "rows.jsonl", "--limit", "1", "--connection", "run_ai=run.yml", "--json"]

    shown = batchflow("run", flow, *words, "--run-id", "from-file")

    assert shown.status == 0
    assert keys_sent(model_server) == {OTHER}
    manifest = json.loads((tmp_path / "runs" / "from-file" / "manifest.json").read_text())
    assert manifest["connections"] == {"run_ai": str(tmp_path / "run.yml")}
    assert [file for file in kept_places(tmp_path) if OTHER.encode() in file.read_bytes()] == []
    assert OTHER not in str(told)

    # A resume reads the file again, from wherever it is typed.
    (tmp_path / "run.yml").write_text(f"type: open_ai\napi_key: {CANARY}\nbase_url: {model_server.base_url}\n")
    resumed = batchflow("resume", "from-file", "--limit", "2", "--on-change", "reuse", "--json")
    assert resumed.document["result"]["completed_lines"] == 2
    assert keys_sent(model_server) == {OTHER, CANARY}


def test_a_file_alone_gives_its_own_name(
    batchflow: Callable[..., Shown], flow: Path, tmp_path: Path, model_server: ModelServer
) -> None:
    (tmp_path / "c.yml").write_text(
        f"name: run_ai\ntype: open_ai\napi_key: {CANARY}\nbase_url: {model_server.base_url}\n"
    )
    assert batchflow("run", flow, "--data", "rows.jsonl", "--connection", "c.yml", "--json").status == 0
    assert keys_sent(model_server) == {CANARY}


def test_variables_alone_give_a_connection(
    batchflow: Callable[..., Shown],
    flow: Path,
    tmp_path: Path,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
) -> None:
    missing = batchflow("run", flow, "--data", "rows.jsonl")
    assert missing.status == 2
    assert "--connection run_ai=FILE.yml" in " ".join(missing.err.split())
    assert "set RUN_AI_API_KEY" in " ".join(missing.err.split())

    monkeypatch.setenv("RUN_AI_API_KEY", OTHER)
    monkeypatch.setenv("RUN_AI_BASE_URL", model_server.base_url)
    assert batchflow("run", flow, "--data", "rows.jsonl", "--json").status == 0
    assert keys_sent(model_server) == {OTHER}
    assert [file for file in kept_places(tmp_path) if OTHER.encode() in file.read_bytes()] == []
    assert OTHER not in str(told)


def test_a_block_of_the_name_comes_before_variables_which_then_replace_its_values(
    batchflow: Callable[..., Shown], flow: Path, file: Path, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f"type: open_ai\napi_key: {CANARY}\nbase_url: {model_server.base_url}\n")
    batchflow("connection", "create", "-f", file, "--name", "run_ai")
    try:
        monkeypatch.setenv("RUN_AI_API_KEY", OTHER)
        assert batchflow("run", flow, "--data", "rows.jsonl", "--json").status == 0
    finally:
        batchflow("connection", "delete", "run_ai", "--yes")
    assert keys_sent(model_server) == {OTHER}


@pytest.mark.parametrize("opened", ["<user-input>", ""])
def test_an_open_secret_of_a_run_comes_from_its_variable_or_the_terminal(
    batchflow: Callable[..., Shown],
    flow: Path,
    file: Path,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    opened: str,
) -> None:
    file.write_text(f"type: open_ai\napi_key: {opened}\nbase_url: {model_server.base_url}\n")
    words = ["run", flow, "--data", "rows.jsonl", "--connection", f"run_ai={file}", "--json"]
    refused = batchflow(*words)
    assert refused.status == 2
    assert "Set RUN_AI_API_KEY, or write ${env:NAME} into the file" in " ".join(refused.err.split())

    monkeypatch.setenv("RUN_AI_API_KEY", CANARY)
    assert batchflow(*words).status == 0
    monkeypatch.delenv("RUN_AI_API_KEY")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda _: OTHER)
    assert batchflow(*words).status == 0
    assert keys_sent(model_server) == {CANARY, OTHER}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run_ai=no.yml", "Expected the file of a connection"),
        ("run_ai=", "--connection takes NAME=FILE or NAME=BLOCK"),
        ("run_ai", "--connection takes NAME=FILE or NAME=BLOCK"),
        ("=open_ai.yml", "--connection takes NAME=FILE or NAME=BLOCK"),
        ("run_ai=no-block", "`batchflow connection list` shows the blocks"),
    ],
)
def test_a_wrong_connection_is_told_before_a_line_runs(
    batchflow: Callable[..., Shown], flow: Path, file: Path, text: str, said: str
) -> None:
    shown = batchflow("run", flow, "--data", "rows.jsonl", "--connection", text)
    assert shown.status == 2
    assert said in " ".join(shown.err.split())


def test_a_connection_twice_is_refused(batchflow: Callable[..., Shown], flow: Path, file: Path) -> None:
    shown = batchflow("run", flow, "--data", "rows.jsonl", "--connection", f"a={file}", "--connection", "a=b")
    assert "--connection gives 'a' twice" in shown.err
