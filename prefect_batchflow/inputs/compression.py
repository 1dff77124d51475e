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


class CutOffError(Exception):
    """The compressed data breaks off or is damaged here; the bytes before are intact. The text is for users."""


def reader(raw: IO[bytes], compression: str) -> Callable[[int], bytes]:
    """Give a function that reads a file's decompressed bytes: at most as many as asked for, none at the end.

    `compression` is one of `COMPRESSIONS`, or empty.

    Raises:
        ImportError: A package is not installed. The returned function raises `CutOffError`.
    """
    if not compression:
        return raw.read
    if compression == ".gz":
        name, unzipped, faults = "gzip", gzip.GzipFile(fileobj=raw), (zlib.error, gzip.BadGzipFile)
    else:
        from backports import zstd

        # The same methods as gzip's.
        name, unzipped, faults = "Zstandard", zstd.ZstdFile(raw), (zstd.ZstdError,)  # type: ignore[assignment]

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
