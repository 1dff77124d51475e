"""Unzipping by suffix: `.gz` and `.zst`, to the last byte that is whole."""

from __future__ import annotations

import gzip
import zlib
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSIONS = (".gz", ".zst")
"""Suffixes behind the suffix of a text format."""

MODULES = {".zst": "backports.zstd"}
"""What those need that Python itself does not bring."""

_NAMES = {".gz": "gzip", ".zst": "Zstandard"}


class CutOffError(Exception):
    """The compressed data breaks off or is damaged here; what was read before is whole. Its text says so to people."""


def reader(raw: IO[bytes], compression: str) -> Callable[[int], bytes]:
    """Give what reads a file's bytes, unzipped: at most as many as asked for, none at the end.

    Args:
        raw: The file as it is.
        compression: One of `COMPRESSIONS`, or empty.

    Raises:
        ImportError: It needs a package that is not installed. The reader itself raises `CutOffError`.
    """
    if not compression:
        return raw.read
    unzipped, faults = _opened(raw, compression)
    name = _NAMES[compression]

    def read(size: int) -> bytes:
        try:
            # read1 gives what was unzipped before the data breaks off, read would lose it.
            return unzipped.read1(size)
        except EOFError as exc:
            raise CutOffError(f"the {name} data ends early: the file is cut off. Copy it again.") from exc
        except faults as exc:
            raise CutOffError(
                f"the {name} data is damaged ({exc}). Copy the file again, or take {compression} off its name if it is "
                "not zipped."
            ) from exc

    return read


def _opened(raw: IO[bytes], compression: str) -> tuple[gzip.GzipFile, tuple[type[Exception], ...]]:
    """The unzipped file, and what it raises over data that is not what its suffix says."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw), (zlib.error, gzip.BadGzipFile)
    from backports import zstd

    opened: gzip.GzipFile = zstd.ZstdFile(raw)  # type: ignore[assignment] # the same methods
    return opened, (zstd.ZstdError,)
