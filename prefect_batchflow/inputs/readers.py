"""Sources of rows: files that fsspec can reach, folders, patterns, pipes, and rows in memory.

Every source can be read again from its start. A pipe or iterator is first copied to a temporary file. fsspec is imported
when a file is opened, its optional packages when a URL needs them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs import columnar, compression
from prefect_batchflow.inputs.formats import SAME_FORMATS, TEXT_FORMATS, Row, shorten
from prefect_batchflow.inputs.hidden import is_below_hidden, is_named_by, left_out_note
from prefect_batchflow.inputs.mapping import LINE_NUMBER, number_columns
from prefect_batchflow.inputs.places import OBJECT_STORES, fixed_folder, fresh_listings, is_local_path, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prefect_batchflow.inputs.formats import Update

_BLOCK_BYTES = 1 << 18
_SUFFIXES = (
    *(text + compressed for text in (*TEXT_FORMATS, *SAME_FORMATS) for compressed in ("", *compression.COMPRESSIONS)),
    *columnar.SUFFIXES,
)
_KNOWN = (
    f"{', '.join(TEXT_FORMATS)}, each also with {' or '.join(compression.COMPRESSIONS)}, "
    f"and {', '.join(columnar.SUFFIXES)} ({', '.join(SAME_FORMATS)} are read as .jsonl)"
)
_MODULES = {**OBJECT_STORES, **dict.fromkeys(("http", "https"), "aiohttp")}
"""What protocols need."""


class Source(Protocol):
    """Rows under a name that mappings refer to. They can be read from the start again and again."""

    @property
    def name(self) -> str:
        """The name in `${name.column}`."""

    @property
    def url(self) -> str:
        """Where the rows are, for messages: without credentials and query."""

    @property
    def folder(self) -> str | None:
        """The folder that paths of images in the rows are relative to and cannot leave; `None` if there is none."""

    @property
    def number_columns(self) -> tuple[str, ...]:
        """The columns that can number the rows, the first choice first; empty numbers them by position."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks about what was read, such as files that were left out; complete after the first reading."""

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        """Give the rows in order, one in memory at a time.

        A row that cannot be read has its `error` set, and reading continues after it.

        Args:
            update: Gets all bytes as they are read, to hash them.

        Raises:
            InvalidUserData: A file is missing, cannot be opened, or does not fit its suffix.
        """


def open_source(
    url: str | Path,
    *,
    name: str,
    base_dir: str | Path | None = None,
    line_number_column: str = LINE_NUMBER,
    may_read: Callable[[str], bool] | None = None,
) -> Source:
    """Give the rows of a file, a folder or a pattern; they are read later.

    Args:
        url: A path, or any URL that fsspec knows; `-` is standard input. In paths, `~` is the home folder, and `$NAME` and
            `${NAME}` are environment variables. For a folder, all files in it and below it with a known suffix are read, in
            sorted order. A path or URL with `*`, `?`, `[…]` or `**` that is not itself a file is a pattern: all matches are
            read, in sorted order. Both leave out hidden files, as `hidden` says. Pipes without a suffix are read as jsonl.
        name: The source's name in mappings: `data` in `${data.question}`.
        base_dir: The folder that relative paths start from; `None` is the current directory.
        line_number_column: As in the options of a run.
        may_read: Whether a path on this machine can be read, links followed; `None` allows all. It is asked about each file
            that the URL leads to, and about the folder of images.

    Raises:
        InvalidUserData: The URL is a chain (`::`), or a variable is not set. Other errors appear when the rows are read.
    """
    location = given = str(url)
    if "::" in location:
        raise InvalidUserData(
            f"Source '{name}': chained URLs (::) are not supported, found {_public(location)!r}. Give the plain URL "
            "of a file or folder; .gz files are decompressed without a chain."
        )
    location = "/dev/stdin" if location == "-" else locate(location, base_dir)
    source = _FileSource(name, location, _public(given), number_columns(line_number_column), may_read)
    source.starts_here = base_dir is None and is_local_path(given) and not given.startswith(("/", "~", "$"))
    return source


class RowsSource:
    """Rows in memory, such as a previous run's outputs.

    Args:
        name: The source's name in mappings: `run.outputs`.
        rows: Mappings of column to JSON value. An iterator is copied to a temporary file, because it can be read only once.
        folder: The folder that paths of images in the rows are relative to and cannot leave.
    """

    number_columns = (LINE_NUMBER,)
    notes: Sequence[str] = ()

    def __init__(self, name: str, rows: Iterable[Mapping[str, Any]], folder: str | None = None) -> None:
        self.name = name
        self.url = name
        self.folder = folder
        self._given = rows

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        """See `Source.rows`. The hash is over the rows as JSON, one per line, with sorted keys."""
        for number, values in enumerate(self._again(), 1):
            if not isinstance(values, Mapping):
                raise InvalidUserData(f"{self.name}, row {number}: expected a mapping, found {shorten(values)}.")
            if update:
                update(_json_line(self.name, number, values, sort_keys=True))
            yield Row(dict(values), self.name, number)

    def _again(self) -> Iterator[Any]:
        if not isinstance(self._given, Iterator):
            yield from self._given
            return
        with self._copy.open("rb") as file:
            yield from map(json.loads, file)

    @cached_property
    def _copy(self) -> Path:
        path = _temporary_file(self)
        with path.open("wb") as file:
            file.writelines(_json_line(self.name, number, row) for number, row in enumerate(self._given, 1))
        return path


class _File(NamedTuple):
    path: str
    shown: str
    suffix: str
    """Includes the suffix of the compression; empty if unknown."""


class _FileSource:
    """A file, a folder, a pattern or a pipe; looked up when first read."""

    def __init__(
        self,
        name: str,
        location: str,
        shown: str,
        number_columns: tuple[str, ...],
        may_read: Callable[[str], bool] | None = None,
    ) -> None:
        self.name = name
        self.url = shown
        self.number_columns = number_columns
        self._may_read = may_read
        self._hidden: set[str] = set()
        """The files that were left out."""
        self._location = location
        self._protocol = location.partition("://")[0] if "://" in location else "file"
        self._is_local = self._protocol in ("file", "local")
        self._is_copied = False
        """Whether it is a pipe's copy that is read."""
        self.starts_here = False
        """Whether its path was given relative to the current folder."""
        # A variable can hold a secret, and messages must not show it to someone who only names the variable.
        self._has_variable = self._protocol == "file" and "$" in shown

    @cached_property
    def folder(self) -> str | None:
        """The given folder, the file's folder, or the fixed part of a pattern."""
        place = self._location
        if place.startswith("/dev/"):
            return None
        if self._protocol not in ("http", "https") and not os.path.lexists(place) and (fixed := fixed_folder(place)):
            return fixed.rstrip("/") or "/"
        is_folder = Path(place).is_dir() if self._protocol == "file" and "://" not in place else not _suffix(place)
        folder = place.rstrip("/") if is_folder else place.partition("?")[0].rpartition("/")[0]
        return folder if self._may_read is None or self._may_read(folder) else None

    @property
    def _start(self) -> str:
        """For messages: where a relative path starts."""
        return f" Relative paths start at the current folder, {Path.cwd()}." * self.starts_here

    @property
    def notes(self) -> Sequence[str]:
        return [note] if (note := left_out_note(self._hidden)) else []

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        for number, file in enumerate(self._files):
            if update and number:
                update(b"\0")  # a row that moves from one file to the next changes the hash
            yield from self._read(file, update)

    def _read(self, file: _File, update: Update | None) -> Iterator[Row]:
        if self._may_read is not None and self._is_local and not (self._is_copied or self._may_read(file.path)):
            raise InvalidUserData(
                f"Source '{self.name}': {file.shown} is a link that leads out of the places that this worker allows. Put the "
                "file itself there.",
                file=file.shown,
            )
        with self._border(file.shown):
            opened = self._target[0].open(file.path, "rb")
        with opened as raw:
            if file.suffix in columnar.SUFFIXES:
                with self._border(file.shown, module="pyarrow"):
                    table = columnar.open_table(file.shown, raw, file.suffix, self._border(file.shown))
                yield from table.rows(update)
                return
            kind, compressed = Path(file.suffix).stem, Path(file.suffix).suffix
            with self._border(file.shown, module=compression.MODULES.get(compressed)):
                read = compression.reader(raw, compressed)
            blocks = iter(partial(self._border(file.shown)(read), _BLOCK_BYTES), b"")
            yield from TEXT_FORMATS[SAME_FORMATS.get(kind, kind)](file.shown, blocks, update)

    @cached_property
    def _files(self) -> list[_File]:
        with self._border(self.url):
            file_system, path = self._target
            # In web addresses ? and [ are not wildcards.
            pattern = None if self._protocol in ("http", "https") else fixed_folder(path)
            try:
                info = file_system.info(path)
            except FileNotFoundError:
                if pattern is None:
                    raise
                return self._files_that_fit(path, pattern)
        if info["type"] == "directory":
            if files := self._files_below(info["name"], self.url.rstrip("/")):
                return files
            raise InvalidUserData(
                f"Source '{self.name}': the folder {self.url} has no file with a known suffix; expected {_KNOWN}."
                + self._and_hidden()
            )
        is_pipe = info["type"] == "other"  # only for local paths
        suffix = _suffix(self.url) or _suffix(path) or (".jsonl" if is_pipe or self.url == "-" else "")
        file = _File(path, self.url, suffix)
        self._refuse_unknown([file])
        if not is_pipe:
            return [file]
        copy = _temporary_file(self)
        with self._border(self.url), copy.open("wb") as to, Path(path).open("rb") as pipe:
            shutil.copyfileobj(pipe, to, _BLOCK_BYTES)
        self._is_copied = True
        return [file._replace(path=str(copy))]

    def _files_that_fit(self, path: str, folder: str) -> list[_File]:
        """Give the files that match a pattern or are below a folder that does; `folder` is the pattern's fixed part."""
        shown_folder = fixed_folder(self.url)
        if shown_folder is None or path.removeprefix(folder) != self.url.removeprefix(shown_folder):
            shown_folder = folder  # a variable holds the wildcards
        found: dict[str, _File] = {}
        for place, info in self._target[0].glob(path, detail=True).items():
            # `**` also gives the fixed part itself.
            inner = f"{place.rstrip('/')}/".removeprefix(folder).rstrip("/")
            is_left_out = is_below_hidden(inner) and not is_named_by(path.removeprefix(folder), inner)
            if info["type"] == "directory":
                files = self._files_below(place.rstrip("/"), (shown_folder + inner).rstrip("/"))
            else:
                files = [_File(place, shown_folder + inner, _suffix(place))]
            if is_left_out:
                self._hidden.update(file.shown for file in files if file.suffix)
            else:
                found.update((file.path, file) for file in files if file.path not in found)
        self._hidden -= {file.shown for file in found.values()}
        if not found:
            raise InvalidUserData(
                f"Source '{self.name}': no file matches the pattern {self.url}.{self._start} Check the pattern; files can be "
                f"{_KNOWN}." + self._and_hidden()
            )
        self._refuse_unknown(found.values())
        return [found[place] for place in sorted(found)]

    def _files_below(self, folder: str, shown: str) -> list[_File]:
        with self._border(shown):
            paths = sorted(self._target[0].find(folder))
        inner = {path: path.removeprefix(folder).lstrip("/") for path in paths if _suffix(path)}
        files = {path: _File(path, f"{shown}/{name}", _suffix(path)) for path, name in inner.items()}
        left_out = {path for path, name in inner.items() if is_below_hidden(name)}
        self._hidden.update(files[path].shown for path in left_out)
        return [file for path, file in files.items() if path not in left_out]

    def _and_hidden(self) -> str:
        return f" {note[0].upper()}{note[1:]}" if (note := left_out_note(self._hidden)) else ""

    def _refuse_unknown(self, files: Iterable[_File]) -> None:
        unknown = [file.shown for file in files if not file.suffix]
        if unknown:
            more = f" ({len(unknown) - 1} more like it)" if len(unknown) > 1 else ""
            raise InvalidUserData(
                f"Source '{self.name}': {unknown[0]} has no known suffix{more}; expected one of {_KNOWN}. "
                "Rename or convert the file, or narrow the pattern."
            )

    @cached_property
    def _target(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        from fsspec import available_protocols
        from fsspec.core import url_to_fs

        if self._protocol in _MODULES and self._protocol not in available_protocols():
            raise ImportError(f"no package for {self._protocol}:// was found")
        resolved: tuple[Any, str] = url_to_fs(self._location, **fresh_listings(self._location))
        return resolved

    @contextmanager
    def _border(self, shown: str, module: str | None = None) -> Iterator[None]:
        """Turn any error into ours, without URL queries. `module` can be missing; `None` is the file system's."""
        try:
            yield
        except (InvalidUserData, compression.CutOffError):
            raise
        except FileNotFoundError:
            place = _public(self._location)
            looked = "" if self._has_variable or shown == place else f" (looked for {place})"
            message = (
                f"{shown} not found{looked}.{self._start} Check the path{' and its variables' * self._has_variable}."
            )
        except ImportError as exc:
            module = module or _MODULES.get(self._protocol)
            run = pip_install(module) if module else f"pip install <the fsspec package for {self._protocol}>"
            message = f"{shown} needs a package that is not installed: {exc}. Run: {run}"
        except Exception as exc:  # noqa: BLE001 - file systems raise what the libraries below them raise
            text = str(exc).replace(self._location, shown) if self._has_variable else str(exc)
            message = f"{shown} cannot be read: {type(exc).__name__}: {_public(text).rstrip('.')}."
        else:
            return
        raise InvalidUserData(f"Source '{self.name}': {message}", file=shown)


def _suffix(path: str) -> str:
    """Give the known suffix of a file's name, in lower case and with its compression; empty if unknown."""
    name = path.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _public(text: str) -> str:
    """Remove passwords from the URLs in a text, and queries from web addresses, because a query can be a signature."""
    text = re.sub(r"(https?://)[^/\s@]*@", r"\1", text)
    text = re.sub(r"(://)[^/\s@:]*:[^/\s@]*@", r"\1", text)
    return re.sub(r"(https?://[^\s?]*)\?[^\s'\")]*", r"\1", text)


def _temporary_file(owner: object) -> Path:
    """Give a new file that is removed together with its owner."""
    handle, path = tempfile.mkstemp(prefix="batchflow-")
    os.close(handle)
    weakref.finalize(owner, Path(path).unlink, missing_ok=True)
    return Path(path)


def _json_line(source: str, number: int, row: Any, *, sort_keys: bool = False) -> bytes:
    try:
        return json.dumps(row if isinstance(row, dict) else dict(row), sort_keys=sort_keys).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidUserData(f"{source}, row {number}: expected a mapping of JSON values: {exc}.") from exc
