"""Where an image can be read from: its data's folder, the run's image roots, or a public address."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images.image import guess_mime_type
from prefect_batchflow.inputs.formats import shorten
from prefect_batchflow.inputs.places import climbs, fresh_listings, shown_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.results.records import ImageFolders

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""The size limit of one image, read or fetched."""


def folders_of(folder: str | None, roots: Sequence[str]) -> ImageFolders:
    """Give the places of a source's images: its folder, then the run's image roots."""
    return (*([folder] if folder else []), *roots) if roots else folder


def read_within(path: str, folders: ImageFolders) -> bytes:
    """Read a file inside one of the folders; `..`, absolute paths and links cannot leave them all.

    Args:
        path: Relative to a folder, the first one that has it, or absolute and inside one.
        folders: Local folders or URLs; `None` if the data has no folder.

    Raises:
        InvalidImageInput: The file is outside the folders, missing, not a regular file, or too large.
    """
    places = _listed(folders)
    if not places:
        raise InvalidImageInput(
            f"The path {shorten(path)} cannot be found, because this data has no folder (it comes from a pipe, for example). "
            "Put the data in a file, give the image as base64 text, or name its folder in image_roots (--image-root)."
        )
    shown = " or ".join(map(shown_url, places))
    is_inside = is_led_out = False
    for folder in places:
        try:
            content = _read_local(path, folder, places) if _is_local(folder) else _read_remote(path, folder)
        except _OutsideError as exc:
            is_led_out |= exc.by_link
            continue
        except InvalidImageInput:
            raise
        except FileNotFoundError:
            is_inside = True
            continue
        except Exception as exc:
            raise InvalidImageInput(
                f"The image {shorten(path)} in {shown_url(folder)} cannot be read: ({type(exc).__name__}) {exc}."
            ) from exc
        if len(content) > MAX_IMAGE_BYTES:
            raise InvalidImageInput(
                f"The image {shorten(path)} is larger than {MAX_IMAGE_BYTES:,} bytes. Give a smaller one."
            )
        return content
    if is_led_out or not is_inside:
        raise _leads_out(path, places)
    raise InvalidImageInput(f"There is no image {shorten(path)} in {shown}. Paths are relative to the data's folder.")


def place_within(path: str, folders: ImageFolders) -> str:
    """Give the full path of a file inside one of the folders, or its URL if the folder is one; nothing is read.

    Of several folders it is the first that has the file, as far as this machine can see, else the first that it is inside.

    Raises:
        InvalidImageInput: The path leads out of the folders.
    """
    places = _listed(folders)
    inside = []
    is_led_out = False
    for folder in places:
        try:
            place = _local_within(path, folder, places)[0] if _is_local(folder) else _url_within(path, folder)
        except _OutsideError as exc:
            is_led_out |= exc.by_link
            continue
        if len(places) == 1 or ("://" not in place and os.path.exists(place)):  # noqa: PTH110
            return place
        inside.append(place)
    if is_led_out or not inside:
        raise _leads_out(path, places)
    return inside[0]


def _listed(folders: ImageFolders) -> tuple[str, ...]:
    return (folders,) if isinstance(folders, str) else folders or ()


class _OutsideError(Exception):
    """A path leads out of a folder, `by_link` if the path itself stays inside."""

    def __init__(self, *, by_link: bool = False) -> None:
        super().__init__()
        self.by_link = by_link


def _local_within(path: str, folder: str, allowed: Sequence[str]) -> tuple[str, str]:
    """Give the absolute path, and the same path with links followed. It can be in any of the allowed folders."""
    root = _real(folder)
    place = os.path.join(root, path)  # noqa: PTH118 - an absolute path counts as it is
    target = os.path.realpath(place)
    inside = tuple(_real(one).rstrip("/") + "/" for one in allowed if _is_local(one))
    if not target.startswith(inside):
        raise _OutsideError(by_link=os.path.normpath(place).startswith(inside))
    return place, target


def _real(folder: str) -> str:
    return os.path.realpath(re.sub(r"^\w+://", "", folder))


def _is_local(folder: str) -> bool:
    return "://" not in folder or folder.startswith(("file://", "local://"))


def _read_local(path: str, folder: str, allowed: Sequence[str]) -> bytes:
    _, target = _local_within(path, folder, allowed)
    # Links were followed above. O_NOFOLLOW refuses a link made since then; with O_NONBLOCK a pipe cannot hold the line.
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidImageInput(f"{shorten(path)} in {folder} is not a file. Give the path of an image.")
        return file.read(MAX_IMAGE_BYTES + 1)


def _url_within(path: str, folder: str) -> str:
    folder = folder.rstrip("/")
    inner = path.removeprefix(f"{folder}/")
    if inner.startswith("/") or "://" in inner or "::" in inner or climbs(inner):
        raise _OutsideError
    return f"{folder}/{inner}"


def _read_remote(path: str, folder: str) -> bytes:
    url = _url_within(path, folder)
    if url.startswith(("http://", "https://")):
        return fetched(url)
    from fsspec.core import url_to_fs

    file_system, place = url_to_fs(url, **fresh_listings(url))
    with file_system.open(place, "rb") as file:
        return bytes(file.read(MAX_IMAGE_BYTES + 1))


def _leads_out(path: str, folders: Sequence[str]) -> InvalidImageInput:
    return InvalidImageInput(
        f"The path {shorten(path)} leads out of {' and '.join(map(shown_url, folders))}. Put the image inside that folder, or "
        "allow the image's own folder with image_roots (--image-root FOLDER)."
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
