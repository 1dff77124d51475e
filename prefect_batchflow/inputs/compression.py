"""Decompress `.gz` and `.zst` files, up to the last intact byte."""

from __future__ import annotations

import gzip
import zlib
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSIONS = (".gz", ".zst")
"""Suffixes that can follow the suffix of a text format."""

MODULES = {".zst": "backports.zstd"}
"""The modules that these suffixes need beside Python itself."""

_NAMES = {".gz": "gzip", ".zst": "Zstandard"}


class CutOffError(Exception):
    """The compressed data breaks off or is damaged here; the bytes before are intact. The text is for users."""


def reader(raw: IO[bytes], compression: str) -> Callable[[int], bytes]:
    """Give a function that reads a file's decompressed bytes: at most as many as asked for, none at the end.

    Args:
        raw: The compressed file.
        compression: One of `COMPRESSIONS`, or empty.

    Raises:
        ImportError: A package is not installed. The returned function raises `CutOffError`.
    """
    if not compression:
        return raw.read
    unzipped, faults = _opened(raw, compression)
    name = _NAMES[compression]

    def read(size: int) -> bytes:
        try:
            # read1 gives the bytes before the break; read would lose them.
            return unzipped.read1(size)
        except EOFError as exc:
            raise CutOffError(f"the {name} data ends early: the file is cut off. Copy it again.") from exc
        except faults as exc:
            raise CutOffError(
                f"the {name} data is damaged ({exc}). Copy the file again, or remove {compression} from its name if it "
                "is not compressed."
            ) from exc

    return read


def _opened(raw: IO[bytes], compression: str) -> tuple[gzip.GzipFile, tuple[type[Exception], ...]]:
    """Give the decompressed file, and the errors that it raises if the data does not fit the suffix."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw), (zlib.error, gzip.BadGzipFile)
    from backports import zstd

    opened: gzip.GzipFile = zstd.ZstdFile(raw)  # type: ignore[assignment] # the same methods
    return opened, (zstd.ZstdError,)
