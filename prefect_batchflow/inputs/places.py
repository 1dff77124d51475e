"""Where data and folders lie: paths of this machine made absolute, and patterns."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from prefect_batchflow.exceptions import InvalidUserData

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^{}]*)\})")
_WILDCARD = re.compile(r"[*?\[]")
OBJECT_STORES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), "adlfs"),
}
"""Protocols of object stores, and the module that reaches them."""


def is_local_path(location: str) -> bool:
    """Whether it is a path, not a URL and not `-`, standard input."""
    return "://" not in location and location != "-"


def absolute(path: str, base_dir: str | Path | None = None) -> str:
    """Make a path absolute: `~` filled in, relative to a folder, `None` for the current one. A URL stays as it is."""
    # os.path's expanduser, because pathlib's raises for a user that does not exist.
    return path if "://" in path else str(Path(base_dir or "", os.path.expanduser(path)).absolute())  # noqa: PTH111


def locate(place: str | Path, base_dir: str | Path | None = None) -> str:
    """Make the path of data absolute, with `$NAME` and `${NAME}` filled in, too; a URL, and `-`, stay as they are.

    A path that exists as it is written is that path, whatever is in its name.

    Args:
        place: A path, a URL, or `-`.
        base_dir: What relative paths are relative to; `None` is the current directory.

    Raises:
        InvalidUserData: A variable is not set in the environment; the message names it.
    """
    path = str(place)
    if not is_local_path(path):
        return path

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or ""
        if name not in os.environ:
            raise InvalidUserData(
                f"{path}: the environment has no variable '{name}'. Set it, or write the path itself; a $ in a file's name "
                "is taken as it is in a file:// URL."
            )
        return os.environ[name]

    if "$" in path and not os.path.lexists(absolute(path, base_dir)):
        path = _VARIABLE.sub(value, path)
    return absolute(path, base_dir)


def fresh_listings(url: str) -> dict[str, Any]:
    """The fsspec options with which a URL's file system remembers no listings.

    Those of object stores remember them for as long as the process lives: a file that somebody else wrote since is not found,
    not even by its own name, and one that has grown is read to its old length.
    """
    return {"use_listings_cache": False} if url.partition("://")[0] in OBJECT_STORES else {}


def fixed_folder(pattern: str) -> str | None:
    """The part of a pattern before its first wildcard (`*`, `?`, `[`), up to a slash; `None` when it has none."""
    wildcard = _WILDCARD.search(pattern)
    return pattern[: pattern.rfind("/", 0, wildcard.start()) + 1] if wildcard else None
