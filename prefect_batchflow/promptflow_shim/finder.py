"""Imports the mirrored modules of promptflow, and says what to use instead of the others."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import UnsupportedFeatureError
from prefect_batchflow.promptflow_shim.names import MODULE_HINTS, PROVIDED, REPLACED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

_PACKAGE = __name__.partition(".")[0]
_INSTALL = "install promptflow itself (pip install promptflow-core), or remove it from the flow's code."


FOR_PROCESSES = str(Path(__file__).with_name("for_processes"))
"""A folder for the end of `sys.path`, which gives the mirror to processes that have the path only."""


class ShimFinder:
    """Finder for `sys.meta_path` and loader in one: it makes the modules."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Give the spec of a mirrored module; refuse the rest of promptflow, leave other modules alone."""
        if not name.startswith("promptflow.") and name != "promptflow":
            return None
        # Parts of promptflow can be installed alone, such as promptflow-tracing. They come first.
        installed = PathFinder.find_spec(name, path) if name not in ("promptflow", "promptflow.core") else None
        if installed is not None and (installed.origin is not None or name not in PROVIDED):
            return installed
        if name not in PROVIDED:
            raise ModuleNotFoundError(missing_text(name), name=name)
        spec = ModuleSpec(name, ShimFinder, origin=f"{__name__}.ShimFinder", is_package=True)  # type: ignore[arg-type]
        spec.submodule_search_locations = _installed_folders() if name == "promptflow" else []
        return spec

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType | None:
        """Let `import` make a plain module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Make a mirrored module import its names on first use, so that a flow pays only for those it needs."""
        module.__dict__.update(__all__=sorted(PROVIDED[module.__name__]), __getattr__=_giver(module))


def _giver(module: ModuleType) -> Callable[[str], Any]:
    path = module.__name__

    def give(name: str) -> Any:
        """Import a mirrored name, refuse others. It is an `ImportError`, so that `import` stops there and shows the text."""
        if home := PROVIDED[path].get(name):
            where, _, what = home.partition(":")
            value = getattr(import_module(f"{_PACKAGE}.{where}"), what)
        elif name in REPLACED.get(path, {}):
            value = _StandIn(name, (), {"__module__": path})
        # Inspection tries any dunder, and `import` tries submodules such as `promptflow.core`.
        elif name.startswith("__") or f"{path}.{name}" in PROVIDED:
            raise AttributeError(f"module {path!r} has no attribute {name!r}")
        else:
            raise ImportError(missing_text(f"{path}.{name}"), name=path)
        setattr(module, name, value)
        return value

    return give


class _StandIn(type):
    """A stand-in class for an unsupported name: code can import it, annotate with it and inspect it, but not use it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedFeatureError(cls._refusal())

    def __getattr__(cls, name: str) -> Any:
        # Inspection tries any dunder.
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedFeatureError(cls._refusal())

    def _refusal(cls) -> str:
        known = next(base for base in cls.__mro__ if base.__name__ in REPLACED.get(base.__module__, {}))
        return replaced_text(f"{known.__module__}.{known.__name__}")


def replaced_text(name: str) -> str:
    """The message for the use of a name that can only be imported."""
    module, _, last = name.rpartition(".")
    return f"prefect_batchflow does not provide {name}. {REPLACED[module][last]}"


def missing_text(name: str) -> str:
    """The message for a name of promptflow that does not exist here."""
    parts = name.split(".")
    hints = (MODULE_HINTS.get(".".join(parts[:length])) for length in range(len(parts), 1, -1))
    hint = next(filter(None, hints), "")
    return f"prefect_batchflow does not provide {name}. " + (f"{hint} Or {_INSTALL}" if hint else _INSTALL.capitalize())


def install() -> bool:
    """Mirror promptflow unless it is installed; can be called repeatedly.

    Returns:
        Whether the mirror is in place; false if promptflow itself is installed.
    """
    if is_in_place():
        return True
    if _is_installed():
        return False
    # First in the list, because the path finder takes any folder called promptflow for it.
    sys.modules.pop("promptflow", None)
    sys.meta_path.insert(0, ShimFinder)
    return True


def is_in_place() -> bool:
    """Whether the mirror is in place."""
    return ShimFinder in sys.meta_path


def uninstall() -> None:
    """Remove the mirror, its modules, and its folder for other processes."""
    if FOR_PROCESSES in sys.path:
        sys.path.remove(FOR_PROCESSES)
    if ShimFinder in sys.meta_path:
        sys.meta_path.remove(ShimFinder)
        for name in PROVIDED:
            sys.modules.pop(name, None)


def _is_installed() -> bool:
    """Whether `promptflow.core` can be imported, without importing anything."""
    if "promptflow.core" in sys.modules:
        return True
    # Only the last part of the name: with the full name, the finder wants the parent imported.
    spec = PathFinder.find_spec("core", _installed_folders())
    return spec is not None and spec.origin is not None


def _installed_folders() -> list[str]:
    """The folders with parts of promptflow, a namespace package; any folder of that name counts as one."""
    spec = PathFinder.find_spec("promptflow", [entry for entry in sys.path if entry != FOR_PROCESSES])
    return list(spec.submodule_search_locations or []) if spec is not None else []
