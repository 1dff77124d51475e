"""Gives the modules of promptflow that are mirrored here to `import`, and says what to do about the others."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import UnsupportedFeatureError
from prefect_batchflow.promptflow_shim.names import MODULE_HINTS, PROVIDED, REPLACED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

_PACKAGE = __name__.partition(".")[0]
_INSTALL = "install promptflow itself (pip install promptflow-core), or take it out of the flow's code."


class ShimFinder:
    """A finder for `sys.meta_path` and a loader in one: the modules are made, not read."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Give the spec of a mirrored module; refuse the rest of promptflow, pass on everything else."""
        if not name.startswith("promptflow.") and name != "promptflow":
            return None
        # Parts of promptflow may be installed by themselves, as promptflow-tracing is; theirs come first.
        installed = PathFinder.find_spec(name, path) if name not in ("promptflow", "promptflow.core") else None
        if installed is not None and (installed.origin is not None or name not in PROVIDED):
            return installed
        if name not in PROVIDED:
            raise ModuleNotFoundError(_missing(name), name=name)
        spec = ModuleSpec(name, ShimFinder, origin=f"{__name__}.ShimFinder", is_package=True)  # type: ignore[arg-type]
        spec.submodule_search_locations = _installed_folders() if name == "promptflow" else []
        return spec

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType | None:
        """Leave it to `import`: a plain module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Let a mirrored module give its names when they are asked for: a flow pays for what it imports."""
        module.__dict__.update(__all__=sorted(PROVIDED[module.__name__]), __getattr__=_giver(module))


def _giver(module: ModuleType) -> Callable[[str], Any]:
    path = module.__name__

    def give(name: str) -> Any:
        """Import a name; refuse one that is not mirrored. `import` tries names beside submodules, hence the error's class."""
        if home := PROVIDED[path].get(name):
            where, _, what = home.partition(":")
            value = getattr(import_module(f"{_PACKAGE}.{where}"), what)
        elif name in REPLACED.get(path, {}):
            value = _StandIn(name, (), {"__module__": path})
        # Inspection asks modules for any dunder, and `promptflow.core` is a submodule.
        elif name.startswith("__") or f"{path}.{name}" in PROVIDED:
            raise AttributeError(f"module {path!r} has no attribute {name!r}")
        else:
            raise ImportError(_missing(f"{path}.{name}"), name=path)
        setattr(module, name, value)
        return value

    return give


class _StandIn(type):
    """A class in the place of what is not provided: may be imported, annotated with and asked about, never used."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedFeatureError(cls._refusal())

    def __getattr__(cls, name: str) -> Any:
        # Inspection asks classes for any dunder.
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedFeatureError(cls._refusal())

    def _refusal(cls) -> str:
        known = next(base for base in cls.__mro__ if base.__name__ in REPLACED.get(base.__module__, {}))
        hint = REPLACED[known.__module__][known.__name__]
        return f"prefect_batchflow does not provide {known.__module__}.{known.__name__}. {hint}"


def _missing(name: str) -> str:
    parts = name.split(".")
    hints = (MODULE_HINTS.get(".".join(parts[:length])) for length in range(len(parts), 1, -1))
    hint = next(filter(None, hints), "")
    return f"prefect_batchflow does not provide {name}. " + (f"{hint} Or {_INSTALL}" if hint else _INSTALL.capitalize())


def install() -> bool:
    """Mirror promptflow where it is not installed; to be called any number of times.

    Returns:
        Whether the mirror stands; false where promptflow itself is there.
    """
    if ShimFinder in sys.meta_path:
        return True
    if _is_installed():
        return False
    # First, since the path finder takes any folder called promptflow for it.
    sys.modules.pop("promptflow", None)
    sys.meta_path.insert(0, ShimFinder)
    return True


def uninstall() -> None:
    """Take the mirror away again, modules included."""
    if ShimFinder in sys.meta_path:
        sys.meta_path.remove(ShimFinder)
        for name in PROVIDED:
            sys.modules.pop(name, None)


def _is_installed() -> bool:
    """Whether `promptflow.core` can be imported, found out without importing anything."""
    if "promptflow.core" in sys.modules:
        return True
    # By its bare name: with the whole one, the finder wants its parent imported.
    spec = PathFinder.find_spec("core", _installed_folders())
    return spec is not None and spec.origin is not None


def _installed_folders() -> list[str]:
    """Where parts of promptflow are; it is a namespace package, and any folder of that name counts as one."""
    spec = PathFinder.find_spec("promptflow")
    return list(spec.submodule_search_locations or []) if spec is not None else []
