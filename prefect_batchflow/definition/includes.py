"""`additional_includes`: files and folders from elsewhere, merged with the flow's folder into a copy for the run."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import left_out
from prefect_batchflow.exceptions import FlowDefinitionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_batchflow.definition.document import Problems

MOST_FILES = 10_000
MOST_BYTES = 1024**3
"""Limits of a merged copy: the flow's folder and its includes together."""


def read_includes(document: dict[str, Any], folder: Path, problems: Problems) -> tuple[Path, ...]:
    """Read the paths under `additional_includes`, relative to the flow's folder; each must exist.

    If `x.zip` does not exist but a folder `x` does, the folder is packed as `x.zip`.
    """
    given = document.get("additional_includes") or []
    if not isinstance(given, list) or not all(isinstance(entry, str) and entry for entry in given):
        problems.add("top level", f"'additional_includes' should be a list of paths, found {given!r}.")
        return ()
    found = []
    for entry in given:
        path = Path(os.path.normpath(folder / entry))
        if not path.exists() and not _folder_to_pack(path):
            problems.add("top level", f"'additional_includes' names '{entry}', but {path} does not exist.")
        elif path == folder or path in folder.parents:
            text = f"'additional_includes' names '{entry}', which contains the flow's folder itself."
            problems.add("top level", text)
        else:
            found.append(path)
    return tuple(found)


def is_there(path: str, folder: Path, includes: Sequence[Path]) -> bool:
    """Whether the merged copy will have a file at this relative path."""
    first, *others = Path(path).parts or ("",)
    places = [include.joinpath(*others) for include in includes if include.name == first]
    return any(place.is_file() for place in [*places, folder / path])


def merge(folder: Path, includes: Iterable[Path], target: Path) -> list[str]:
    """Copy the flow's folder, and each include under its own name, into an empty folder; later files replace earlier ones.

    Hidden folders, caches and virtual environments are left out. Links to folders are not followed.

    Returns:
        Notes on replaced files, for people.

    Raises:
        FlowDefinitionError: The files exceed the limits, or one cannot be read.
    Source: promptflow-devkit `_sdk/_utilities/general_utils.py`, `_merge_local_code_and_additional_includes`.
    """
    copy = _Copy(folder, target)
    try:
        copy.add(folder, Path())
        for include in includes:
            packed = _folder_to_pack(include)
            if packed is not None:
                copy.pack(packed, Path(include.name))
            elif include.is_file():
                copy.add_file(include, Path(include.name), included=True)
            else:
                copy.add(include, Path(include.name), included=True)
    except OSError as exc:
        raise FlowDefinitionError(
            f"{folder}: the additional_includes cannot be merged: ({type(exc).__name__}) {exc}."
        ) from exc
    return copy.notes


class _Copy:
    """A copy in progress, within limits."""

    def __init__(self, flow: Path, target: Path) -> None:
        self.notes: list[str] = []
        self._flow, self._target = flow, target
        self._files = self._bytes = 0

    def add(self, folder: Path, place: Path, *, included: bool = False) -> None:
        for file in _files_below(folder):
            self.add_file(file, place / file.relative_to(folder), included=included)

    def add_file(self, file: Path, place: Path, *, included: bool = False) -> None:
        self._count(file)
        target = self._target / place
        if included and target.exists():
            self.notes.append(
                f"The additional include {file} replaces {place} from the flow's folder or an earlier include."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)

    def pack(self, folder: Path, place: Path) -> None:
        with zipfile.ZipFile(self._target / place, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for file in _files_below(folder):
                self._count(file)
                archive.write(file, file.relative_to(folder.parent))

    def _count(self, file: Path) -> None:
        self._files += 1
        self._bytes += file.stat().st_size
        if self._files > MOST_FILES or self._bytes > MOST_BYTES:
            raise FlowDefinitionError(
                f"{self._flow}: the flow's folder and its additional_includes exceed {MOST_FILES:,} files or "
                f"{MOST_BYTES // 1024**2:,} MiB at {file}. Include less, or keep data outside these folders."
            )


def _files_below(folder: Path) -> Iterator[Path]:
    """Regular files, in the same order on every file system."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_file():
            yield Path(entry.path)
        elif entry.is_dir(follow_symlinks=False) and not left_out(entry):
            yield from _files_below(Path(entry.path))


def _folder_to_pack(path: Path) -> Path | None:
    """The folder to pack as a zip that does not exist; `None` if there is none."""
    folder = path.with_suffix("")
    return folder if path.suffix == ".zip" and not path.exists() and folder.is_dir() else None
