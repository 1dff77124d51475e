"""A row is bounded before it fills the memory: a small compressed file can hold an endless one."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs import formats
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import check

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 1 << 20


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_ROW_BYTES", LIMIT)
    monkeypatch.setattr(formats, "MAX_JSON_BYTES", 4 * LIMIT)


def _gz(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data, 1))
    return path


@pytest.mark.parametrize("size", [LIMIT + 1, 20 * LIMIT], ids=str)
@pytest.mark.parametrize("end", [b"\n", b""], ids=["with an end", "without an end"])
def test_a_row_that_is_too_long_is_named_and_the_others_are_read(tmp_path: Path, size: int, end: bytes) -> None:
    long = b'{"q": "' + b"x" * (size - 9) + b'"}'
    data = b'{"q": 1}\n' + long + b'\n{"q": 3}\n' + long + end
    digest = hashlib.sha256()
    source = open_source(_gz(tmp_path / "d.jsonl.gz", data), name="data")

    rows = list(source.rows(digest.update))

    assert [row.values for row in rows] == [{"q": 1}, {}, {"q": 3}, {}]
    assert [row.line for row in rows] == [1, 2, 3, 4]
    assert [row.offset for row in rows] == [0, 9, 9 + len(long) + 1, 18 + len(long) + 1]
    assert f"line 2 (byte 9): the row is longer than {LIMIT:,} bytes; it begins b'{{" in str(rows[1].error)
    assert "Put large content into files of its own" in str(rows[1].error)
    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()


def test_a_row_of_just_the_limit_is_read(tmp_path: Path) -> None:
    row = b'{"q": "' + b"x" * (LIMIT - 9) + b'"}'
    assert len(row) == LIMIT
    rows = list(open_source(_gz(tmp_path / "d.jsonl.gz", row + b"\n" + row), name="data").rows())

    assert [len(row.values["q"]) for row in rows] == [LIMIT - 9] * 2


def test_an_endless_row_takes_no_memory(tmp_path: Path) -> None:
    path = _gz(tmp_path / "d.jsonl.gz", b"[" * (50 * LIMIT))
    assert path.stat().st_size < LIMIT
    tracemalloc.start()
    try:
        [row] = open_source(path, name="data").rows()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert row.error is not None
    assert peak < 8 * LIMIT


@pytest.mark.parametrize("name", ["d.csv.gz", "d.csv", "d.tsv"])
@pytest.mark.parametrize(
    "record",
    [b"x" * (LIMIT + 1), b'"' + b"x\n" * LIMIT, b'"' + b"\n" * (2 * LIMIT)],
    ids=["line", "lines", "empty lines"],
)
def test_a_csv_record_that_is_too_long_is_refused(tmp_path: Path, name: str, record: bytes) -> None:
    data = b"q\na\n" + record
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    with pytest.raises(InvalidUserData, match=rf"line 3 \(byte 4\): the row is longer than {LIMIT:,} bytes"):
        list(open_source(path, name="data").rows())


def test_a_json_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = _gz(tmp_path / "d.json.gz", b'[{"q": "' + b"x" * (5 * LIMIT) + b'"}]')

    with pytest.raises(InvalidUserData, match=r"larger than 4,194,304 bytes after decompression.*\.jsonl"):
        list(open_source(path, name="data").rows())


@pytest.mark.parametrize("bad_rows", ["refuse", "fail"])
def test_a_run_is_refused_or_the_line_fails(tmp_path: Path, bad_rows: str) -> None:
    path = _gz(tmp_path / "d.jsonl.gz", b'{"q": 1}\n{"q": "' + b"x" * LIMIT + b'"}\n')
    source = open_source(path, name="data")
    if bad_rows == "refuse":
        with pytest.raises(InvalidUserData, match=r"line 2 .*the row is longer"):
            check([source], {}, {})
    else:
        assert check([source], {}, {}, bad_rows="fail").total_lines == 2
