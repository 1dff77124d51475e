"""Hidden files are no data: what notebooks, archivers and editors leave in a folder, on disks and in object stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fsspec
import pytest

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.check import Checker
from prefect_batchflow.inputs.hidden import is_named_by
from prefect_batchflow.inputs.readers import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEFT_OUT = [
    ".x.jsonl",
    "._rows.jsonl",
    "_rows.jsonl",
    ".ipynb_checkpoints/rows-checkpoint.jsonl",
    "__MACOSX/rows.jsonl",
    "__MACOSX/._rows.jsonl",
    "sub/.ipynb_checkpoints/deep/rows.csv",
    "sub/.hidden.parquet",
    ".git/objects/a.json",
    "_temporary/0/part.jsonl",
    "__pycache__/rows.json",
]
READ = ["a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl", "d_.jsonl", "e.f.jsonl", "_day=1/g.jsonl"]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, or its address, with files of both kinds; each has one row with its own name."""
    place = str(tmp_path / "rows") if request.param == "local" else "memory://hidden-test"
    file_system, root = fsspec.url_to_fs(place)
    for name in [*LEFT_OUT, *READ]:
        path = f"{root}/{name}"
        file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
        file_system.pipe_file(path, f'{{"name": "{name}"}}\n'.encode())
    yield place
    file_system.rm(root, recursive=True)


def names(place: str) -> list[str]:
    return [row.values["name"] for row in open_source(place, name="data").rows()]


def test_a_folder_gives_its_visible_files_and_counts_the_others(folder: str) -> None:
    source = open_source(folder, name="data")

    assert {row.values["name"] for row in source.rows()} == set(READ)
    assert list(source.notes) == [
        f"{len(LEFT_OUT)} hidden files are left out, such as {folder}/._rows.jsonl: a name begins with . or _. "
        "To read such a file, name it."
    ]


@pytest.mark.parametrize(
    ("pattern", "read", "left_out"),
    [
        ("*.jsonl", {"a.jsonl", "d_.jsonl", "e.f.jsonl"}, 3),
        ("**/*.jsonl", set(READ), 7),
        ("*", set(READ), len(LEFT_OUT)),
        ("*/*.jsonl", {"sub/b.jsonl", "_day=1/g.jsonl"}, 3),
        ("sub/**", {"sub/b.jsonl", "sub/deep/c.jsonl"}, 2),
        (".*.jsonl", {".x.jsonl", "._rows.jsonl"}, 0),
        ("_*.jsonl", {"_rows.jsonl"}, 0),
        ("[._]*.jsonl", {".x.jsonl", "._rows.jsonl", "_rows.jsonl"}, 0),
        (".ipynb*/*.jsonl", {".ipynb_checkpoints/rows-checkpoint.jsonl"}, 0),
        ("__MACOSX/*.jsonl", {"__MACOSX/rows.jsonl"}, 1),
        ("__MACOSX/.*", {"__MACOSX/._rows.jsonl"}, 0),
        ("__MAC*", {"__MACOSX/rows.jsonl"}, 1),
    ],
)
def test_a_pattern_reads_hidden_files_only_where_it_names_them(
    folder: str, pattern: str, read: set[str], left_out: int
) -> None:
    source = open_source(f"{folder}/{pattern}", name="data")

    assert {row.values["name"] for row in source.rows()} == read
    assert [note.split()[0] for note in source.notes] == ([str(left_out)] if left_out else [])


@pytest.mark.parametrize("name", [name for name in LEFT_OUT if name.endswith(".jsonl")])
def test_a_path_that_names_a_hidden_file_reads_it(folder: str, name: str) -> None:
    assert names(f"{folder}/{name}") == [name]


@pytest.mark.parametrize(
    ("name", "rows"), [(".ipynb_checkpoints", 1), ("_temporary", 1), ("sub/.ipynb_checkpoints", 0)]
)
def test_a_path_that_names_a_hidden_folder_reads_what_is_in_it(folder: str, name: str, rows: int) -> None:
    source = open_source(f"{folder}/{name}", name="data")

    assert len(list(source.rows())) == rows
    assert list(source.notes) == []


@pytest.mark.parametrize("pattern", ["", "*.jsonl"])
def test_only_hidden_files_are_no_data_and_are_named(tmp_path: Path, pattern: str) -> None:
    (tmp_path / ".x.jsonl").write_text('{"a": 1}\n')

    with pytest.raises(InvalidUserData, match=rf"1 hidden file is left out, such as {tmp_path}/\.x\.jsonl"):
        list(open_source(tmp_path / pattern, name="data").rows())


def test_a_hidden_file_of_no_data_format_is_not_mentioned(tmp_path: Path) -> None:
    for name in (".DS_Store", "_SUCCESS", ".gitignore", "a.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n')

    for place in (tmp_path, tmp_path / "*"):
        source = open_source(place, name="data")
        assert len(list(source.rows())) == 1
        assert list(source.notes) == []


def test_the_note_is_one_of_the_run(tmp_path: Path) -> None:
    for name in ("._a.jsonl", "a.jsonl"):
        (tmp_path / name).write_text('{"q": 1}\n')

    inventory = Checker([open_source(tmp_path, name="data")], ["q"], [], {}).run(None)

    assert inventory.total_lines == 1
    assert inventory.notes == (
        f"source 'data': 1 hidden file is left out, such as {tmp_path}/._a.jsonl: a name begins with . or _. "
        "To read such a file, name it.",
    )


@pytest.mark.parametrize(
    ("pattern", "path", "is_named"),
    [
        ("**/.x", "a/b/.x", True),
        ("**/.x", ".a/.x", False),
        ("**", ".x", False),
        ("**/**/.x*", "a/.xy", True),
        ("?x", "_x", False),
        ("[!a]x", "_x", False),
        ("[_]x", "_x", True),
        ("a/*", "a/.x", False),
        ("a/.*/b", "a/.x/b", True),
    ],
)
def test_a_pattern_names_a_hidden_part_by_its_first_character(pattern: str, path: str, is_named: bool) -> None:
    assert is_named_by(pattern, path) is is_named
