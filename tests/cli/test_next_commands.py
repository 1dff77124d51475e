"""The commands that are printed at the end of a run: complete, and typed as they stand they do what they say."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_URL

from prefect_batchflow import BatchEngine
from prefect_batchflow.cli.arguments import assignments, node_connections_of
from prefect_batchflow.cli.commands import app, main
from prefect_batchflow.cli.view_run import failed_lines_words
from prefect_batchflow.settings import OPTION_NAMES, PARAMETERS, RunOptions
from prefect_batchflow.storage.manifest import Manifest, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_batchflow.settings import Option

LEFT_OUT = {
    "max_lines_count": "the data is the failed lines",
    "line_number_column": "the file of failed lines has line_number",
    "on_change": "says nothing about another run",
    "rerun": "says nothing about another run",
    "rerun_lines": "says nothing about another run",
}
"""Options that the command for failed lines does not repeat, and why."""

NAME = st.text(st.characters(codec="utf-8", categories=["L", "N"], include_characters="_ '\"$-;&|"), min_size=1).filter(
    lambda name: name == name.strip() and "." not in name
)
WORD = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).filter(lambda word: word.strip())


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Values that an option allows."""
    if get_origin(option.kind) is Literal:
        return st.sampled_from(get_args(option.kind))
    if option.kind in (int, float):
        low = option.at_least if option.at_least is not None else option.above or 0
        high = option.at_most if option.at_most is not None else 10**12
        numbers: st.SearchStrategy[Any] = (
            st.integers(int(low), int(high))
            if option.kind is int
            else st.floats(low, high, exclude_min=option.above is not None)
        )
        return numbers
    if option.name == "rerun_lines":
        return st.sampled_from(["", "3", "3,7,20-30"])
    if option.errors is not None:
        return st.sampled_from(["", "timeout", "crash,rate_limit", "ValueError"])
    texts = {"max_failures": ["", "1", "5%", "0.5%"], "task_runner_address": ["", "tcp://10.0.0.0", "-x", "a b'c$d"]}
    return st.sampled_from(texts[option.name]) if option.name in texts else WORD


OPTIONS = st.builds(RunOptions, **{name: values_of(PARAMETERS[name]) for name in OPTION_NAMES})
MANIFESTS = st.builds(
    Manifest,
    run_id=st.just("r1"),
    flow_name=st.just("f"),
    flow=st.sampled_from(["/flows/my flow's.dag.yaml", "/flows/$x.py:main", "package.module:attr"]),
    working_dir=st.sampled_from(["/flows", "/else where"]),
    variant=st.sampled_from(["", "${node.variant_1}"]),
    node_connections=st.dictionaries(NAME, st.dictionaries(NAME, WORD, min_size=1, max_size=2), max_size=2),
    data=st.just({"data": "/rows.jsonl"}),
    run=st.sampled_from([None, "other"]),
    image_roots=st.lists(st.sampled_from(["/shared images", "s3://bucket/a"]), unique=True),
    inputs_mapping=st.dictionaries(NAME.filter(lambda name: "=" not in name), st.just("${data.x}"), max_size=3),
    init_names=st.just([]),
    init_kwargs=st.just({}),
    connections=st.dictionaries(NAME, st.sampled_from(["/a b/azure.yml", "openai-connection/my", "my"]), max_size=2),
    options=OPTIONS,
    output_dir=st.none(),
    total_lines=st.just(3),
    fingerprints=st.just({}),
    sessions=st.just([Session(started_at="2026-01-01T00:00:00+00:00", prefect_flow_run_id=None, versions={})]),
)


@settings(max_examples=200)
@given(MANIFESTS)
def test_the_command_for_failed_lines_gives_all_that_the_run_was_given(manifest: Manifest) -> None:
    typed = shlex.split(shlex.join(failed_lines_words(manifest, "/runs/r1/failed lines.jsonl")))

    _, bound, _ = app.parse_args(typed[1:], print_error=False, exit_on_error=False)

    said = bound.arguments
    assert (said["flow"], said["data"]) == (manifest.flow, ["/runs/r1/failed lines.jsonl"])
    expected = {name: f"${{data.{name}}}" for name in manifest.inputs_mapping if name != "line_number"}
    assert assignments("--map", said.get("map") or []) == expected
    assert (said.get("image_root") or []) == manifest.image_roots
    assert said.get("variant", "") == manifest.variant
    assert node_connections_of(said.get("node_connections") or []) == manifest.node_connections
    assert dict(text.split("=", 1) for text in said.get("connection") or []) == manifest.connections
    is_default = manifest.working_dir == "/flows" and str(manifest.flow).startswith("/flows/")
    assert said.get("working_dir", "") == ("" if is_default else manifest.working_dir)
    options = said["flags"].given() if "flags" in said else {}
    kept = replace(manifest.options, **{name: PARAMETERS[name].default for name in LEFT_OUT})
    assert RunOptions(**options) == kept


def test_every_parameter_of_a_run_is_in_the_command_or_left_out_for_a_reason() -> None:
    words = {
        *("flow", "data", "inputs_mapping", "working_dir", "variant", "node_connections", "connections", "storage"),
        "image_roots",
        *(set(OPTION_NAMES) - LEFT_OUT.keys()),
    }
    reasons = {
        **LEFT_OUT,
        "more_data": "the file of failed lines has the joined inputs",
        "run": "the file of failed lines has the joined inputs",
        "run_id": "it is a new run",
        "resume_from": "it is a new run",
        "output_dir": "it would replace the outputs of the first run",
        "init_kwargs": "may be secret: there is no such command then",
        "environment_variables": "may be secret: there is no such command then",
    }
    assert words | reasons.keys() == set(PARAMETERS)
    assert words & reasons.keys() == set()
    assert {name for name in OPTION_NAMES if not PARAMETERS[name].is_kept} <= LEFT_OUT.keys()
    assert asdict(RunOptions()).keys() == set(OPTION_NAMES)


# --- as typed --------------------------------------------------------------------------------------------------------

FLOW = """
    from promptflow.core import tool
    from promptflow.connections import CustomConnection

    @tool
    def ask(q: str, key: CustomConnection, other: CustomConnection) -> str:
        import where
        if q == "bad" and not where.MENDED:
            raise ValueError(q)
        return f"{q} {key.url} {other.url}"
"""


@pytest.fixture
def given_much(tmp_path: Path, storage: Path) -> list[str]:
    """A run with a bit of everything, in folders with odd names, of which a line fails."""
    folder = tmp_path / "it's a $flow"
    folder.mkdir()
    (folder / "ask.py").write_text(dedent(FLOW))
    (folder / "flow.dag.yaml").write_text(
        "inputs: {q: {type: string}}\noutputs: {out: {type: string, reference: '${ask.output}'}}\n"
        "nodes: [{name: ask, use_variants: true}]\nnode_variants:\n  ask:\n    default_variant_id: none\n    variants:\n"
        "      none: {node: {type: python, source: {type: code, path: none.py}, inputs: {}}}\n"
        "      one: {node: {type: python, source: {type: code, path: ask.py}, inputs: {q: '${inputs.q}', key: a, other: b}}}\n"
    )
    (folder / "none.py").write_text("from promptflow.core import tool\n\n@tool\ndef none() -> str:\n    return ''\n")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "where.py").write_text("MENDED = False\n")
    (tmp_path / "the file.yml").write_text("type: custom\nconfigs: {url: by file}\nsecrets: {k: s3cr3t-canary}\n")
    (tmp_path / "rows.jsonl").write_text('{"question": "good"}\n{"question": "bad"}\n')
    words = ["run", str(folder), "--data", str(tmp_path / "rows.jsonl"), "--map", "q=${data.question}"]
    words += ["--variant", "${ask.one}", "--node-connections", "ask.other=chosen", "--run-id", "r1"]
    words += ["--connection", f"a={tmp_path / 'the file.yml'}", "--connection", f"chosen={tmp_path / 'the file.yml'}"]
    words += ["--working-dir", str(tmp_path / "here"), "--retries", "1", "--line-timeout", "30.5", "--workers", "1"]
    return [*words, "--storage", str(storage), "--json"]


@pytest.mark.programs
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("number", [0, 1], ids=["resume", "failed lines"])
def test_the_printed_commands_run_in_a_shell(
    given_much: list[str],
    number: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The node's file is found in the flow's folder; only `where` is in the working directory.
    flow = Path(given_much[1])
    for file in flow.iterdir():
        (tmp_path / "here" / file.name).write_text(file.read_text())
    assert main(given_much) == 3
    command = json.loads(capsys.readouterr().out)["next_commands"][number]
    (tmp_path / "here" / "where.py").write_text("MENDED = True\n")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    script = bin_folder / "batchflow"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m prefect_batchflow.cli "$@"\n')
    script.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
    }
    (tmp_path / "elsewhere").mkdir()

    changed = " --on-change reuse" if number == 0 else ""  # the mended file is one of the flow's
    done = subprocess.run(  # noqa: S602 - as a user does
        f"{command}{changed} --json",
        shell=True,
        cwd=tmp_path / "elsewhere",
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
    )

    document = json.loads(done.stdout)
    assert (done.returncode, document["status"]) == (0, "Completed"), done.stderr
    outputs = [json.loads(line) for line in Path(document["outputs"]).read_text().splitlines()]
    assert outputs[-1] == {"line_number": 1, "out": "bad by file by file"}
    options = json.loads(Path(document["folder"], "manifest.json").read_text())["options"]
    assert (options["retries"], options["line_timeout_sec"], options["worker_count"]) == (1, 30.5, 1)
    assert "s3cr3t-canary" not in done.stdout + done.stderr + command


@pytest.mark.programs
@pytest.mark.usefixtures("prefect_server")
def test_what_a_run_does_not_keep_has_a_place_in_the_command(
    tmp_path: Path, storage: Path, capsys: pytest.CaptureFixture[str], write_rows: Callable[..., Path]
) -> None:
    (tmp_path / "a.py").write_text(
        "import os\nfrom prefect_batchflow.connections.kinds import CustomConnection\n\nclass A:\n"
        "    def __init__(self, level: int, c: CustomConnection):\n        self.level = level\n"
        "    def __call__(self, q: str) -> str:\n        raise ValueError(len(os.environ['MORE']))\n"
    )
    custom = {"type": "CustomConnection", "value": {"k": "s3cr3t-canary"}, "secret_keys": ["k"]}
    engine = BatchEngine(
        f"{tmp_path / 'a.py'}:A",
        init_kwargs={"level": 3, "c": "my_c"},
        environment_variables={"MORE": "s3cr3t-value"},
        connections={"my_c": custom},
        run_storage_url=str(storage),
    )
    engine.run({"data": write_rows([{"q": "x"}])}, run_id="r1")

    assert main(["show", "r1", "--storage", str(storage)]) == 0
    shown = " ".join(capsys.readouterr().out.split())

    assert "with 'c', 'level', 'MORE', 'my_c' given again" in shown
    assert "--init 'c=…' --init 'level=…' --environment-variables 'MORE=…' --connection 'my_c=…'" in shown
    assert "s3cr3t" not in shown
    words = ["resume", "r1", "--storage", str(storage), "--init", "c=…", "--init", "level=…"]
    status = main([*words, "--environment-variables", "MORE=…", "--connection", "my_c=…"])
    assert (status, "Expected the file of a connection" in capsys.readouterr().err) == (2, True)
