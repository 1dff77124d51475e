"""The text formats of data: rows from jsonl, csv, tsv and json bytes, each row with the place it came from.

Text is decoded here, line by line, so byte offsets are exact. An unreadable row is a `Row` with its `error`, so one pass
finds them all. An error that spoils a whole file is raised.
"""

from __future__ import annotations

import csv
import json
import reprlib
import sys
from collections import Counter
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.compression import CutOffError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Update = Callable[[bytes], object]
    """Gets the bytes as they are read, such as `hashlib.sha256().update`."""

MAX_ROW_BYTES = 128 * 1024 * 1024
"""The size limit of one line or csv record, after decompression."""
MAX_JSON_BYTES = 1024 * 1024 * 1024
"""The size limit of a .json file, after decompression, because all of it is in memory."""
_EXCERPT_BYTES = 60
MAX_DEPTH = 400
"""Deeper JSON is refused, because Python's encoders and pickle recurse and must not fail in the middle of a run."""

_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 12
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_REPR.maxlevel = 3

_NAMELESS = "Unnamed: "
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels. Flatten the data."
_BOM = b"\xef\xbb\xbf"
_SPANS_LINES = "the JSON that starts here spans several lines, but each line of this format is one object. "
_ON_ONE_LINE = {
    "{": "Write each object on a line of its own, for example with: jq -c . FILE > NEW.jsonl",
    "[": "Rename the file to .json, which can be an array of objects.",
}
"""By the bracket that the JSON starts with."""
_COMPLETE = "complete"
_HINTS = {
    b"\xff\xfe": "It looks like UTF-16: save the file as UTF-8.",
    b"\xfe\xff": "It looks like UTF-16: save the file as UTF-8.",
    b"\x1f\x8b": "It looks like gzip: add .gz to the file's name.",
    b"\x28\xb5\x2f\xfd": "It looks like Zstandard: add .zst to the file's name.",
}


class Row(NamedTuple):
    """One record of a source."""

    values: dict[str, Any]
    """Column to value; empty if `error` is set."""
    file: str
    """The file's name for messages; the source's name for rows in memory."""
    line: int
    """The 1-based line that the row starts on; the 1-based row without lines (.json, .parquet, rows in memory)."""
    offset: int | None = None
    """The byte that the row starts at, after decompression; `None` without lines."""
    error: InvalidUserData | None = None
    """Why the row cannot be read."""

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return _place(self.file, self.line, self.offset)


class PhysicalLines:
    """A file's lines as `(number, offset, raw)`, split at LF only and without it.

    Attributes:
        cut_off: Set at the end if the compressed data breaks off. The half line before the break is left out.
    """

    def __init__(self, file: str, blocks: Iterable[bytes], update: Update | None = None) -> None:
        self.file = file
        self.cut_off: Row | None = None
        self._blocks = blocks
        self._update = update

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        update = self._update
        number, offset = 1, 0
        rest = _Rest(update)
        try:
            for block in self._blocks:
                first, *others = block.split(b"\n")
                rest.add(first)
                if not others:
                    continue
                *others, tail = others
                length, raw = rest.length, rest.line(b"\n")
                yield _without_bom(raw) if number == 1 else (number, offset, raw)
                offset += length + 1
                number += 1
                for raw in others:
                    if update:
                        update(raw + b"\n")
                    yield number, offset, raw
                    offset += len(raw) + 1
                    number += 1
                rest.add(tail)
        except CutOffError as exc:
            reason = f"{exc} The lines before this one are intact."
            self.cut_off = _bad_row(self.file, number, offset, reason)
            return
        if rest.length:
            raw = rest.line(b"")
            yield _without_bom(raw) if number == 1 else (number, offset, raw)


class _TooLong(bytes):
    """The beginning of a line that is longer than `MAX_ROW_BYTES`."""


class _Rest:
    """A line whose end has not been read yet, as much of it as a row can have: a small `.gz` can hold an endless line."""

    def __init__(self, update: Update | None) -> None:
        self.length = 0
        self._update = update
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        was_too_long = self.length > MAX_ROW_BYTES
        self.length += len(piece)
        if was_too_long:
            new = piece
        elif self.length > MAX_ROW_BYTES:
            new = b"".join((*self._pieces, piece))
            self._pieces = [_TooLong(new[:_EXCERPT_BYTES])]
        else:
            self._pieces.append(piece)
            return
        if self._update:
            self._update(new)

    def line(self, end: bytes) -> bytes:
        """Give the line, and begin the next one."""
        raw = self._pieces[0] if self.length > MAX_ROW_BYTES else b"".join(self._pieces)
        if self._update:
            self._update(end if self.length > MAX_ROW_BYTES else raw + end)
        self.length, self._pieces = 0, []
        return raw


def read_jsonl(lines: PhysicalLines) -> Iterator[Row]:
    """Give one row per line of JSON; blank lines are skipped.

    Raises:
        InvalidUserData: The first value spans several lines, so none of the lines is a row.
    """
    rows = ((*_jsonl_row(lines.file, *line), line[2]) for line in lines if line[2] and not line[2].isspace())
    head = list(islice(rows, 1))
    if head and (start := head[0][1]) not in ("", _COMPLETE):
        head += islice(rows, 1)
        # A row that was cut off is a bad row of its own, whatever comes behind it.
        if len(head) > 1 and (head[1][0].error or start.endswith("[")) and _continues(head[0][2], head[1][2]):
            raise _data_error(
                lines.file, head[0][0].line, head[0][0].offset or 0, _SPANS_LINES + _ON_ONE_LINE[start[-1]]
            )
    for row, _, _ in chain(head, rows):
        yield row
    if lines.cut_off:
        yield lines.cut_off


def _continues(first: bytes, second: bytes) -> bool:
    """Whether a line can be the next one of the JSON that another line begins."""
    try:
        json.loads(first + b"\n" + second)
    except json.JSONDecodeError as exc:
        return exc.pos >= len(exc.doc.rstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _jsonl_row(file: str, number: int, offset: int, raw: bytes) -> tuple[Row, str]:
    """Give the row of a line, and its start up to the bracket that it leaves open; empty if its JSON is wrong.

    For complete JSON at the beginning of the line, the start is `_COMPLETE`.
    """
    if isinstance(raw, _TooLong):
        return _bad_row(file, number, offset, _too_long(raw)), ""
    try:
        text = raw.decode()
        values = json.loads(text)
    except (ValueError, RecursionError) as exc:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        is_open = isinstance(exc, json.JSONDecodeError) and exc.pos >= len(exc.doc.rstrip())
        start = raw[: len(raw) - len(raw.lstrip()) + 1].decode(errors="replace") if is_open else ""
        return _undecodable(file, number, offset, raw, exc), start if start[-1:] in _ON_ONE_LINE else ""
    return _object_row(values, text, file, number, offset), "" if raw[:1].isspace() else _COMPLETE


def read_csv(lines: PhysicalLines, delimiter: str) -> Iterator[Row]:
    """Give one row per record after the header. Cells are text, quoted cells can hold line breaks, blank lines are skipped.

    A column without a name is called `Unnamed: 2` by its 0-based place, as in pandas. Its empty cells are left out, and so are
    empty cells beyond the header: spreadsheets write such columns.

    Raises:
        InvalidUserData: The header cannot be read or repeats a column.
    """
    # The csv module has one limit for the whole process, so it is only ever raised.
    csv.field_size_limit(sys.maxsize)
    feed = _CsvFeed(lines)
    header: list[str] = []
    nameless: set[int] = set()
    named = 0
    """Columns from here on have no name."""
    records = csv.reader(feed, delimiter=delimiter)
    while True:
        feed.begin_record()
        try:
            cells = next(records)
        except StopIteration:
            break
        except (csv.Error, UnicodeDecodeError) as exc:
            row = _undecodable(lines.file, *feed.last, exc)
        else:
            # A lone "" is one empty cell, and tabs alone are empty cells.
            if not cells or (len(cells) == 1 and not feed.last[2].strip()):
                continue
            if not header and not feed.exhausted:
                header = [name if name.strip() else f"{_NAMELESS}{place}" for place, name in enumerate(cells)]
                nameless = {place for place, name in enumerate(cells) if not name.strip()}
                named = max((place for place in range(len(cells)) if place not in nameless), default=-1) + 1
                if repeated := [name for name, times in Counter(header).items() if times > 1]:
                    reason = f"the header names columns more than once: {shorten(repeated)}. Rename or remove them."
                    raise _data_error(feed.file, feed.number, feed.offset, reason)
                continue
            if len(cells) != len(header):
                cells = _fitting(cells, header, named)
            row = _csv_row(cells, header, nameless, feed)
        if row.error and not header:
            raise row.error
        yield row
    if lines.cut_off:
        yield lines.cut_off


def read_json(file: str, blocks: Iterable[bytes], update: Update | None = None) -> Iterator[Row]:
    """Give the rows of an array of objects, or of columns `{name: [values…]}`. The whole file is in memory.

    Raises:
        InvalidUserData: The file is neither, or is not JSON.
    """
    pieces, size = [], 0
    try:
        for block in blocks:
            pieces.append(block)
            if (size := size + len(block)) > MAX_JSON_BYTES:
                raise InvalidUserData(
                    f"{file}: larger than {MAX_JSON_BYTES:,} bytes after decompression, and a .json file is read as a whole. "
                    "Convert it to one object per line (.jsonl), which is read row by row.",
                    file=file,
                )
        data = b"".join(pieces)
    except CutOffError as exc:
        raise InvalidUserData(f"{file}: {exc}", file=file) from exc
    if update:
        update(data)
    _, start, data = _without_bom(data)
    if not data or data.isspace():
        return
    try:
        text = data.decode()
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        error = _decoding_error(file, 1, start, data, exc)
        if isinstance(exc, json.JSONDecodeError) and exc.msg == "Extra data":
            error = InvalidUserData(
                f"{error} If the file has one object per line, rename it to .jsonl.", file=file, line=1, offset=start
            )
        raise error from None
    for number, values in enumerate(_array(file, content), 1):
        yield _object_row(values, text, file, number, None)


TEXT_FORMATS: Mapping[str, Callable[[str, Iterable[bytes], Update | None], Iterator[Row]]] = {
    ".jsonl": lambda file, blocks, update: read_jsonl(PhysicalLines(file, blocks, update)),
    ".csv": lambda file, blocks, update: read_csv(PhysicalLines(file, blocks, update), ","),
    ".tsv": lambda file, blocks, update: read_csv(PhysicalLines(file, blocks, update), "\t"),
    ".json": read_json,
}
"""Each suffix and its reader; a new text format is a row here. Parquet and Arrow are in `columnar`."""


SAME_FORMATS: Mapping[str, str] = dict.fromkeys((".ndjson", ".jsonlines", ".ldjson"), ".jsonl")
"""Other suffixes of a format, to the suffix in `TEXT_FORMATS`."""


def too_deep(text: str, values: Any) -> bool:
    """Whether JSON, parsed from `text`, is nested deeper than `MAX_DEPTH`."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    level = [values]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return any(isinstance(value, (dict, list)) for value in level)


def shorten(value: Any) -> str:
    """Give a value's `repr` for a message, a few hundred characters at most, even if the value is large or deep."""
    return _REPR.repr(value)


def _object_row(values: Any, text: str, file: str, line: int, offset: int | None) -> Row:
    """Give the row of a JSON value, with an error if it is not an object. `text` is the JSON that contains it."""
    if type(values) is not dict:
        reason = f"expected an object {{…}}, found {_json_name(values)}: {shorten(values)}."
    elif too_deep(text, values):
        reason = _TOO_DEEP
    else:
        return Row(values, file, line, offset)
    return _bad_row(file, line, offset, reason)


def _array(file: str, content: Any) -> list[Any]:
    """Give the rows of a parsed .json file."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not all(isinstance(column, list) for column in content.values()):
        raise InvalidUserData(
            f"{file}: found {_json_name(content)}; expected an array of objects [{{…}}, {{…}}] or columns "
            f'{{"name": [values…]}}. If the file has one object per line, rename it to .jsonl.',
            file=file,
        )
    lengths = {name: len(column) for name, column in content.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidUserData(
            f"{file}: the columns differ in length: {shorten(lengths)}. Make them equally long.", file=file
        )
    return [dict(zip(content, cells, strict=True)) for cells in zip(*content.values(), strict=True)]


class _CsvFeed:
    """Decoded lines for `csv.reader`, and where the current record began.

    A class, because a generator would end at the first line that cannot be decoded.
    """

    def __init__(self, lines: PhysicalLines) -> None:
        self.file = lines.file
        self.exhausted = False
        self._lines = iter(lines)
        self.begin_record()

    def begin_record(self) -> None:
        """Take the next line as the start of a record."""
        self.number, self.offset = 0, 0
        self.last = (0, 0, b"")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            self.last = next(self._lines)
        except StopIteration:
            self.exhausted = True
            raise
        number, offset, raw = self.last
        if not self.number:
            self.number, self.offset = number, offset
        if isinstance(raw, _TooLong) or offset + len(raw) - self.offset > MAX_ROW_BYTES:
            raise _data_error(self.file, self.number, self.offset, _too_long(raw))
        return raw.decode() + "\n"


def _fitting(cells: list[str], header: list[str], named: int) -> list[str]:
    """Give the cells of a record with as many as the header has, if only empty ones or ones without a name differ."""
    if named <= len(cells) < len(header):
        return cells + [""] * (len(header) - len(cells))
    return cells[: len(header)] if not any(map(str.strip, cells[len(header) :])) else cells


def _csv_row(cells: list[str], header: list[str], nameless: set[int], feed: _CsvFeed) -> Row:
    if feed.exhausted:
        reason = 'a quoted cell of this record is still open at the end of the file. Add the closing ".'
    elif len(cells) != len(header):
        reason = (
            f"expected {len(header)} cells, as in the header ({shorten(header)}), found {len(cells)}: {shorten(cells)}. "
            "Quote cells that contain the separator or line breaks."
        )
    else:
        values = dict(zip(header, cells, strict=True))
        for place in nameless:
            if not cells[place].strip():
                del values[header[place]]
        return Row(values, feed.file, feed.number, feed.offset)
    return _bad_row(feed.file, feed.number, feed.offset, reason)


def _too_long(raw: bytes) -> str:
    return (
        f"the row is longer than {MAX_ROW_BYTES:,} bytes; it begins {raw[:_EXCERPT_BYTES]!r}. Check that the file is what you "
        "expect. Put large content into files of its own, and their paths into the rows."
    )


def _undecodable(file: str, line: int, offset: int, raw: bytes, exc: Exception) -> Row:
    return Row({}, file, line, offset, _decoding_error(file, line, offset, raw, exc))


def _decoding_error(file: str, line: int, offset: int, raw: bytes, exc: Exception) -> InvalidUserData:
    """Turn an error of decoding, JSON or csv into ours. `raw`, the text that caused it, starts at this line and offset."""
    at = 0
    if isinstance(exc, UnicodeDecodeError):
        at = exc.start
        hint = next((text for start, text in _HINTS.items() if raw.startswith(start)), "Save the file as UTF-8.")
        reason = f"not UTF-8: byte 0x{raw[at]:02x} ({exc.reason}) in {raw[max(0, at - 20) : at + 20]!r}. {hint}"
    elif isinstance(exc, json.JSONDecodeError):
        at = len(exc.doc[: exc.pos].encode())
        reason = f"not JSON: {exc.msg} in {_excerpt(exc.doc, exc.pos)}."
    elif isinstance(exc, RecursionError):
        reason = _TOO_DEEP
    elif isinstance(exc, csv.Error):
        reason = f"not csv: {exc}. Save the file with LF or CRLF at the end of each record."
    else:
        reason = f"a number is too long: {exc}."
    return _data_error(file, line + raw.count(b"\n", 0, at), offset + at, reason)


def _bad_row(file: str, line: int, offset: int | None, reason: str) -> Row:
    return Row({}, file, line, offset, _data_error(file, line, offset, reason))


def _data_error(file: str, line: int, offset: int | None, reason: str) -> InvalidUserData:
    return InvalidUserData(f"{_place(file, line, offset)}: {reason}", file=file, line=line, offset=offset)


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _place(file: str, line: int, offset: int | None) -> str:
    return f"{file}, row {line}" if offset is None else f"{file}, line {line} (byte {offset})"


def _excerpt(text: str, at: int) -> str:
    start, end = max(0, at - 30), at + 30
    return f"{'…' if start else ''}{text[start:end]!r}{'…' if end < len(text) else ''}"


def _without_bom(raw: bytes) -> tuple[int, int, bytes]:
    """Give a file's first line without the BOM, and its number and offset."""
    return (1, len(_BOM), type(raw)(raw[len(_BOM) :])) if raw.startswith(_BOM) else (1, 0, raw)
