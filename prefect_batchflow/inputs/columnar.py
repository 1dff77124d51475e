"""Read Parquet and Arrow files as rows of plain JSON values, a few rows at a time.

pyarrow reads the files; it is imported when one is opened. Values that JSON cannot hold are converted by their column's
type, never by the value: times and dates to ISO text in full precision, decimals and UUIDs to text, bytes to base64 text,
durations to seconds, structs and maps to objects, dictionary-encoded values to the values they encode.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.formats import MAX_DEPTH, MAX_ROW_BYTES, Row, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import ContextDecorator

    from prefect_batchflow.inputs.formats import Update

    Convert = Callable[[Any], list[Any]]
    """Turns a pyarrow array into plain values."""

SUFFIXES = (".parquet", ".arrow", ".feather")
"""`.arrow` and `.feather` are the same: Arrow's IPC format, as a file or a stream."""

_STEP_BYTES = 4 << 20
_MAX_STEP_ROWS = 1024
_MOST_DECODED_BYTES = 256 << 20
"""What a value that is stored once and repeated in many rows may take at once. A file of 1 kB can mean gigabytes."""
_TOO_LARGE = f"larger than {MAX_ROW_BYTES:,} bytes. Make it smaller, or give the path of a file in its place."
_BUFFER_BYTES = 1 << 18
_EPOCH = datetime(1970, 1, 1)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DAY_SEC = 86_400
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


class _Watched:
    """A file that raises the border's errors, so that pyarrow's own errors are about the data."""

    closed = False

    def __init__(self, raw: IO[bytes], border: ContextDecorator) -> None:
        self.read, self.seek, self.tell = border(raw.read), border(raw.seek), border(raw.tell)

    def close(self) -> None:
        """Leave the file open: its opener closes it."""
        self.closed = True


@dataclass(frozen=True, slots=True)
class Table:
    """An open file: its columns with their converters, and its batches, which are read on demand."""

    file: str
    """The file's name for messages."""
    format: str
    """parquet or Arrow."""
    columns: dict[str, Convert]
    batches: Iterable[Any]
    """pyarrow record batches of any size."""

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        """Give the rows in order. The hash is over the rows as JSON, one per line."""
        found = ([part] if isinstance(part, str) else self._records(part) for part in self._parts())
        for number, values in enumerate(chain.from_iterable(found), 1):
            if update:
                update(json.dumps(values).encode() + b"\n")
            if isinstance(values, str):
                error = InvalidUserData(f"{self.file}, row {number}: {values}", file=self.file, line=number)
                yield Row({}, self.file, number, error=error)
            else:
                yield Row(values, self.file, number)

    def _parts(self) -> Iterator[Any]:
        """Give batches small enough for their rows to fit in memory. If the data breaks off, the last item is text."""
        try:
            for batch in self.batches:
                repeated = sum(map(_repeated_bytes, batch.columns))
                step = _step_rows(batch.nbytes, batch.num_rows, repeated)
                for start in range(0, batch.num_rows, step):
                    part = batch.slice(start, step)
                    if part.nbytes <= MAX_ROW_BYTES:
                        yield part
                        continue
                    for row in (part.slice(number, 1) for number in range(part.num_rows)):
                        yield _TOO_LARGE if _row_bytes(row) > MAX_ROW_BYTES else row
        except _faults() as exc:
            yield f"the {self.format} data is damaged ({_told(exc)}). The rows before this one are intact. Copy the file again."

    def _records(self, batch: Any) -> Iterator[dict[str, Any] | str]:
        """Give the rows of a batch: plain values, or a text that says what is wrong with the row."""
        try:
            objects = _objects(self.columns, self.columns.values(), batch.columns, batch.num_rows)
        except (ValueError, OverflowError):
            if batch.num_rows > 1:
                yield from chain.from_iterable(self._records(batch.slice(n, 1)) for n in range(batch.num_rows))
            else:
                yield self._fault(batch)
        else:
            yield from objects

    def _fault(self, row: Any) -> str:
        for (name, convert), array in zip(self.columns.items(), row.columns, strict=True):
            try:
                convert(array)
            except (ValueError, OverflowError) as exc:
                return f"column {name!r} of type {array.type} cannot be converted to JSON: {_told(exc)}."
        raise AssertionError("the row can be converted after all")


def open_table(file: str, raw: IO[bytes], suffix: str, border: ContextDecorator) -> Table:
    """Open a file and read its schema.

    Args:
        file: The file's name for messages.
        raw: The file, which can seek.
        suffix: One of `SUFFIXES`.
        border: Turns the errors of a file system into ours; wraps each access to the file.

    Raises:
        ImportError: pyarrow is not installed.
        InvalidUserData: It is not such a file, or has columns that JSON cannot hold.
    """
    import pyarrow as pa

    try:
        opened = pa.PythonFile(_Watched(raw, border), mode="r")
        name, schema, batches = _open_parquet(opened) if suffix == ".parquet" else _open_arrow(file, opened)
    except _faults() as exc:
        raise InvalidUserData(
            f"{file}: not a complete {suffix} file: {_told(exc)}. Copy it again, or rename it to the suffix of its format.",
            file=file,
        ) from exc
    try:
        columns = {field.name: _converter(field.type, repr(field.name), 1) for field in _distinct(schema, "columns")}
    except ValueError as exc:
        raise InvalidUserData(f"{file}: {exc}", file=file) from exc
    return Table(file, name, columns, batches)


def _open_parquet(raw: Any) -> tuple[str, Any, Iterable[Any]]:
    from pyarrow.parquet import ParquetFile

    parquet = ParquetFile(raw, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    groups = map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))
    step = min((_step_rows(g.total_byte_size, g.num_rows, _in_dictionaries(g)) for g in groups), default=1)
    return "parquet", parquet.schema_arrow, parquet.iter_batches(batch_size=step, use_threads=False)


def _open_arrow(file: str, raw: Any) -> tuple[str, Any, Iterable[Any]]:
    from pyarrow import ipc

    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"FEA1"):
        raise InvalidUserData(f"{file}: this is Feather version 1. Save it as version 2 or as Parquet.", file=file)
    if start == b"ARROW1":
        opened = ipc.open_file(raw)
        batches = map(opened.get_batch, range(opened.num_record_batches))
    else:
        opened = ipc.open_stream(raw)
        batches = iter(opened)
    return "Arrow", opened.schema, map(_validated, batches)


def _validated(batch: Any) -> Any:
    """Check that a batch's offsets stay inside its buffers, because pyarrow trusts an Arrow file's own statements."""
    batch.validate(full=True)
    return batch


def _faults() -> tuple[type[Exception], ...]:
    """Give the errors that pyarrow raises for damaged data."""
    from pyarrow import ArrowException

    return (ArrowException, OSError)


def _told(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0].rstrip(".")


def _step_rows(size: int, rows: int, repeated: int = 0) -> int:
    """Give how many of these rows become Python objects at once, if each can have values of `repeated` bytes."""
    return max(1, min(_MAX_STEP_ROWS, _STEP_BYTES * rows // max(1, size), _MOST_DECODED_BYTES // max(1, repeated)))


def _repeated_bytes(array: Any) -> int:
    """Give the size of the values that an array has once and repeats."""
    if _is_any(array.type, "dictionary"):
        return int(array.dictionary.nbytes)
    return int(array.values.nbytes) if _is_any(array.type, "run_end_encoded") else 0


def _row_bytes(row: Any) -> int:
    """Give the size of a row, without values that other rows repeat."""
    return sum(
        int((array.dictionary_decode() if _is_any(array.type, "dictionary") else array).nbytes) for array in row.columns
    )


def _in_dictionaries(group: Any) -> int:
    """Give the size of the columns of a row group that store a value once and repeat it."""
    columns = map(group.column, range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if any("DICTIONARY" in name for name in c.encodings))


def _distinct(fields: Iterable[Any], what: str) -> list[Any]:
    fields = list(fields)
    repeated = [name for name, times in Counter(field.name for field in fields).items() if times > 1]
    if repeated:
        raise ValueError(f"the schema names {what} more than once: {shorten(repeated)}. Rename or remove them.")
    return fields


def _converter(kind: Any, name: str, depth: int) -> Convert:
    """Give the converter for arrays of a type; `ValueError` for a type that JSON cannot hold."""
    import pyarrow as pa

    if depth > MAX_DEPTH:
        raise ValueError(f"column {name} is nested deeper than {MAX_DEPTH} levels. Flatten the data.")

    def inner(inner_kind: Any) -> Convert:
        return _converter(inner_kind, name, depth + 1)

    is_a = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        is_uuid = kind.extension_name == "arrow.uuid"
        stored = _each(lambda value: str(UUID(bytes=value))) if is_uuid else inner(kind.storage_type)
        return lambda array: stored(array.storage)
    if is_a.is_dictionary(kind):
        encoded = inner(kind.value_type)
        return lambda array: encoded(array.dictionary_decode())
    if is_a.is_run_end_encoded(kind):
        from pyarrow.compute import run_end_decode

        repeated = inner(kind.value_type)
        return lambda array: repeated(run_end_decode(array))
    if is_a.is_map(kind):
        fields = [pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)]
        return _maps(pa.list_(pa.struct(fields)), _lists(inner(pa.struct(fields))))
    if _is_any(kind, "list", "large_list", "fixed_size_list", "list_view", "large_list_view"):
        return _lists(inner(kind.value_type))
    if is_a.is_struct(kind):
        names = [field.name for field in _distinct(kind, f"fields of column {name}")]
        return _structs(names, [inner(field.type) for field in kind])
    return _scalar_converter(kind, name)


def _scalar_converter(kind: Any, name: str) -> Convert:
    import pyarrow as pa

    is_a = pa.types
    if is_a.is_timestamp(kind):
        zone = pa.lib.string_to_tzinfo(kind.tz) if kind.tz else None
        return _each(lambda value: _iso_moment(value, kind.unit, zone), pa.int64())
    if is_a.is_time(kind):
        ticks = pa.int32() if is_a.is_time32(kind) else pa.int64()
        return _each(lambda value: _iso_time(value, kind.unit), ticks)
    if is_a.is_date32(kind):
        return _each(_iso_day, pa.int32())
    if is_a.is_date64(kind):
        return _each(lambda value: _iso_day(value // (_DAY_SEC * 1000)), pa.int64())
    if is_a.is_duration(kind):
        return _each(lambda value: value / 10 ** _DIGITS[kind.unit], pa.int64())
    if is_a.is_decimal(kind):
        return _each(lambda value: format(value, "f"))
    if _is_any(kind, "binary", "large_binary", "fixed_size_binary", "binary_view"):
        return _each(lambda value: base64.b64encode(value).decode())
    if _is_any(kind, "string", "large_string", "string_view", "null", "boolean", "integer", "floating"):
        return lambda array: array.to_pylist()
    raise ValueError(f"column {name} has type {kind}, which JSON cannot hold. Remove or convert the column.")


def _is_any(kind: Any, *names: str) -> bool:
    from pyarrow import types

    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _each(convert: Callable[[Any], Any], kind: Any = None) -> Convert:
    """Convert each value that is not null, after a cast of the array to `kind`."""

    def each(array: Any) -> list[Any]:
        values = (array if kind is None else array.cast(kind)).to_pylist()
        return [None if value is None else convert(value) for value in values]

    return each


def _lists(convert: Convert) -> Convert:
    from pyarrow.compute import list_value_length

    def lists(array: Any) -> list[Any]:
        values = iter(convert(array.flatten()))
        lengths = list_value_length(array).to_pylist()
        return [None if length is None else [next(values) for _ in range(length)] for length in lengths]

    return lists


def _maps(as_list: Any, convert: Convert) -> Convert:
    """Convert maps to objects. A key that is not text becomes its JSON; of equal keys the last counts."""

    def pair(entry: dict[str, Any]) -> tuple[str, Any]:
        key = entry["key"]
        return key if isinstance(key, str) else json.dumps(key), entry["value"]

    return lambda array: [None if pairs is None else dict(map(pair, pairs)) for pairs in convert(array.cast(as_list))]


def _structs(names: list[str], converters: list[Convert]) -> Convert:
    def structs(array: Any) -> list[Any]:
        there = array.is_valid().to_pylist()
        objects = _objects(names, converters, array.flatten(), len(array))
        return [found if is_there else None for is_there, found in zip(there, objects, strict=True)]

    return structs


def _objects(
    names: Iterable[str], converters: Iterable[Convert], arrays: Iterable[Any], count: int
) -> Iterator[dict[str, Any]]:
    """Give the objects that the arrays are the columns of; without columns, as many empty ones."""
    cells = [convert(array) for convert, array in zip(converters, arrays, strict=True)]
    rows = zip(*cells, strict=True) if cells else [()] * count
    return (dict(zip(names, row, strict=True)) for row in rows)


def _iso_moment(value: int, unit: str, zone: Any) -> str:
    seconds, rest = divmod(value, 10 ** _DIGITS[unit])
    moment = _EPOCH + timedelta(seconds=seconds)
    if zone is not None:
        moment = moment.replace(tzinfo=UTC).astimezone(zone)
    text = moment.isoformat()
    return text[:19] + _fraction(rest, unit) + text[19:]


def _iso_time(value: int, unit: str) -> str:
    seconds, rest = divmod(value, 10 ** _DIGITS[unit])
    if not 0 <= seconds < _DAY_SEC:
        raise ValueError(f"{value} {unit} is not a time of day")
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{_fraction(rest, unit)}"


def _iso_day(value: int) -> str:
    return date.fromordinal(_EPOCH_DAY + value).isoformat()


def _fraction(rest: int, unit: str) -> str:
    return f".{rest:0{_DIGITS[unit]}d}" if rest else ""
