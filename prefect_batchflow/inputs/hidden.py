"""Hidden files: what editors, notebooks and archivers leave beside data, such as `.ipynb_checkpoints/` and `__MACOSX/`.

As for Spark and pyarrow, a file or folder is hidden if its name begins with `.` or `_`. A `_` in the name of a partition
(`_day=1`) hides nothing. As in a shell, a pattern reads hidden files only if its own part begins with the same character.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder is a hidden one."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def is_below_hidden(path: str) -> bool:
    """Whether a path, relative to the folder that was given, has a hidden part."""
    return any(map(is_hidden, path.split("/")))


def is_named_by(pattern: str, path: str) -> bool:
    """Whether a pattern names every hidden part of a path that it matches. Both are relative to the same folder."""
    return _is_named(pattern.strip("/").split("/"), path.strip("/").split("/"))


def _is_named(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not parts and all("**" in part for part in pattern)
    first, name = pattern[0], parts[0]
    if first == "**":
        return _is_named(pattern[1:], parts) or (not is_hidden(name) and _is_named(pattern, parts[1:]))
    if not fnmatchcase(name, first) or (is_hidden(name) and not _begins_with(first, name[0])):
        return False
    return _is_named(pattern[1:], parts[1:])


def _begins_with(pattern: str, character: str) -> bool:
    """Whether a part of a pattern begins with a character, or with a choice that has it."""
    choice = pattern[1 : pattern.find("]", 2)] if pattern.startswith("[") else ""
    return pattern.startswith(character) or (character in choice and choice[0] not in "!^")


def left_out_note(paths: Iterable[str]) -> str:
    """Give the note about hidden files that were left out; empty if there are none."""
    names = sorted(paths)
    if not names:
        return ""
    what = "hidden file is" if len(names) == 1 else "hidden files are"
    return f"{len(names)} {what} left out, such as {names[0]}: a name begins with . or _. To read such a file, name it."
