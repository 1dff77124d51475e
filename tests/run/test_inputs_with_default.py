"""Which value an input with a default gets: the data's column of its name, for every kind of flow and behind every door."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import BatchEngine, batch_run
from prefect_batchflow.cli.commands import main
from prefect_batchflow.cli.progress import Progress
from prefect_batchflow.exceptions import InputMappingError, RunChangedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

ROWS: list[dict[str, object]] = [{"q": "a", "text": "column"}, {"q": "b"}]
FROM_COLUMN = ["a column", "b default"]
FROM_DEFAULT = ["a default", "b default"]
DAG = """
inputs:
  q: {type: string}
  text: {type: string, default: default}
outputs:
  output: {type: string, reference: '${join.output}'}
nodes:
- {name: join, type: python, source: {type: code, path: join.py}, inputs: {q: '${inputs.q}', text: '${inputs.text}'}}
"""
KINDS: dict[str, dict[str, str]] = {
    "dag": {
        "flow.dag.yaml": DAG,
        "join.py": "from promptflow.core import tool\n@tool\ndef join(q: str, text: str) -> str:\n    return f'{q} {text}'\n",
    },
    "flex-function": {
        "flow.flex.yaml": "entry: code:join\n",
        "code.py": "def join(q: str, text: str = 'default') -> str:\n    return f'{q} {text}'\n",
    },
    "flex-yaml-default": {
        "flow.flex.yaml": "entry: code:join\ninputs:\n  q: {type: string}\n  text: {type: string, default: default}\n",
        "code.py": "def join(q, text) -> str:\n    return f'{q} {text}'\n",
    },
    "flex-class": {
        "flow.flex.yaml": "entry: code:Join\n",
        "code.py": "class Join:\n    def __call__(self, q: str, text: str = 'default') -> str:\n        return f'{q} {text}'\n",
    },
    "async-function": {
        "flow.flex.yaml": "entry: code:join\n",
        "code.py": "async def join(q: str, text: str = 'default') -> str:\n    return f'{q} {text}'\n",
    },
}


def joined(q: str, text: str = "default") -> str:
    return f"{q} {text}"


@pytest.fixture
def flow_folder(tmp_path: Path) -> Callable[[str], Path]:
    def write(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        for name, text in KINDS[kind].items():
            (folder / name).write_text(text)
        return folder

    return write


def outputs(folder: Path) -> list[Any]:
    rows = map(json.loads, (folder / "output.jsonl").read_text().splitlines())
    return [row["output"] for row in rows]


@pytest.mark.parametrize("kind", [*KINDS, "callable"])
def test_the_column_wins_over_the_default(
    kind: str, flow_folder: Callable[[str], Path], storage: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    flow = joined if kind == "callable" else flow_folder(kind)

    BatchEngine(flow, run_storage_url=str(storage)).run({"data": write_rows(ROWS)}, output_dir=tmp_path / "out")

    assert outputs(tmp_path / "out") == FROM_COLUMN


def test_the_column_wins_in_a_prompty(
    storage: Path, tmp_path: Path, write_rows: Callable[..., Path], model_server: Any
) -> None:
    (tmp_path / "ask.prompty").write_text(
        "---\nmodel:\n  api: chat\n  configuration: {type: openai, model: gpt-4o, api_key: k, base_url: "
        f"'{model_server.base_url}'"
        "}\ninputs:\n  q: {type: string}\n  text: {type: string, default: default}\n---\nuser:\n{{q}} {{text}}\n"
    )

    BatchEngine(tmp_path / "ask.prompty", run_storage_url=str(storage)).run(
        {"data": write_rows(ROWS)}, output_dir=tmp_path / "out"
    )

    assert [expected in said for expected, said in zip(FROM_COLUMN, outputs(tmp_path / "out"), strict=True)] == [
        True,
        True,
    ]


def test_the_column_wins_in_batch_run_unless_the_default_is_chosen(
    storage: Path, tmp_path: Path, write_rows: Callable[..., Path], flow_folder: Callable[[str], Path]
) -> None:
    common = {"flow": str(flow_folder("flex-function")), "data": str(write_rows(ROWS)), "storage": str(storage)}

    for choice, expected in ({}, FROM_COLUMN), ({"inputs_with_default": "default"}, FROM_DEFAULT):
        asyncio.run(batch_run(**common, **choice, output_dir=str(tmp_path / "out")))
        assert outputs(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], FROM_DEFAULT),
        (["--inputs-with-default", "column"], FROM_COLUMN),
        (["--map", "text=${data.q}"], ["a a", "b b"]),
    ],
    ids=["its rule", "the column", "a mapping"],
)
def test_a_run_file_keeps_promptflows_rule_and_says_so_before_the_first_line(
    words: list[str],
    expected: list[str],
    storage: Path,
    tmp_path: Path,
    write_rows: Callable[..., Path],
    flow_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    witness = tmp_path / "witness"
    folder = flow_folder("flex-function")
    code = KINDS["flex-function"]["code.py"].replace(
        "    return", f"    open({str(witness)!r}, 'a').close()\n    return"
    )
    (folder / "code.py").write_text(code)
    (tmp_path / "run.yaml").write_text(f"flow: {folder}\ndata: {write_rows(ROWS)}\n")
    said: list[tuple[str, bool]] = []
    monkeypatch.setattr(Progress, "note", lambda _, text: said.append((text, witness.exists())))

    status = main(
        [
            "run",
            "--file",
            str(tmp_path / "run.yaml"),
            "--storage",
            str(storage),
            "--output-dir",
            str(tmp_path / "out"),
            *words,
        ]
    )

    assert status == 0
    assert outputs(tmp_path / "out") == expected
    assert witness.exists()
    if words:
        assert said == []
    else:
        [(text, has_run)] = said
        assert text.startswith("source 'data': column 'text' is not read, because input 'text' has a default")
        assert not has_run


def test_a_resume_keeps_the_choice_and_refuses_another(
    storage: Path, write_rows: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(ROWS)
    BatchEngine(joined, run_storage_url=str(storage), inputs_with_default="default").run({"data": rows}, run_id="one")

    with pytest.raises(RunChangedError, match="the choice of inputs_with_default is gone"):
        BatchEngine(joined, run_storage_url=str(storage)).run({"data": rows}, run_id="one")


@pytest.mark.parametrize("value", ["{data.q}", "$data.q", "${data.q", "text ${data.q}"])
def test_no_line_runs_on_a_text_that_was_meant_as_a_reference(
    value: str, storage: Path, write_rows: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(ROWS)
    (tmp_path / "code.py").write_text(KINDS["flex-function"]["code.py"])

    with pytest.raises(InputMappingError, match="looks like a reference"):
        BatchEngine(joined, run_storage_url=str(storage)).run({"data": rows}, {"q": value})
    words = [
        "run",
        f"{tmp_path / 'code.py'}:join",
        "--data",
        str(rows),
        "--map",
        f"q={value}",
        "--storage",
        str(storage),
    ]
    assert main(words) == 2
    assert "--map 'q=${data.q}'" in " ".join(capsys.readouterr().err.split())
    assert not list(storage.glob("*")) if storage.exists() else True


def test_a_text_that_every_line_gets_is_noted_before_the_first_line(
    storage: Path, write_rows: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code.py").write_text(KINDS["flex-function"]["code.py"])
    words = [
        "run",
        f"{tmp_path / 'code.py'}:join",
        "--data",
        str(write_rows(ROWS)),
        "--map",
        "q=",
        "--storage",
        str(storage),
    ]

    assert main(words) == 0

    said = " ".join(capsys.readouterr().err.split())
    assert "Note: inputs_mapping: every line gets the same value: q = ''. To read a column, write a reference" in said
