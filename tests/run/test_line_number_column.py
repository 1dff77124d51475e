"""The column that numbers the lines: `line_number`, another one, or none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import BatchEngine
from prefect_batchflow.cli.commands import main
from prefect_batchflow.exceptions import InputMappingError, InvalidUserData
from prefect_batchflow.inputs.check import Checker, Inventory
from prefect_batchflow.inputs.readers import open_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

REPEATED = "line_number,q\n1,a\n1,b\n2,c\n"
"""An evaluation's classic csv: where each case stands in some other file."""


def same(q: str) -> str:
    if q == "bad":
        raise ValueError(q)
    return q


def both(q: str, answer: str) -> str:
    return f"{q} {answer}"


def outputs(folder: Path, name: str = "output.jsonl") -> list[Any]:
    return [json.loads(row) for row in (folder / name).read_text().splitlines()]


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., Inventory]:
    """The lines of sources, each a csv text, as `check` counts them."""

    def check(column: str, **texts: str) -> Inventory:
        for name, text in texts.items():
            (tmp_path / f"{name}.csv").write_text(text)
        sources = [open_source(tmp_path / f"{name}.csv", name=name, line_number_column=column) for name in texts]
        return Checker(sources, ["q"], [], {}).run(None)

    return check


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (REPEATED, "line_number 1 is not unique: "),
        ("line_number,q\n1,a\n1,b\n2,c\n2,d\n", " 2 numbers are repeated."),
        ("line_number,q\nx,a\n", "line_number is 'x', expected a whole number"),
        ("line_number,q\nx,a\ny,b\n", " 2 rows are like this."),
        ("line_number,q\n1.5,a\n", "expected a whole number"),
    ],
    ids=["repeated", "several repeated", "a text", "several texts", "a fraction"],
)
def test_a_column_that_numbers_no_lines_is_refused_once_with_the_way_out(
    text: str, said: str, checked: Callable[..., Inventory]
) -> None:
    with pytest.raises(InvalidUserData) as caught:
        checked("line_number", data=text)

    assert said in str(caught.value)
    assert (
        str(caught.value).count(
            "set line_number_column='none' (--line-number-column none), or name the column that does"
        )
        == 1
    )


def test_without_a_column_rows_are_numbered_by_their_place(checked: Callable[..., Inventory]) -> None:
    inventory = checked("none", data=REPEATED)

    assert (inventory.total_lines, inventory.sources[0].own_numbers) == (3, False)


def test_another_column_numbers_and_joins(checked: Callable[..., Inventory]) -> None:
    inventory = checked(
        "id", data="line_number,id,q\n1,7,a\n1,5,b\n", more="id,x\n5,x\n9,y\n", old="line_number,y\n5,y\n7,z\n"
    )

    assert inventory.total_lines == 1
    assert [source.number_column for source in inventory.sources] == ["id", "id", "line_number"]


def test_a_column_that_is_in_no_source_is_refused(checked: Callable[..., Inventory]) -> None:
    with pytest.raises(
        InputMappingError, match=r"line_number_column='idd': no source has .*'id', 'q'\. Did you mean 'id'\?"
    ):
        checked("idd", data="id,q\n1,a\n")


@pytest.mark.parametrize("door", ["engine", "command line"])
@pytest.mark.parametrize(
    ("column", "expected"),
    [("none", [(0, "a"), (1, "b"), (2, "c")]), ("id", [(5, "b"), (6, "c"), (7, "a")])],
)
def test_the_lines_have_the_numbers_of_the_column(
    door: str, column: str, expected: list[tuple[int, str]], storage: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("line_number,id,q\n1,7,a\n1,5,b\n2,6,c\n")
    out = tmp_path / "out"

    if door == "engine":
        BatchEngine(same, line_number_column=column, run_storage_url=str(storage)).run({"data": data}, output_dir=out)
    else:
        (tmp_path / "code.py").write_text("def same(q: str) -> str:\n    return q\n")
        words = [
            "--data",
            str(data),
            "--line-number-column",
            column,
            "--storage",
            str(storage),
            "--output-dir",
            str(out),
        ]
        assert main(["run", f"{tmp_path / 'code.py'}:same", *words]) == 0

    assert [(row["line_number"], row["output"]) for row in outputs(out)] == expected


def test_a_run_on_a_run_numbers_its_inputs_as_that_run_did(storage: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text(REPEATED)
    options: dict[str, Any] = {"run_storage_url": str(storage)}
    BatchEngine(same, line_number_column="none", **options).run({"data": data}, run_id="first")
    (tmp_path / "code.py").write_text("def both(q: str, answer: str) -> str:\n    return f'{q} {answer}'\n")

    words = ["--run", "first", "--map", "q=${run.inputs.q}", "--map", "answer=${run.outputs.output}"]
    status = main(
        [
            "run",
            f"{tmp_path / 'code.py'}:both",
            *words,
            "--storage",
            str(storage),
            "--output-dir",
            str(tmp_path / "out"),
        ]
    )

    assert status == 0
    assert [row["output"] for row in outputs(tmp_path / "out")] == ["a a", "b b", "c c"]


def test_failed_lines_run_again_under_their_numbers(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("line_number,q\n1,a\n1,b\n2,bad\n")
    (tmp_path / "code.py").write_text("def same(q: str) -> str:\n    assert q != 'bad'\n    return q\n")
    words = ["--data", str(tmp_path / "rows.csv"), "--line-number-column", "none", "--storage", str(storage), "--json"]
    assert main(["run", f"{tmp_path / 'code.py'}:same", *words]) == 3
    document = json.loads(capsys.readouterr().out)

    again = next(command for command in document["next_commands"] if "--data" in command)

    assert "--line-number-column" not in again
    assert [row["line_number"] for row in outputs(storage / document["run_id"], "failed.jsonl")] == [2]
