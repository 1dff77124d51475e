"""Where data and folders are: absolute local paths, and patterns."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from prefect_batchflow.exceptions import InvalidOptionError, InvalidUserData

if TYPE_CHECKING:
    from collections.abc import Iterable

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^{}]*)\})")
_NEVER_IN_URL = re.compile(r"[\x00-\x1f\x7f\\]")
_PASSWORD = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@:]*:(?=[^\s/?#]+@)|https?://(?=[^\s/?#@:]{16,}@))([^\s/?#]+)@", re.IGNORECASE
)
_SIGNATURE = re.compile(
    r"(?:(?:^|;)\s*(?:AccountKey|SharedAccessKey|SharedAccessSignature|Password|Pwd)"
    r"|[?&;](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-Signature|Signature|sig|token|access_token|sas|key|api[_-]key"
    r"|password|secret))=([^\s&;#'\"]+)",
    re.IGNORECASE,
)
"""Parts that let whoever has them in: presigned addresses, SAS tokens and connection strings of Azure, keys."""
_SHORTEST_PASSWORD = 8
_WILDCARD = re.compile(r"[*?\[]")
OBJECT_STORES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), "adlfs"),
}
"""Protocols of object stores, and the module that reaches them."""


def is_local_path(location: str) -> bool:
    """Whether it is a path, and not a URL or `-` (standard input)."""
    return "://" not in location and location != "-"


def absolute(path: str, base_dir: str | Path | None = None) -> str:
    """Make a path absolute, with `~` filled in. It is relative to the given or current folder. A URL stays as it is."""
    # os.path's expanduser, because pathlib's raises for a user that does not exist.
    return path if "://" in path else str(Path(base_dir or "", os.path.expanduser(path)).absolute())  # noqa: PTH111


def locate(place: str | Path, base_dir: str | Path | None = None) -> str:
    """Make the path of data absolute, as `absolute` does, with `$NAME` and `${NAME}` filled in too. `-` stays as it is.

    If the path exists exactly as written, a `$` in it is not a variable.

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
                f"{path}: the environment variable '{name}' is not set. Set it, or write out the path. If $ is part of "
                "the file's name, give a file:// URL."
            )
        return os.environ[name]

    if "$" in path and not os.path.lexists(absolute(path, base_dir)):
        path = _VARIABLE.sub(value, path)
    return absolute(path, base_dir)


def located_image_roots(roots: Iterable[str]) -> tuple[str, ...]:
    """Make the image roots absolute, and refuse one on this machine that is not a folder.

    Raises:
        InvalidOptionError: One is not a folder.
    """
    located = {root: locate(root) for root in roots}
    for root, place in located.items():
        # A variable can hold a secret, and the message must not show it to someone who only names the variable.
        is_shown = root != place and "$" not in root
        if not root.strip() or (is_local_path(place) and not Path(place).is_dir()):
            raise InvalidOptionError(
                f"image_roots: {root!r} is not a folder{f' (looked for {place})' * is_shown}. Give folders or URLs "
                "that hold the images that rows name."
            )
    return tuple(dict.fromkeys(located.values()))


def local_folder(folder: str) -> Path | None:
    """Give the folder of an `output_dir` on this machine, absolute; `None` if it is empty.

    Raises:
        InvalidOptionError: It is the URL of another place.
    """
    if not folder:
        return None
    if "://" in folder and not folder.startswith("file://"):
        raise InvalidOptionError(
            f"The output_dir {folder!r} is not a folder on this machine. Give a local folder. The run storage can be remote, "
            "and it has the outputs too."
        )
    return Path(absolute(folder.removeprefix("file://")))


def shown_url(url: str) -> str:
    """Give an address for messages: without credentials and query. A path stays as it is."""
    start, scheme, rest = url.partition("://")
    if not scheme:
        return url
    host, slash, path = rest.partition("/")
    return f"{start}://{host.rpartition('@')[2]}{slash}{path}".partition("?")[0].partition("#")[0][:200]


def secrets_in_url(text: str) -> set[str]:
    """The passwords and signatures in the addresses of a text, as they are written and decoded."""
    written = set(_PASSWORD.findall(text)) | set(_SIGNATURE.findall(text))
    return {secret for secret in written | set(map(unquote, written)) if len(secret) >= _SHORTEST_PASSWORD}


def without_credentials(value: Any) -> Any:
    """A place, or a list or mapping of places, with passwords and signatures in their URLs left out."""
    if isinstance(value, str):
        return _SIGNATURE.sub(_left_out, _PASSWORD.sub(_left_out, value)) if "://" in value else value
    if isinstance(value, Mapping):
        return {name: without_credentials(part) for name, part in value.items()}
    return [without_credentials(part) for part in value] if isinstance(value, list | tuple) else value


def _left_out(match: re.Match[str]) -> str:
    begin, end = match.span(1)
    return f"{match[0][: begin - match.start()]}…{match[0][end - match.start() :]}"


def climbs(path: str) -> bool:
    """Whether the path of a URL leads up, as any server or library reads it.

    Some decode twice, leave control characters out, or read a backslash as a slash.
    """
    decoded = unquote(unquote(path))
    return ".." in re.split(r"[/\\]", decoded) or _NEVER_IN_URL.search(decoded) is not None


def fresh_listings(url: str) -> dict[str, Any]:
    """Give the fsspec options that stop a URL's file system from caching listings.

    Object stores cache them for as long as the process lives. Then a file that someone else has written since is not found,
    even by its own name, and a file that has grown is read to its old length.
    """
    return {"use_listings_cache": False} if url.partition("://")[0] in OBJECT_STORES else {}


def fixed_folder(pattern: str) -> str | None:
    """Give the folders of a pattern before its first wildcard (`*`, `?`, `[`); `None` if it has no wildcard."""
    wildcard = _WILDCARD.search(pattern)
    return pattern[: pattern.rfind("/", 0, wildcard.start()) + 1] if wildcard else None
