"""What a run's flow consists of, as a manifest keeps it: hashes of its files and code, and versions of its packages."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

from prefect_batchflow.definition.flow import Entry
from prefect_batchflow.definition.flow_files import files_of
from prefect_batchflow.storage.manifest import differences, fingerprint
from prefect_batchflow.storage.surroundings import named_variables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.storage.manifest import Manifest

MOST_PARTS = 500
"""A manifest names the parts of a flow up to this many, because each listing of runs reads it."""
SHOWN_PARTS = 5
"""How many changed parts a message names."""
_IS_CODE = re.compile(r"(?:function|class|global) |the callable$")


@dataclass(frozen=True, slots=True)
class FlowPrint:
    """What a flow consists of."""

    parts: Mapping[str, str]
    """File, or part of code that is sent, to a short hash."""
    packages: Mapping[str, str]
    """Installed package that it imports, to its version."""
    variables: frozenset[str] = frozenset()
    """The environment variables that its yaml and prompty files refer to, without those of secrets."""
    uses_models: bool = False
    """Whether it has a .prompty file, whose model can come from the usual variables."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Its fingerprints in a manifest."""
        return {"flow": fingerprint(dict(self.parts)), "packages": fingerprint(dict(self.packages))}

    @property
    def named_parts(self) -> dict[str, str]:
        """The parts that a manifest keeps, so that a resume can name what has changed."""
        return dict(self.parts) if len(self.parts) <= MOST_PARTS else {}

    def details(self, before: Manifest) -> dict[str, str]:
        """Say what has changed in the flow and its packages since a manifest was written."""
        said = {}
        if before.flow_parts and (named := differences(before.flow_parts, self.named_parts)):
            kind = "code" if all(_IS_CODE.match(name) for name, _ in named) else "files"
            said["flow"] = f"the flow's {kind} changed ({listed([f'{name} {how}' for name, how in named])})"
        versions = [
            f"{name} {before.packages.get(name, 'absent')} → {self.packages.get(name, 'absent')}"
            for name, _ in differences(before.packages, self.packages)
        ]
        said["packages"] = f"the installed packages changed ({listed(versions)})"
        return said


def flow_print(flow: Flow, *, names: Iterable[str] = (), leave_out: Collection[Path] = ()) -> FlowPrint:
    """Read and hash everything that a flow consists of; the arguments are those of `files_of`."""
    found = files_of(flow, names=names, leave_out=leave_out)
    base = flow.working_dir.resolve()
    parts = {_shown(file, base): _digest(file) for file in found.files}
    if isinstance(flow.program, Entry):
        parts |= flow.program.code_parts
    variables = frozenset(name for file in found.files for name in _variables_in(file))
    uses_models = any(file.suffix == ".prompty" for file in found.files)
    return FlowPrint(parts, package_versions(found.packages), variables, uses_models)


def _variables_in(file: Path) -> list[str]:
    if file.suffix not in (".yaml", ".yml", ".prompty", ".json"):
        return []
    try:
        return list(named_variables(file.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return []


def package_versions(modules: Iterable[str]) -> dict[str, str]:
    """The installed packages that have these modules, and their versions."""
    versions, unknown = {}, []
    for module in modules:
        try:
            versions[module] = metadata.version(module)
        except (metadata.PackageNotFoundError, ValueError):
            unknown.append(module)
    for module in unknown:
        versions |= _packages_of(module)
    return dict(sorted(versions.items()))


@functools.cache
def _packages_of(module: str) -> dict[str, str]:
    """The packages with a module, and their versions. `metadata.packages_distributions` parses all files of all packages."""
    if not module or PathFinder.find_spec(module) is None:
        return {}
    has_file = re.compile(rf"^{re.escape(module)}(/|\.[\w.-]+,)", re.MULTILINE)
    found = {}
    for package in metadata.distributions():
        named = package.read_text("top_level.txt")
        if module in named.split() if named else has_file.search(package.read_text("RECORD") or ""):
            found[package.metadata["Name"]] = package.version
    return found


def listed(texts: list[str]) -> str:
    """The first changes, and how many more there are."""
    more = f" and {len(texts) - SHOWN_PARTS} more" if len(texts) > SHOWN_PARTS else ""
    return f"{', '.join(texts[:SHOWN_PARTS])}{more}"


def _shown(file: Path, base: Path) -> str:
    path = file.relative_to(base) if file.is_relative_to(base) else file
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    except FileNotFoundError:
        return "absent"
    except OSError:
        return "unreadable"
