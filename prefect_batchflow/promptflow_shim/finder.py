"""Gives the modules of promptflow that are mirrored here to `import`, and says what to do about the others."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from prefect_batchflow.tools.context import log_metric
from prefect_batchflow.tools.python import (
    DynamicList,
    FilePath,
    InputSetting,
    PromptTemplate,
    Secret,
    ToolProvider,
    tool,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

MIRRORED: dict[str, dict[str, Any]] = {
    "promptflow": {"tool": tool, "log_metric": log_metric, "ToolProvider": ToolProvider},
    "promptflow._core": {},
    "promptflow._core.tool": {
        "tool": tool,
        "ToolProvider": ToolProvider,
        "InputSetting": InputSetting,
        "DynamicList": DynamicList,
    },
    "promptflow._internal": {"tool": tool, "ToolProvider": ToolProvider},
    "promptflow.contracts": {},
    "promptflow.contracts.types": {"Secret": Secret, "PromptTemplate": PromptTemplate, "FilePath": FilePath},
    "promptflow.core": {"tool": tool, "log_metric": log_metric, "ToolProvider": ToolProvider},
    "promptflow.entities": {"InputSetting": InputSetting, "DynamicList": DynamicList},
}
"""Import path to names. A new mirror is a row here."""


class ShimFinder:
    """A finder for `sys.meta_path` and a loader in one: the modules are made, not read."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Give the spec of a mirrored module; refuse the rest of promptflow, pass on everything else."""
        if name in MIRRORED:
            spec = ModuleSpec(name, ShimFinder, origin=f"{__name__}.MIRRORED", is_package=True)  # type: ignore[arg-type]
            # Parts of promptflow may be installed by themselves, as promptflow-tracing is.
            spec.submodule_search_locations = _installed_folders() if name == "promptflow" else []
            return spec
        if not name.startswith("promptflow."):
            return None
        installed = PathFinder.find_spec(name, path)
        if installed is None:
            raise ModuleNotFoundError(_missing(name), name=name)
        return installed

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType | None:
        """Leave it to `import`: a plain module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Fill a mirrored module with its names."""
        module.__dict__.update(MIRRORED[module.__name__], __getattr__=_refuser(module.__name__))


def _refuser(module: str) -> Any:
    def refuse(name: str) -> Any:
        """Refuse a name that is not mirrored; `import` tries names beside submodules, hence the error's class."""
        # Inspection asks modules for any dunder, and `promptflow.core` is a submodule.
        if name.startswith("__") or f"{module}.{name}" in MIRRORED:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise ImportError(_missing(f"{module}.{name}"), name=module)

    return refuse


def _missing(name: str) -> str:
    provided = ", ".join(f"{module}.{found}" for module, names in MIRRORED.items() for found in names)
    return (
        f"prefect_batchflow does not provide {name}; there is {provided}. "
        f"Install promptflow itself (pip install promptflow-core), or take {name} out of the flow's code."
    )


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
        for name in MIRRORED:
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
