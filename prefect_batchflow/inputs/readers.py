"""Sources of rows: files on anything fsspec reaches, folders of them, pipes, and rows handed over in memory.

Every source can be read again from its start: what cannot by itself is first copied to a temporary file. fsspec is
imported when a file is opened, its optional packages when their protocol is asked for.
"""

from __future__ import annotations

import gzip
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

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.formats import (
    CUT_OFF,
    PhysicalLines,
    Row,
    read_csv,
    read_json,
    read_jsonl,
    shorten,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_batchflow.inputs.formats import Update

SUFFIXES = (".jsonl", ".csv", ".tsv", ".json")
"""What the readers know; each also as `.gz`, in any case of letters."""

_BLOCK_BYTES = 1 << 18
_KNOWN = f"{', '.join(SUFFIXES)}, each also with .gz"
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "'prefect-batchflow[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "'prefect-batchflow[gcs]'"),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), "'prefect-batchflow[azure]'"),
    **dict.fromkeys(("http", "https"), "aiohttp requests"),
}


class Source(Protocol):
    """Rows under a name that mappings refer to, to be read from the start as often as asked."""

    @property
    def name(self) -> str:
        """What `${name.column}` says."""

    @property
    def url(self) -> str:
        """Where the rows are, for messages: no credentials, no query."""

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        """The rows in order, one in memory at a time.

        A row that cannot be read has its `error` set and the reading goes on behind it.

        Args:
            update: Gets all bytes as they are read, so that a full pass also gives their hash.

        Raises:
            InvalidUserData: A file is not there, cannot be opened, or is not what its suffix says.
        """


def open_source(url: str | Path, *, name: str, base_dir: str | Path | None = None) -> Source:
    """Give the rows of a file or folder, read when asked for.

    Args:
        url: A path, or any URL fsspec knows; `~` is the home folder, `-` standard input. Of a folder all files below it
            with a known suffix are read, in sorted order. Pipes without a suffix are taken for jsonl.
        name: What mappings call it: `data` in `${data.question}`.
        base_dir: What relative paths are relative to; `None` is the current directory.

    Raises:
        InvalidUserData: The URL is a chain (`::`). All else is told when the rows are read.
    """
    location = str(url)
    if "::" in location:
        raise InvalidUserData(
            f"Source '{name}': chained URLs (::) are not supported, found {_public(location)!r}. Give the plain URL "
            "of a file or folder; .gz is unzipped by its suffix."
        )
    if location == "-":
        location = "/dev/stdin"
    elif "://" not in location:
        location = str(Path(base_dir or "", os.path.expanduser(location)).absolute())  # noqa: PTH111 - Path's may raise
    return _FileSource(name, location, shown=_public(str(url)))


class RowsSource:
    """Rows that are already at hand, such as a previous run's outputs.

    Args:
        name: What mappings call it: `run.outputs`.
        rows: Mappings of column to JSON value. What can be iterated only once (a generator) is copied to a temporary
            file.
    """

    def __init__(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.name = name
        self.url = name
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


class _FileSource:
    """A file, a folder or a pipe; looked for when first read."""

    def __init__(self, name: str, location: str, shown: str) -> None:
        self.name = name
        self.url = shown
        self._location = location
        self._protocol = location.partition("://")[0] if "://" in location else "file"

    def rows(self, update: Update | None = None) -> Iterator[Row]:
        for number, file in enumerate(self._files):
            if update and number:
                update(b"\0")  # a row that moves from one file to the next changes the hash
            yield from self._read(file, update)

    def _read(self, file: _File, update: Update | None) -> Iterator[Row]:
        with self._border(file.shown):
            opened = self._target[0].open(file.path, "rb")
        with opened as raw:
            blocks = self._blocks(gzip.GzipFile(fileobj=raw) if file.suffix.endswith(".gz") else raw, file.shown)
            match file.suffix.removesuffix(".gz"):
                case ".json":
                    yield from read_json(file.shown, blocks, update)
                case ".jsonl":
                    yield from read_jsonl(PhysicalLines(file.shown, blocks, update))
                case suffix:
                    delimiter = "\t" if suffix == ".tsv" else ","
                    yield from read_csv(PhysicalLines(file.shown, blocks, update), delimiter)

    def _blocks(self, file: gzip.GzipFile | IO[bytes], shown: str) -> Iterator[bytes]:
        # read1 gives what was unzipped before the data breaks off, read would lose it.
        read = file.read1 if isinstance(file, gzip.GzipFile) else file.read
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
            info = file_system.info(path)
        if info["type"] == "directory":
            return self._files_below(info["name"])
        is_pipe = info["type"] == "other"  # of local paths only
        suffix = _suffix(self.url) or (".jsonl" if is_pipe or self.url == "-" else "")
        if not suffix:
            raise InvalidUserData(
                f"Source '{self.name}': {self.url} has no suffix that tells its format; expected one of {_KNOWN}. "
                "Rename the file or convert it."
            )
        return [_File(str(self._copy(path)) if is_pipe else path, self.url, suffix)]

    def _files_below(self, folder: str) -> list[_File]:
        with self._border(self.url):
            paths = sorted(self._target[0].find(folder))
        root = self.url.rstrip("/")
        files = [_File(p, f"{root}/{p.removeprefix(folder).lstrip('/')}", _suffix(p)) for p in paths if _suffix(p)]
        if not files:
            raise InvalidUserData(
                f"Source '{self.name}': the folder {self.url} holds no file that can be read; expected {_KNOWN}."
            )
        return files

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

        if self._protocol in _PACKAGES and self._protocol not in available_protocols():
            raise ImportError(f"no package for {self._protocol}:// was found")
        resolved: tuple[Any, str] = url_to_fs(self._location)
        return resolved

    @contextmanager
    def _border(self, shown: str) -> Iterator[None]:
        """Make our error of whatever a file system raises; the cause's text is kept, without URL queries."""
        try:
            yield
        except CUT_OFF:
            raise
        except FileNotFoundError:
            message = f"{shown} not found (looked for {_public(self._location)}). Check the path."
        except ImportError as exc:
            package = _PACKAGES.get(self._protocol, f"<the fsspec package for {self._protocol}>")
            message = f"{shown} needs a package that is not installed: {exc}. Run: pip install {package}"
        except Exception as exc:  # noqa: BLE001 - file systems raise what the libraries below them raise
            message = f"{shown} cannot be read: {type(exc).__name__}: {_public(str(exc)).rstrip('.')}."
        else:
            return
        raise InvalidUserData(f"Source '{self.name}': {message}", file=shown)


def _suffix(path: str) -> str:
    """The known suffix of a file's name in lower case, `.gz` with it; empty for any other."""
    name = path.lower()
    return next((s for known in SUFFIXES for s in (known, f"{known}.gz") if name.endswith(s)), "")


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
