"""Sources of rows: files on anything fsspec reaches, folders and patterns of them, pipes, rows handed over in memory.

Every source can be read again from its start: what cannot by itself is first copied to a temporary file. fsspec is
imported when a file is opened, its optional packages when their protocol is asked for.
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
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs import columnar, compression
from prefect_batchflow.inputs.formats import (
    PhysicalLines,
    Row,
    read_csv,
    read_json,
    read_jsonl,
    shorten,
)
from prefect_batchflow.inputs.places import OBJECT_STORES, fixed_folder, fresh_listings, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from prefect_batchflow.inputs.formats import Update

TEXT_SUFFIXES = (".jsonl", ".csv", ".tsv", ".json")
"""The text formats; each also compressed, in any case of letters."""

_BLOCK_BYTES = 1 << 18
_SUFFIXES = (
    *(text + compressed for text in TEXT_SUFFIXES for compressed in ("", *compression.COMPRESSIONS)),
    *columnar.SUFFIXES,
)
_KNOWN = (
    f"{', '.join(TEXT_SUFFIXES)}, each also with {' or '.join(compression.COMPRESSIONS)}, "
    f"and {', '.join(columnar.SUFFIXES)}"
)
_MODULES = {**OBJECT_STORES, **dict.fromkeys(("http", "https"), "aiohttp")}
"""What protocols need."""


class Source(Protocol):
    """Rows under a name that mappings refer to, to be read from the start as often as asked."""

    @property
    def name(self) -> str:
        """What `${name.column}` says."""

    @property
    def url(self) -> str:
        """Where the rows are, for messages: no credentials, no query."""

    @property
    def folder(self) -> str | None:
        """What paths of images in its rows are relative to, and may not leave; `None` where there is no such folder."""

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        """The rows in order, one in memory at a time.

        A row that cannot be read has its `error` set and the reading goes on behind it.

        Args:
            update: Gets all bytes as they are read, so that a full pass also gives their hash.

        Raises:
            InvalidUserData: A file is not there, cannot be opened, or is not what its suffix says.
        """


def open_source(url: str | Path, *, name: str, base_dir: str | Path | None = None) -> Source:
    """Give the rows of a file, a folder or what fits a pattern, read when asked for.

    Args:
        url: A path, or any URL fsspec knows; `-` is standard input. In paths `~` is the home folder, and `$NAME` and
            `${NAME}` are variables of the environment. Of a folder all files below it with a known suffix are read, in
            sorted order. A path or URL with `*`, `?`, `[…]` or `**` that is no file itself is a pattern: all that fits
            is read, in sorted order. Pipes without a suffix are taken for jsonl.
        name: What mappings call it: `data` in `${data.question}`.
        base_dir: What relative paths are relative to; `None` is the current directory.

    Raises:
        InvalidUserData: The URL is a chain (`::`), or a variable is not set. All else is told when the rows are read.
    """
    location = given = str(url)
    if "::" in location:
        raise InvalidUserData(
            f"Source '{name}': chained URLs (::) are not supported, found {_public(location)!r}. Give the plain URL "
            "of a file or folder; .gz is unzipped by its suffix."
        )
    location = "/dev/stdin" if location == "-" else locate(location, base_dir)
    return _FileSource(name, location, shown=_public(given))


class RowsSource:
    """Rows that are already at hand, such as a previous run's outputs.

    Args:
        name: What mappings call it: `run.outputs`.
        rows: Mappings of column to JSON value. What can be iterated only once (a generator) is copied to a temporary
            file.
        folder: What paths of images in them are relative to, and may not leave.
    """

    def __init__(self, name: str, rows: Iterable[Mapping[str, Any]], folder: str | None = None) -> None:
        self.name = name
        self.url = name
        self.folder = folder
        self._given = rows

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        """See `Source.rows`; the hash is that of the rows as JSON, keys sorted, a row a line."""
        for number, values in enumerate(self._again, 1):
            if not isinstance(values, Mapping):
                raise InvalidUserData(f"{self.name}, row {number}: expected a mapping, found {shorten(values)}.")
            if update:
                update(_json_line(self.name, number, values, sort_keys=True))
            yield Row(dict(values), self.name, number)

    @cached_property
    def _again(self) -> Iterable[Any]:
        if not isinstance(self._given, Iterator):
            return self._given
        path = _temporary_file(self)
        with path.open("wb") as file:
            file.writelines(_json_line(self.name, number, row) for number, row in enumerate(self._given, 1))
        return _JsonLines(path)


class _JsonLines:
    """A file of our own making, read anew by each loop over it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Any]:
        with self._path.open("rb") as file:
            yield from map(json.loads, file)


class _File(NamedTuple):
    path: str
    shown: str
    suffix: str
    """With that of the compression; empty when it is not known."""


class _FileSource:
    """A file, a folder, a pattern or a pipe; looked for when first read."""

    def __init__(self, name: str, location: str, shown: str) -> None:
        self.name = name
        self.url = shown
        self._location = location
        self._protocol = location.partition("://")[0] if "://" in location else "file"
        # What a variable holds may be a secret: who only names it in a parameter must not read it in a message.
        self._has_variable = self._protocol == "file" and "$" in shown

    @cached_property
    def folder(self) -> str | None:
        """The folder that was given, or that of the file, or the fixed part of a pattern."""
        place = self._location
        if place.startswith("/dev/"):
            return None
        if self._protocol not in ("http", "https") and not os.path.lexists(place) and (fixed := fixed_folder(place)):
            return fixed.rstrip("/") or "/"
        is_folder = Path(place).is_dir() if self._protocol == "file" and "://" not in place else not _suffix(place)
        return place.rstrip("/") if is_folder else place.partition("?")[0].rpartition("/")[0]

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        for number, file in enumerate(self._files):
            if update and number:
                update(b"\0")  # a row that moves from one file to the next changes the hash
            yield from self._read(file, update)

    def _read(self, file: _File, update: Update | None) -> Iterator[Row]:
        with self._border(file.shown):
            opened = self._target[0].open(file.path, "rb")
        with opened as raw:
            if file.suffix in columnar.SUFFIXES:
                with self._border(file.shown, module=columnar.MODULE):
                    table = columnar.open_table(file.shown, _Watched(raw, self._border, file.shown), file.suffix)
                yield from table.rows(update)
                return
            stem, _, compressed = file.suffix.removeprefix(".").partition(".")
            zipped = f".{compressed}" if compressed else ""
            with self._border(file.shown, module=compression.MODULES.get(zipped)):
                read = compression.reader(raw, zipped)
            blocks = self._blocks(read, file.shown)
            if stem == "json":
                yield from read_json(file.shown, blocks, update)
            elif stem == "jsonl":
                yield from read_jsonl(PhysicalLines(file.shown, blocks, update))
            else:
                yield from read_csv(PhysicalLines(file.shown, blocks, update), "\t" if stem == "tsv" else ",")

    def _blocks(self, read: Callable[[int], bytes], shown: str) -> Iterator[bytes]:
        while True:
            with self._border(shown):
                block = read(_BLOCK_BYTES)
            if not block:
                return
            yield block

    @cached_property
    def _files(self) -> list[_File]:
        with self._border(self.url):
            file_system, path = self._target
            # The addresses of the web have ? and [ of their own.
            pattern = None if self._protocol in ("http", "https") else fixed_folder(path)
            try:
                info = file_system.info(path)
            except FileNotFoundError:
                if pattern is None:
                    raise
                return self._files_that_fit(path, pattern)
        if info["type"] == "directory":
            files = self._files_below(info["name"], self.url.rstrip("/"))
            if not files:
                raise InvalidUserData(
                    f"Source '{self.name}': the folder {self.url} holds no file that can be read; expected {_KNOWN}."
                )
            return files
        is_pipe = info["type"] == "other"  # of local paths only
        suffix = _suffix(self.url) or _suffix(path) or (".jsonl" if is_pipe or self.url == "-" else "")
        file = _File(path, self.url, suffix)
        self._refuse_unknown([file])
        return [file._replace(path=str(self._copy(path)))] if is_pipe else [file]

    def _files_that_fit(self, path: str, folder: str) -> list[_File]:
        """All files that fit a pattern, and those below folders that do; `folder` is the pattern's fixed part."""
        shown_folder = fixed_folder(self.url)
        if shown_folder is None or path.removeprefix(folder) != self.url.removeprefix(shown_folder):
            shown_folder = folder  # a variable holds the wildcards
        found: dict[str, _File] = {}
        for place, info in self._target[0].glob(path, detail=True).items():
            shown = shown_folder + place.removeprefix(folder)
            if info["type"] == "directory":
                found.update((file.path, file) for file in self._files_below(place, shown) if file.path not in found)
            else:
                found[place] = _File(place, shown, _suffix(place))
        if not found:
            raise InvalidUserData(
                f"Source '{self.name}': no file fits the pattern {self.url}. Check the pattern; expected files are {_KNOWN}."
            )
        self._refuse_unknown(found.values())
        return [found[place] for place in sorted(found)]

    def _files_below(self, folder: str, shown: str) -> list[_File]:
        with self._border(shown):
            paths = sorted(self._target[0].find(folder))
        return [_File(p, f"{shown}/{p.removeprefix(folder).lstrip('/')}", _suffix(p)) for p in paths if _suffix(p)]

    def _refuse_unknown(self, files: Iterable[_File]) -> None:
        unknown = [file.shown for file in files if not file.suffix]
        if unknown:
            more = f", as have {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise InvalidUserData(
                f"Source '{self.name}': {unknown[0]} has no suffix that tells its format{more}; expected one of {_KNOWN}. "
                "Rename or convert it, or narrow the pattern."
            )

    def _copy(self, path: str) -> Path:
        copy = _temporary_file(self)
        with self._border(self.url), copy.open("wb") as file, Path(path).open("rb") as pipe:
            shutil.copyfileobj(pipe, file, _BLOCK_BYTES)
        return copy

    @cached_property
    def _target(self) -> tuple[Any, str]:
        """The file system and the path within it."""
        from fsspec import available_protocols
        from fsspec.core import url_to_fs

        if self._protocol in _MODULES and self._protocol not in available_protocols():
            raise ImportError(f"no package for {self._protocol}:// was found")
        resolved: tuple[Any, str] = url_to_fs(self._location, **fresh_listings(self._location))
        return resolved

    @contextmanager
    def _border(self, shown: str, module: str | None = None) -> Iterator[None]:
        """Make our error of whatever a file system raises; the cause's text is kept, without URL queries.

        Args:
            shown: The file, as shown to people.
            module: What may be missing; `None` is the file system's.
        """
        try:
            yield
        except (InvalidUserData, compression.CutOffError):
            raise
        except FileNotFoundError:
            looked = "" if self._has_variable else f" (looked for {_public(self._location)})"
            message = f"{shown} not found{looked}. Check the path{' and its variables' * self._has_variable}."
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


class _Watched:
    """A `columnar.BinaryFile` whose errors are ours: what pyarrow itself raises tells of the data."""

    closed = False

    def __init__(self, raw: IO[bytes], border: Callable[[str], AbstractContextManager[None]], shown: str) -> None:
        self._raw = raw
        self._border = border
        self._shown = shown

    def read(self, size: int = -1) -> bytes:
        with self._border(self._shown):
            return self._raw.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._border(self._shown):
            return self._raw.seek(offset, whence)

    def tell(self) -> int:
        with self._border(self._shown):
            return self._raw.tell()

    def close(self) -> None:
        """Who opened the file closes it."""
        self.closed = True


def _suffix(path: str) -> str:
    """The known suffix of a file's name in lower case, that of its compression with it; empty for any other."""
    name = path.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _public(text: str) -> str:
    """A URL, or a text with URLs in it, without passwords and without web addresses' queries, which may sign them."""
    text = re.sub(r"(https?://)[^/\s@]*@", r"\1", text)
    text = re.sub(r"(://)[^/\s@:]*:[^/\s@]*@", r"\1", text)
    return re.sub(r"(https?://[^\s?]*)\?[^\s'\")]*", r"\1", text)


def _temporary_file(owner: object) -> Path:
    """A new file which is removed with its owner."""
    handle, path = tempfile.mkstemp(prefix="batchflow-")
    os.close(handle)
    weakref.finalize(owner, Path(path).unlink, missing_ok=True)
    return Path(path)


def _json_line(source: str, number: int, row: Any, *, sort_keys: bool = False) -> bytes:
    try:
        return json.dumps(row if isinstance(row, dict) else dict(row), sort_keys=sort_keys).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidUserData(f"{source}, row {number}: expected a mapping of JSON values: {exc}.") from exc
