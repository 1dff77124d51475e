"""The lines of a run as one table: jsonl, csv or parquet, a row per line."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from prefect_batchflow.errors.classes import class_of_error
from prefect_batchflow.errors.packages import is_installed, pip_install
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.results.strict_json import StrictRows, strict
from prefect_batchflow.results.texts import encodable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Iterator

    from prefect_batchflow.results.records import LineRecord

ExportFormat = Literal["jsonl", "csv", "parquet"]
_GUARDED = ("=", "+", "-", "@", "\t", "\r", "\n")
_ROWS_AT_ONCE = 1_000
_PLAIN = {bool: "bool_", int: "int64", float: "float64", str: "string"}


def export_row(record: LineRecord) -> dict[str, Any]:
    """A line as a flat row: its number and status, its inputs, outputs and error, what it took."""
    output, error = record["output"], record["error"]
    values = output if isinstance(output, dict) else {} if output is None else {"output": output}
    return {
        "line_number": record["line_number"],
        "status": record["status"],
        **{f"inputs.{name}": value for name, value in record["inputs"].items()},
        **{f"outputs.{name}": value for name, value in values.items()},
        "error": None if error is None else str(error.get("message", "")),
        "error_class": None if error is None else str(class_of_error(error)),
        "attempt": record["attempt"],
        "duration_sec": record["duration_sec"],
        "total_tokens": record["tokens"].get("total_tokens", 0),
    }


async def export_records(records: AsyncIterable[LineRecord], kind: ExportFormat, target: IO[bytes]) -> int:
    """Write records as a table, and return the number of rows. Memory does not grow with them.

    Columns come in the order in which they are met. In csv and parquet, a list or dictionary is JSON text; so is each value
    of a parquet column whose values have several types. A csv cell that a spreadsheet would take for a formula begins with an
    apostrophe.

    Raises:
        InvalidOptionError: parquet needs a package that is not installed.
    """
    if kind == "parquet" and not is_installed("pyarrow"):
        raise InvalidOptionError(f"The format parquet needs pyarrow. {pip_install('pyarrow')}, or give --format jsonl.")
    rows, count = StrictRows("export"), 0
    columns: dict[str, set[type]] = {}
    with tempfile.TemporaryDirectory(prefix="batchflow-export-") as folder:
        path = Path(folder, "rows")
        with path.open("wb") as file:  # noqa: ASYNC230 - a temporary file, for each row a write into a buffer
            async for record in records:
                row = strict(export_row(record))
                count += 1
                (target if kind == "jsonl" else file).write(rows.line(row))
                for name, value in row.items():
                    columns.setdefault(name, set()).add(type(value))
        if kind == "csv":
            _write_csv(_read(path), list(columns), target)
        elif kind == "parquet":
            _write_parquet(_read(path), columns, target)
    return count


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _write_csv(rows: Iterable[dict[str, Any]], columns: list[str], target: IO[bytes]) -> None:
    class Lines:
        def write(self, text: str) -> int:
            return target.write(encodable(text).encode())

    writer = csv.writer(Lines(), lineterminator="\n")
    # What a run writes first: line_number, status and the inputs. The outcome of a line comes after its outputs.
    order = sorted(columns, key=_place)
    writer.writerow([guarded(name) for name in order])
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in order])


def _place(name: str) -> int:
    return next(
        (at for at, start in enumerate(("line_number", "status", "inputs.", "outputs.")) if name.startswith(start)), 4
    )


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return guarded(value)
    return json.dumps(value) if isinstance(value, dict | list | bool) else value


def guarded(text: str) -> str:
    """A text for a cell of csv. A spreadsheet does not take it for a formula."""
    return f"'{text}" if text.startswith(_GUARDED) or text.lstrip().startswith(_GUARDED[:4]) else text


def _write_parquet(rows: Iterable[dict[str, Any]], columns: dict[str, set[type]], target: IO[bytes]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    order = sorted(columns, key=_place)
    kinds = {name: _kind(found - {type(None)}) for name, found in columns.items()}
    schema = pa.schema([(encodable(name), getattr(pa, kinds[name] or "string")()) for name in order])

    def value(row: dict[str, Any], name: str) -> Any:
        found = row.get(name)
        if found is None:
            return None
        if kinds[name] is None:
            return json.dumps(found)
        return encodable(found) if isinstance(found, str) else float(found) if kinds[name] == "float64" else found

    def write(some: list[dict[str, Any]]) -> None:
        arrays = [
            pa.array([value(row, name) for row in some], type=place.type)
            for name, place in zip(order, schema, strict=True)
        ]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    with parquet.ParquetWriter(target, schema) as writer:
        waiting: list[dict[str, Any]] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == _ROWS_AT_ONCE:
                write(waiting)
                waiting = []
        write(waiting)


def _kind(types: set[type]) -> str | None:
    """The type of a parquet column; `None` if its values become JSON text."""
    if types == {int, float}:
        return "float64"
    if len(types) == 1:
        return _PLAIN.get(next(iter(types)))
    return "string" if not types else None
