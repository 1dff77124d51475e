"""The imports of a flow's code, followed through its own files without running any.

Modules are searched as a worker does: in the flow's folder, then in `sys.path`. Code that changes where modules are found can
find more; then a module is never called missing.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from prefect_batchflow.definition.flow import Entry, left_out
from prefect_batchflow.errors.packages import distribution_of, how_to_install, is_installed
from prefect_batchflow.execution.program.dag_loader import PROMPTFLOW_TOOLS
from prefect_batchflow.promptflow_shim.finder import missing_text, replaced_text
from prefect_batchflow.promptflow_shim.names import PROVIDED, REPLACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.program.source_code import SourceCode
    from prefect_batchflow.execution.program.statements import Reach, SourceImport

    ImportLevel = Literal["stops", "unsure", "note"]
    Found = tuple[ImportLevel, str, str]
    """Level, place and text of a finding."""

_LEVELS: Final[dict[Reach, ImportLevel]] = {"always": "stops", "maybe": "unsure", "handled": "note"}
_RANKS: Final[dict[Reach, int]] = {"handled": 0, "maybe": 1, "always": 2}
MOST_FOLDERS: Final = 2_000
"""How many folders are searched for a module that changed search paths may find."""
_REPLACED_NAMES: Final = frozenset(f"{module}.{name}" for module, names in REPLACED.items() for name in names)


class _Located:
    """Where a module is: its files in the flow's folder, and what is missing of it."""

    def __init__(self) -> None:
        self.own: list[tuple[Path, str]] = []
        """The flow's files that importing it runs, each with its module."""
        self.missing = ""
        """The part of its name that was not found."""
        self.is_sure = True
        """Whether nothing but a changed search path can have the missing part."""
        self.is_namespace = False
        self.is_own = False
        """Whether its last part is a file of the flow."""


class ImportCheck:
    """Follows the imports of a flow.

    Args:
        flow: The flow, with its includes merged.
        code: Reads a file; `None` if that is not possible, which is not reported here.
    """

    def __init__(self, flow: Flow, code: Callable[[Path], SourceCode | None]) -> None:
        self._flow = flow
        self._code = code
        self._folder = flow.working_dir.resolve()
        self._search: list[str] = [str(self._folder), *sys.path]
        self._followed: dict[Path, Reach] = {}
        self._waiting: list[tuple[Path, str, Reach]] = []
        self._missing: dict[str, list[tuple[Reach, str, str, bool]]] = {}
        """By package to install: reach, place, module, and whether it is certain."""
        self._others: list[Found] = []
        self._changes_path = False
        self._has_promptflow = is_installed("promptflow.core")

    def findings(self) -> Iterator[Found]:
        """Every module and name that the flow's code imports and does not get; each package once."""
        self._start()
        self._follow()
        if self._changes_path:
            self._follow_elsewhere()
        for distribution, records in self._missing.items():
            sure = [record for record in records if record[3] and not self._changes_path]
            reach, place, module, is_sure = max(sure or records, key=lambda record: _RANKS[record[0]])
            level = _LEVELS[reach]
            text = f"The module '{module}' is not installed here and not in {self._folder}. "
            if module.partition(".")[0] in sys.stdlib_module_names:
                text += "This Python comes without it."
            elif level == "stops" and (self._changes_path or not is_sure):
                level = "unsure"
                text += f"The flow's code may find it elsewhere: check with --import. If it does not: {_lower(module)}"
            else:
                text += how_to_install(module)
            others = [record[1] for record in records if record[1] != place]
            if others:
                shown = ", ".join(dict.fromkeys(others[:3]))
                text += f". Also imported in {shown}{f' and {len(others) - 3} more places' * (len(others) > 3)}"
            yield level, place, text
            del distribution
        yield from self._others

    # --- following ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        program, folder = self._flow.program, self._flow.working_dir
        if isinstance(program, Entry):
            if program.pickled is not None or program.script is not None:
                return  # its modules are imported already
            if program.module.endswith(".py"):
                if program.file is not None:
                    self._enqueue(program.file.resolve(), self._name_of(program.file.resolve()), "always")
            else:
                self._import(program.module, f"entry '{program.attribute}'", "always")
            return
        for file in program.code(folder):
            self._enqueue(file, self._name_of(file), "always")
        for node in program.nodes:
            if node.module.startswith("promptflow.") and node.module not in PROMPTFLOW_TOOLS:
                self._of_promptflow(node.module, "", f"node '{node.name}'", "always")
            elif node.module and node.module not in PROMPTFLOW_TOOLS:
                self._import(node.module, f"node '{node.name}'", "always")

    def _name_of(self, file: Path) -> str:
        """The name by which a worker imports a file, if it has one: the folders above it are its packages."""
        parts = file.relative_to(self._folder).with_suffix("").parts if file.is_relative_to(self._folder) else ()
        return ".".join(parts) if all(part.isidentifier() for part in parts) else ""

    def _enqueue(self, file: Path, module: str, reach: Reach) -> None:
        known = self._followed.get(file)
        if known is None or _RANKS[reach] > _RANKS[known]:
            self._followed[file] = reach
            self._waiting.append((file, module, reach))

    def _follow(self) -> None:
        while self._waiting:
            file, module, reach = self._waiting.pop(0)
            if file.suffix != ".py" or (code := self._code(file)) is None:
                continue
            self._changes_path |= code.changes_path
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            for imported in code.imports:
                less = min(reach, imported.reach, key=lambda each: _RANKS[each])
                place = f"{self._place_of(file)}, line {imported.line}"
                self._of_import(imported, package, place, less)
            self._of_replaced(code, file, reach)

    def _follow_elsewhere(self) -> None:
        """Follow modules that are missing, but are somewhere in the flow's folder: its code can have made it a search path."""
        folders = list(self._folders())
        while True:
            found = False
            for distribution in list(self._missing):
                for record in list(self._missing[distribution]):
                    reach, _, module, _ = record
                    first = module.partition(".")[0]
                    # Only new folders: where it was searched before, a part of it is missing.
                    new = (folder for folder in folders if folder not in self._search)
                    home = next((folder for folder in new if PathFinder.find_spec(first, [folder]) is not None), None)
                    if home is not None:
                        self._missing[distribution].remove(record)
                        self._search.append(home)
                        self._import(module, record[1], reach)
                        found = True
                if not self._missing.get(distribution):
                    self._missing.pop(distribution, None)
            if not found:
                return
            self._follow()

    def _folders(self) -> Iterator[str]:
        """The folders of the flow's files, all below the flow's folder, its parents and the folders beside it."""
        yield from (str(file.parent) for file in self._followed)
        folders = [str(self._folder)]
        for number, current in enumerate(folders):
            if number >= MOST_FOLDERS:
                break
            yield current
            with os.scandir(current) as entries:
                folders += sorted(e.path for e in entries if e.is_dir(follow_symlinks=False) and not left_out(e))
        for parent in list(self._folder.parents)[:2]:
            yield str(parent)
            with contextlib.suppress(OSError), os.scandir(parent) as entries:
                yield from sorted(e.path for e in entries if e.is_dir(follow_symlinks=False) and not left_out(e))

    # --- one import --------------------------------------------------------------------------------------------------

    def _of_import(self, imported: SourceImport, package: str, place: str, reach: Reach) -> None:
        module, name = imported.module, imported.name
        if imported.level:
            base = package.split(".") if package else []
            if imported.level > len(base):
                text = (
                    f"'from {'.' * imported.level}{module} import {name}' needs a package, but this file is imported by "
                    "itself. Import the module by its name from the flow's folder."
                )
                self._others.append((_LEVELS[reach], place, text))
                return
            base = base[: len(base) - imported.level + 1]
            module = ".".join([*base, module] if module else base)
        if module.partition(".")[0] == "promptflow":
            self._of_promptflow(module, name, place, reach)
        else:
            self._import(module, place, reach, name)

    def _import(self, module: str, place: str, reach: Reach, name: str = "") -> None:
        located = self._located(module)
        for file, its_module in located.own:
            self._enqueue(file, its_module, reach)
        if located.missing:
            self._lacks(located.missing, module, name, place, reach, is_sure=located.is_sure)
            return
        if not name or name == "*" or name.startswith("__"):
            return
        if located.is_namespace:
            inner = self._located(f"{module}.{name}")
            for file, its_module in inner.own:
                self._enqueue(file, its_module, reach)
            if inner.missing:
                self._lacks(inner.missing, inner.missing, "", place, reach, is_sure=inner.is_sure)
        elif located.is_own:
            self._of_own_name(located.own[-1], name, place, reach)
        elif module.partition(".")[0] in sys.stdlib_module_names and not _python_has(module, name):
            text = f"cannot import '{name}' from '{module}' of Python {platform.python_version()}. Correct the name."
            self._others.append((_LEVELS[reach], place, text))

    def _lacks(self, missing: str, module: str, name: str, place: str, reach: Reach, *, is_sure: bool) -> None:
        # Where a name is shared by packages, such as azure, the package's name takes more of the module's.
        full = f"{module}.{name}" if name and "." not in module else module
        shown = (
            full if missing == full.partition(".")[0] and distribution_of(full) != distribution_of(missing) else missing
        )
        self._missing.setdefault(distribution_of(shown), []).append((reach, place, shown, is_sure))

    def _of_own_name(self, own: tuple[Path, str], name: str, place: str, reach: Reach) -> None:
        file, module = own
        code = self._code(file)
        if code is None or code.binds(name):
            return
        inner = self._located(f"{module}.{name}")
        if not inner.missing:
            for found, its_module in inner.own:
                self._enqueue(found, its_module, reach)
            return
        there = ", ".join(code.functions()) or "no function or class"
        text = f"cannot import '{name}' from {file}, which defines {there}. Correct the name."
        self._others.append((_LEVELS[reach], place, text))

    def _located(self, module: str) -> _Located:
        located = _Located()
        parts = module.split(".")
        first = parts[0]
        if first in sys.stdlib_module_names or first in sys.builtin_module_names:
            # A file of the flow with this name is imported only if no other code has imported Python's own before.
            if first not in sys.builtin_module_names and not is_installed(first, [str(self._folder)]):
                located.missing = first
            return located
        search = self._search
        for number, part in enumerate(parts):
            spec = PathFinder.find_spec(part, search)
            if spec is None:
                if number or not is_installed(first):
                    located.missing = ".".join(parts[: number + 1])
                    located.is_sure = not number or located.is_namespace or located.is_own
                return located
            located.is_namespace = spec.origin is None
            file = Path(spec.origin).resolve() if spec.has_location and spec.origin else None
            located.is_own = file is not None and self._is_own(file)
            if located.is_own and file is not None:
                located.own.append((file, ".".join(parts[: number + 1])))
            search = list(spec.submodule_search_locations or [])
        return located

    def _is_own(self, file: Path) -> bool:
        """Whether it belongs to the flow: below its folder or a folder that its code can have added, but not installed."""
        if "site-packages" in file.parts or "dist-packages" in file.parts:
            return False
        added: list[str] = self._search[len(sys.path) + 1 :]
        return any(file.is_relative_to(folder) for folder in (str(self._folder), *added))

    # --- promptflow --------------------------------------------------------------------------------------------------

    def _of_promptflow(self, module: str, name: str, place: str, reach: Reach) -> None:
        if self._has_promptflow:
            return
        path = f"{module}.{name}" if name else module
        provided = module in PROVIDED and (not name or name == "*" or name in PROVIDED[module])
        if provided or path in PROVIDED or path in _REPLACED_NAMES:
            return
        if module not in PROVIDED and is_installed(module):
            return
        self._others.append((_LEVELS[reach], place, missing_text(path)))

    def _of_replaced(self, code: SourceCode, file: Path, reach: Reach) -> None:
        """Names that can be imported, and raise an error when they are used."""
        if self._has_promptflow:
            return
        used = code.uses(_REPLACED_NAMES)
        for path, (line, its_reach) in used.items():
            less = min(reach, its_reach, key=lambda each: _RANKS[each])
            place = f"{self._place_of(file)}, line {line}"
            self._others.append((_LEVELS[less], place, replaced_text(path)))
        for imported in code.imports:
            path = f"{imported.module}.{imported.name}"
            if path in _REPLACED_NAMES and path not in used and not imported.level:
                place = f"{self._place_of(file)}, line {imported.line}"
                self._others.append(
                    ("note", place, f"{path} can be imported, and raises when used: {replaced_text(path)}")
                )

    def _place_of(self, file: Path) -> str:
        return str(file.relative_to(self._folder)) if file.is_relative_to(self._folder) else str(file)


def _python_has(module: str, name: str) -> bool:
    """Whether a module of Python has a name; true if it is not imported here, because importing can have effects."""
    found = sys.modules.get(module)
    if found is None and module in sys.builtin_module_names:
        found = importlib.import_module(module)
    if found is None or hasattr(found, name):
        return True
    return PathFinder.find_spec(name, list(getattr(found, "__path__", ()))) is not None


def _lower(module: str) -> str:
    text = how_to_install(module)
    return text[:1].lower() + text[1:]
