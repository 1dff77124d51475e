"""Where an image may be read from: below the folder of its data, or from a public address."""

from __future__ import annotations

import os
import re
import stat
from urllib.parse import unquote

from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images.image import guess_mime_type
from prefect_batchflow.inputs.formats import shorten

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""Of one image, read or fetched."""


def read_within(path: str, folder: str | None) -> bytes:
    """Read a file below a folder, which neither `..`, nor an absolute path, nor a link may leave.

    Args:
        path: Relative to the folder, or absolute and below it.
        folder: A folder of this machine, or a URL.

    Raises:
        InvalidImageInput: It leads out of the folder, is not there, is no file, or is too large.
    """
    if folder is None:
        raise InvalidImageInput(
            f"The path {shorten(path)} belongs to data that lies in no folder, such as a pipe's. Give data in a file, or the "
            "image as base64 text."
        )
    try:
        return _read_local(path, folder) if _is_local(folder) else _read_remote(path, folder)
    except InvalidImageInput:
        raise
    except FileNotFoundError:
        raise InvalidImageInput(
            f"No image {shorten(path)} in {shown_folder(folder)}. Paths are relative to the folder of the data."
        ) from None
    except Exception as exc:
        raise InvalidImageInput(
            f"The image {shorten(path)} in {shown_folder(folder)} cannot be read: ({type(exc).__name__}) {exc}."
        ) from exc


def shown_folder(folder: str) -> str:
    """A folder for messages."""
    if "://" not in folder:
        return folder
    from prefect_batchflow.images.fetch import shown_url

    return shown_url(folder)


def place_within(path: str, folder: str) -> str:
    """Give the place of a file below a folder: an absolute path, or a URL where the folder is one. Nothing is read.

    Raises:
        InvalidImageInput: It leads out of the folder.
    """
    return _local_within(path, folder)[0] if _is_local(folder) else _url_within(path, folder)


def _local_within(path: str, folder: str) -> tuple[str, str]:
    """An absolute path, and the same with links followed."""
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
    # Links were followed above; none may have come into the last place since, and a pipe must not hold the line.
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidImageInput(f"{shorten(path)} in {folder} is no file. Give the path of an image.")
        return _within_limit(file.read(MAX_IMAGE_BYTES + 1), path)


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

    from prefect_batchflow.inputs.places import fresh_listings

    file_system, place = url_to_fs(url, **fresh_listings(url))
    with file_system.open(place, "rb") as file:
        return _within_limit(file.read(MAX_IMAGE_BYTES + 1), path)


def _leads_out(path: str, folder: str) -> InvalidImageInput:
    return InvalidImageInput(
        f"The path {shorten(path)} leads out of {shown_folder(folder)}, where its images must be. Put the image below that "
        "folder."
    )


def _within_limit(content: bytes, path: str) -> bytes:
    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidImageInput(
            f"The image {shorten(path)} is larger than {MAX_IMAGE_BYTES:,} bytes. Give a smaller one."
        )
    return content


def fetched(url: str) -> bytes:
    """Give the image at an address.

    Raises:
        InvalidImageInput: It cannot be fetched, or is no image.
    """
    # Here, and not before: what speaks TLS takes a worker longer to import than most images to load.
    from prefect_batchflow.images.fetch import fetch, shown_url

    content, content_type = fetch(url, MAX_IMAGE_BYTES)
    if not content_type.startswith("image/") and guess_mime_type(content) is None:
        raise InvalidImageInput(f"{shown_url(url)} is {content_type}, expected an image. Check the address.")
    return content
