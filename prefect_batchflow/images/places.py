"""Where an image can be read from: its data's folder, or a public address."""

from __future__ import annotations

import os
import re
import stat
from urllib.parse import unquote

from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images.image import guess_mime_type
from prefect_batchflow.inputs.formats import shorten
from prefect_batchflow.inputs.places import fresh_listings, shown_url

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""The size limit of one image, read or fetched."""


def read_within(path: str, folder: str | None) -> bytes:
    """Read a file inside a folder; `..`, absolute paths and links cannot leave the folder.

    Args:
        path: Relative to the folder, or absolute and inside it.
        folder: A local folder, or a URL; `None` if the data has no folder.

    Raises:
        InvalidImageInput: The file is outside the folder, missing, not a regular file, or too large.
    """
    if folder is None:
        raise InvalidImageInput(
            f"The path {shorten(path)} cannot be found, because this data has no folder (it comes from a pipe, for example). "
            "Put the data in a file, or give the image as base64 text."
        )
    try:
        content = _read_local(path, folder) if _is_local(folder) else _read_remote(path, folder)
    except InvalidImageInput:
        raise
    except FileNotFoundError:
        raise InvalidImageInput(
            f"There is no image {shorten(path)} in {shown_url(folder)}. Paths are relative to the data's folder."
        ) from None
    except Exception as exc:
        raise InvalidImageInput(
            f"The image {shorten(path)} in {shown_url(folder)} cannot be read: ({type(exc).__name__}) {exc}."
        ) from exc
    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidImageInput(
            f"The image {shorten(path)} is larger than {MAX_IMAGE_BYTES:,} bytes. Give a smaller one."
        )
    return content


def place_within(path: str, folder: str) -> str:
    """Give the full path of a file inside a folder, or its URL if the folder is one; nothing is read.

    Raises:
        InvalidImageInput: The path leads out of the folder.
    """
    return _local_within(path, folder)[0] if _is_local(folder) else _url_within(path, folder)


def _local_within(path: str, folder: str) -> tuple[str, str]:
    """Give the absolute path, and the same path with links followed."""
    root = os.path.realpath(re.sub(r"^\w+://", "", folder))
    place = os.path.join(root, path)  # noqa: PTH118 - an absolute path counts as it is
    target = os.path.realpath(place)
    if not target.startswith(root.rstrip("/") + "/"):
        raise _leads_out(path, folder)
    return place, target


def _is_local(folder: str) -> bool:
    return "://" not in folder or folder.startswith(("file://", "local://"))


def _read_local(path: str, folder: str) -> bytes:
    _, target = _local_within(path, folder)
    # Links were followed above. O_NOFOLLOW refuses a link made since then; with O_NONBLOCK a pipe cannot hold the line.
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidImageInput(f"{shorten(path)} in {folder} is not a file. Give the path of an image.")
        return file.read(MAX_IMAGE_BYTES + 1)


def _url_within(path: str, folder: str) -> str:
    folder = folder.rstrip("/")
    inner = path.removeprefix(f"{folder}/")
    if inner.startswith("/") or "://" in inner or "::" in inner or ".." in re.split(r"[/\\]", unquote(inner)):
        raise _leads_out(path, folder)
    return f"{folder}/{inner}"


def _read_remote(path: str, folder: str) -> bytes:
    url = _url_within(path, folder)
    if url.startswith(("http://", "https://")):
        return fetched(url)
    from fsspec.core import url_to_fs

    file_system, place = url_to_fs(url, **fresh_listings(url))
    with file_system.open(place, "rb") as file:
        return bytes(file.read(MAX_IMAGE_BYTES + 1))


def _leads_out(path: str, folder: str) -> InvalidImageInput:
    return InvalidImageInput(
        f"The path {shorten(path)} leads out of {shown_url(folder)}. Put the image inside that folder."
    )


def fetched(url: str) -> bytes:
    """Fetch the image at an address.

    Raises:
        InvalidImageInput: It cannot be fetched, or is not an image.
    """
    # Imported here, because importing TLS takes a worker longer than loading most images.
    from prefect_batchflow.images.fetch import fetch

    content, content_type = fetch(url, MAX_IMAGE_BYTES)
    if not content_type.startswith("image/") and guess_mime_type(content) is None:
        raise InvalidImageInput(f"{shown_url(url)} is {content_type}, expected an image. Check the address.")
    return content
