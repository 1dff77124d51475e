"""promptflow's run files: what is taken over, what is refused, what is told to have no effect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.cli import run_file
from prefect_batchflow.cli.run_file import RunFile, read_run_file
from prefect_batchflow.exceptions import (
    BatchflowException,
    FlowDefinitionError,
    InvalidOptionError,
    UnsupportedFeatureError,
)
from prefect_batchflow.settings import RUN_FILE_KEYS

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, text: str) -> str:
    file = folder / "run.yaml"
    file.write_text(text)
    return str(file)


def test_a_declared_key_is_never_skipped_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "RUN_FILE_KEYS", {**RUN_FILE_KEYS, "attempts": "retries"})
    monkeypatch.setattr(run_file, "_READERS", {**run_file._READERS, "attempts": run_file._text})

    with pytest.raises(TypeError, match="retries"):
        read_run_file(write(tmp_path, "attempts: '2'"))


def test_everything_with_a_meaning_is_taken_over(tmp_path: Path) -> None:
    text = """
$schema: https://azuremlschemas.azureedge.net/promptflow/latest/Run.schema.json
name: nightly
run: base
flow: .
data: rows/data.jsonl
column_mapping:
  text: ${data.text}
  times: 2
init:
  model: small
connections:
  answer: {connection: other_ai, deployment_name: big}
"""

    assert read_run_file(write(tmp_path, text)) == RunFile(
        flow=str(tmp_path),
        data={"data": str(tmp_path / "rows" / "data.jsonl")},
        inputs_mapping={"text": "${data.text}", "times": 2},
        run_id="nightly",
        run="base",
        init_kwargs={"model": "small"},
        node_connections={"answer": {"connection": "other_ai", "deployment_name": "big"}},
    )


@pytest.mark.parametrize(
    ("flow", "expected", "in_folder"),
    [
        ("../flow", "{folder}/../flow", False),
        ("loud.py:shout", "{folder}/loud.py:shout", False),
        ("pkg.loud:shout", "pkg.loud:shout", True),
        ("/flows/one", "/flows/one", False),
    ],
    ids=["folder", "file", "module", "absolute"],
)
def test_the_flow_is_looked_for_in_the_files_folder(tmp_path: Path, flow: str, expected: str, in_folder: bool) -> None:
    written = read_run_file(write(tmp_path, f"flow: {flow}\n"))

    assert written.flow == expected.format(folder=tmp_path)
    assert written.working_dir == (str(tmp_path) if in_folder else "")


def test_data_may_be_a_url(tmp_path: Path) -> None:
    assert read_run_file(write(tmp_path, "data: s3://bucket/rows.jsonl\n")).data == {"data": "s3://bucket/rows.jsonl"}


@pytest.mark.parametrize(
    ("name", "text"), [("init.json", '{"model": "small"}'), ("init.jsonl", '{"model": "small"}\n{"model": "big"}\n')]
)
def test_init_may_be_a_file_beside_the_run_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    assert read_run_file(write(tmp_path, f"init: {name}\n")).init_kwargs == {"model": "small"}


def test_keys_that_are_empty_ask_for_nothing(tmp_path: Path) -> None:
    text = "flow: .\nenvironment_variables: {}\nvariant:\nconnections:\n"

    assert read_run_file(write(tmp_path, text)) == RunFile(flow=str(tmp_path))


def test_keys_without_a_meaning_and_unknown_ones_are_notes(tmp_path: Path) -> None:
    text = "display_name: Night\ntags: {a: b}\nruntime: auto\ncolumn_maping: {}\nfoo: 1\nflow: .\n"

    notes = read_run_file(write(tmp_path, text)).notes

    assert notes == (
        "run.yaml: these keys have no effect here: display_name, tags, runtime.",
        "run.yaml: 'column_maping' is not a key of a run file and has no effect. Did you mean 'column_mapping'?",
        "run.yaml: 'foo' is not a key of a run file and has no effect.",
    )


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("retries: 3", "--retries"),
        ("max_failures: 5%", "--max-failures"),
        ("line_timeout_sec: 5", "--line-timeout"),
        ("inputs_mapping: {}", "--map"),
        ("more_data: {}", "--data"),
    ],
)
def test_an_option_in_a_run_file_points_to_its_flag(tmp_path: Path, text: str, flag: str) -> None:
    name = text.partition(":")[0]

    assert read_run_file(write(tmp_path, f"{text}\n")).notes == (
        f"run.yaml: '{name}' is not a key of a run file and has no effect. Use {flag}.",
    )


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("- flow\n", FlowDefinitionError, "expected a mapping with the keys of a run"),
        ("flow: [a\n", FlowDefinitionError, "not valid YAML"),
        ("flow: [a]\n", InvalidOptionError, "'flow' is ['a'], expected a text"),
        ("data: {a: b}\n", InvalidOptionError, "'data' is {'a': 'b'}, expected a text"),
        (
            "column_mapping: text\n",
            InvalidOptionError,
            "'column_mapping' is 'text', expected a yaml mapping of names to values",
        ),
        ("init: 3\n", InvalidOptionError, "'init' is 3, expected a yaml mapping of names to values"),
        ("init: nowhere.json\n", InvalidOptionError, "nowhere.json, expected a json file"),
        ("init: run.yaml\n", InvalidOptionError, "run.yaml, expected a json file"),
        (
            "connections: answer.connection=c\n",
            InvalidOptionError,
            "run.yaml: 'connections': expected {node: {connection",
        ),
        ("connections: {answer: c}\n", InvalidOptionError, "'connections', node 'answer': expected {node: {connection"),
        ("connections: {a: {model: 4}}\n", InvalidOptionError, "node 'a', 'model': expected a name as text, found 4"),
        (
            "connections: {a: {connection: }}\n",
            InvalidOptionError,
            "'connection': expected a name as text, found None",
        ),
        ("name: true\n", InvalidOptionError, "'name' is True, expected a text"),
        ("environment_variables: {A: [1], B: b}\n", InvalidOptionError, "expected a text or number for A."),
        ("environment_variables: {A: {b: 1}}\n", InvalidOptionError, "expected a text or number for A."),
        ("data: azureml:rows:1\n", UnsupportedFeatureError, "Download it"),
    ],
    ids=lambda value: value.strip() if isinstance(value, str) else "",
)
def test_a_wrong_value_is_told_with_its_place(
    tmp_path: Path, text: str, kind: type[BatchflowException], part: str
) -> None:
    with pytest.raises(kind) as caught:
        read_run_file(write(tmp_path, text))

    assert part in caught.value.message
    assert str(tmp_path) in caught.value.message


def test_a_number_as_name_is_its_text(tmp_path: Path) -> None:
    assert read_run_file(write(tmp_path, "name: 20260101\n")).run_id == "20260101"


@pytest.mark.parametrize("path", ["nothing.yaml", "."])
def test_a_file_that_is_none_is_told(path: str) -> None:
    with pytest.raises(InvalidOptionError, match="expected a run file of promptflow"):
        read_run_file(path)


def test_values_are_json_as_the_command_line_has_them(tmp_path: Path) -> None:
    written = read_run_file(
        write(tmp_path, "column_mapping: {n: 1, on: yes, when: 2026-01-01, l: [1, 2.5], z: null}\n")
    )

    assert json.loads(json.dumps(written.inputs_mapping)) == {
        "n": 1, "on": "yes", "when": "2026-01-01", "l": [1, 2.5], "z": None,
    }  # fmt: skip


def test_a_variant_is_taken(tmp_path: Path) -> None:
    assert read_run_file(write(tmp_path, "flow: .\nvariant: ${a.b}\n")).variant == "${a.b}"


def test_environment_variables_become_texts(tmp_path: Path) -> None:
    written = read_run_file(write(tmp_path, "environment_variables: {A: 1, B: 2.5, C: '${conn.key}', D: yes}\n"))

    assert written.environment_variables == {"A": "1", "B": "2.5", "C": "${conn.key}", "D": "yes"}


def test_environment_variables_may_be_a_file_beside_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "keys.env").write_text("# keys\nexport A='a b'\nB=${conn.key}\nC=\nALONE\n")

    written = read_run_file(write(tmp_path, "environment_variables: keys.env\n"))

    assert written.environment_variables == {"A": "a b", "B": "${conn.key}", "C": ""}


def test_an_environment_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"'environment_variables' names .*keys\.env, which is not a file"):
        read_run_file(write(tmp_path, "environment_variables: keys.env\n"))
