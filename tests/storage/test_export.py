"""The lines of a run as a table."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from outcomes import record_of

from prefect_batchflow.storage.export import ExportFormat, export_records, guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prefect_batchflow.results.records import LineRecord

pytestmark = pytest.mark.anyio

RECORDS = [
    record_of(0, inputs={"q": "=1+1", "n": 1}, output={"a": "x", "list": [1, "é"]}),
    record_of(1, inputs={"q": "b", "n": 2.5}, error="=cmd|' /C calc'!A0"),
    record_of(2, inputs={"q": "\ud800", "n": -3}, output={"a": 5, "late": True}),
]


async def exported(kind: ExportFormat, records: list[LineRecord] = RECORDS) -> bytes:
    async def each() -> AsyncIterator[LineRecord]:
        for record in records:
            yield record

    target = io.BytesIO()
    assert await export_records(each(), kind, target) == len(records)
    return target.getvalue()


async def test_jsonl_has_a_row_per_line() -> None:
    rows = [json.loads(line) for line in (await exported("jsonl")).splitlines()]
    assert [row["line_number"] for row in rows] == [0, 1, 2]
    assert rows[0]["outputs.list"] == [1, "é"]
    assert (rows[1]["status"], rows[1]["error_class"]) == ("Failed", "user_code")


async def test_csv_runs_no_formula() -> None:
    header, *rows = csv.reader(io.StringIO((await exported("csv")).decode()))
    assert header[:6] == ["line_number", "status", "inputs.q", "inputs.n", "outputs.a", "outputs.list"]
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert cells[0]["inputs.q"] == "'=1+1"
    assert cells[1]["error"].startswith("'=cmd")
    assert (cells[2]["inputs.n"], cells[2]["outputs.late"], cells[1]["outputs.a"]) == ("-3", "true", "")


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1", "  =1"])
def test_what_a_spreadsheet_takes_for_a_formula_is_guarded(text: str) -> None:
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=1", "1-2", "'=1", "a@b"])
def test_other_texts_stay(text: str) -> None:
    assert guarded(text) == text


async def test_parquet_keeps_types_and_mixed_columns() -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(await exported("parquet"))).to_pylist()
    assert [row["inputs.n"] for row in rows] == [1.0, 2.5, -3.0]
    assert [row["outputs.a"] for row in rows] == ['"x"', None, "5"]
    assert [row["outputs.late"] for row in rows] == [None, None, True]
    assert json.loads(rows[0]["outputs.list"]) == [1, "é"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
async def test_a_run_without_lines_is_an_empty_table(kind: ExportFormat) -> None:
    pytest.importorskip("pyarrow")
    await exported(kind, [])
