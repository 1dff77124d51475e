"""Changing a package at its import, so that a worker does not import what a flow does not use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_waiting: dict[str, list[Callable[[ModuleType], None]]] = {}


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action` with a module: now if it is imported already, otherwise at the end of its import."""
    if (module := sys.modules.get(name)) is not None:
        action(module)
        return
    actions = _waiting.setdefault(name, [])
    if action not in actions:
        actions.append(action)
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds the awaited modules where all others are found, and runs their actions after them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not _Finder)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for action in _waiting.pop(name, ()):
                    action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
