"""Importing a flow's Python files and the caller's script, and reporting what they raise.

A file is imported under the name that `import` would give it, so that pickle finds its functions and classes, also in the
processes that a worker starts. A file that has no such name gets a made-up one, which these processes resolve as well.
"""

from __future__ import annotations

import contextlib
import importlib
import keyword
import os
import re
import sys
import traceback
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.packages import how_to_install
from prefect_batchflow.exceptions import InvalidOptionError, PythonLoadError
from prefect_batchflow.execution.program.made_up import module_for
from prefect_batchflow.execution.program.user_errors import describe, exception_text, passes_through

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect_batchflow.definition.flow import Script

_SCRIPT = "__mp_main__"
"""The name of the caller's main module in a worker. It is multiprocessing's, so that its processes find it, too."""
_loads: list[str] = []
"""The flows that this worker loads now."""
_replaced: list[ModuleType] = []
"""Keeps the worker's own main module alive."""


def import_file(file: Path, whose: str) -> ModuleType:
    """Import a file, once. Its name in `sys.modules` is the one by which `import` finds it, if there is one."""
    file = file.resolve()
    if not file.is_file():
        raise PythonLoadError(f"The source of {whose} does not exist: {file}.")
    with loading(f"{file}, the source of {whose}, cannot be imported"):
        name = _real_name(file)
        if name is not None:
            return importlib.import_module(name)
        return importlib.import_module(module_for(file))


@contextmanager
def loading_flow(name: str) -> Iterator[None]:
    """Note that a worker loads a flow, so that its files cannot start a run when they are imported."""
    _loads.append(name)
    try:
        yield
    finally:
        _loads.pop()


def is_loading() -> bool:
    """Whether a worker loads a flow now."""
    return bool(_loads)


def later(find: Callable[[], Any], name: str) -> Any:
    """What stands for a public name that needs Prefect."""
    from prefect_batchflow.execution.program.later import Later

    return Later(find, name, refuse_run_while_loading)


def refuse_run_while_loading() -> None:
    """Refuse a run that a flow's file starts when a worker imports it; it would start workers that import the file.

    Raises:
        InvalidOptionError: A worker loads a flow now.
    """
    if _loads:
        raise InvalidOptionError(
            f"The code of the flow '{_loads[-1]}' starts a batch run when a worker imports it. Start the run below "
            '`if __name__ == "__main__":` in that file.'
        )


def _real_name(file: Path) -> str | None:
    """The name by which `import` finds this very file from the flow's folder, first on `sys.path`; `None` if there is none."""
    folder = Path(sys.path[0] or ".").resolve() if sys.path else None
    if folder is None or not file.is_relative_to(folder) or file.suffix != ".py" or file.name == "__init__.py":
        return None
    parts = file.relative_to(folder).with_suffix("").parts
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        return None
    name = ".".join(parts)
    loaded = sys.modules.get(name)
    if loaded is not None:
        return name if _has_file(loaded, file) else None
    found = PathFinder.find_spec(parts[-1], [str(file.parent)])
    if found is None or found.origin is None or Path(found.origin).resolve() != file:
        return None  # a package of this name is beside it
    # Whoever imports a module of this name later, must not get the flow's instead of the standard library's.
    if parts[0] in sys.stdlib_module_names or (len(parts) > 1 and not _can_be_in(parts[:-1], folder)):
        return None
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    return None if PathFinder.find_spec(parts[0], others) is not None and not _is_own(parts[0], folder) else name


def _has_file(module: ModuleType, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return bool(found) and Path(str(found)).resolve() == file


def _can_be_in(packages: tuple[str, ...], folder: Path) -> bool:
    """Whether the folders above a file can be its packages: they run no code of their own, and nothing else has their name."""
    for end in range(1, len(packages) + 1):
        here = folder.joinpath(*packages[:end])
        loaded = sys.modules.get(".".join(packages[:end]))
        if loaded is None:
            if (here / "__init__.py").exists():
                return False
        elif str(here) not in map(str, getattr(loaded, "__path__", ())):
            return False
    return True


def _is_own(name: str, folder: Path) -> bool:
    """Whether another entry of `sys.path` finds a file of the flow's folder, as that of a caller does."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    spec = PathFinder.find_spec(name, others)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
    return any(place and Path(place).resolve().is_relative_to(folder) for place in places)


def import_script(script: Script) -> ModuleType:
    """Run the caller's script again, up to what it does as the main module, and give its globals the caller's values.

    Raises:
        PythonLoadError: It raises, or lacks a global that the flow uses and that cannot be sent.
    """
    known = sys.modules.get(_SCRIPT)
    if known is not None and _has_file(known, script.file):
        return known
    module = ModuleType(_SCRIPT)
    module.__file__ = str(script.file)
    module.__package__ = script.module.rpartition(".")[0]
    module.__spec__ = ModuleSpec(script.module, None, origin=str(script.file)) if script.module else None
    sys.argv[:] = script.argv
    _replaced.append(sys.modules["__main__"])
    sys.modules["__main__"] = sys.modules[_SCRIPT] = module
    with loading(f"{script.file}, which has the flow, cannot be imported by a worker"), _in_folder(script.folder):
        exec(compile(script.source, str(script.file), "exec", dont_inherit=True), vars(module))  # noqa: S102 - the caller's
    return module


def give_values(script: Script) -> None:
    """Give the globals of the script the caller's values, where they differ."""
    import pickle

    namespace = vars(sys.modules[_SCRIPT])
    with loading(f"The globals of {script.file} cannot be rebuilt"):
        values = pickle.loads(script.values)  # noqa: S301 - from the process that started this one
    for name, value in values.items():
        if name not in namespace or not _are_same(namespace[name], value):
            namespace[name] = value
    for name, reason in script.absent.items():
        if name not in namespace:
            raise PythonLoadError(
                f"{script.file} makes '{name}' below `if __name__ == \"__main__\":`, and it cannot be sent to a worker "
                f"process: {reason}. Make '{name}' above that line, and each worker makes its own."
            )


def _are_same(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # noqa: BLE001 - a user's class, or an array
        return False


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    before = os.getcwd()  # noqa: PTH109
    with contextlib.suppress(OSError):  # on another machine
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def own_objects(module: ModuleType) -> list[Any]:
    """The functions and classes that a module itself defines, each once, in the file's order."""
    return list(
        {
            id(value): value
            for value in vars(module).values()
            if callable(value)
            and getattr(value, "__module__", None) == module.__name__
            and hasattr(value, "__qualname__")
        }.values()
    )


def _missing_module(exc: ModuleNotFoundError) -> str:
    """The module that was imported. For `azure.identity`, Python names only `azure`, which many packages share."""
    missing = str(exc.name)
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        found = re.search(
            rf"from\s+({missing}(?:\.\w+)*)\s+import\s+\(?\s*(\w+)|import\s+({missing}(?:\.\w+)*)", frame.line or ""
        )
        if found is not None:
            return found[3] or (f"{found[1]}.{found[2]}" if found[1] == missing else found[1])
    return missing


@contextmanager
def loading(failed: str) -> Iterator[None]:
    """Turn what user code raises while it loads into a `PythonLoadError`; an interrupt passes."""
    try:
        yield
    except BaseException as exc:
        if passes_through(exc):
            raise
        hint = ""
        if isinstance(exc, ModuleNotFoundError) and not str(exc.name).startswith("promptflow"):
            hint = f". {how_to_install(_missing_module(exc))}, or put the module into the flow's folder"
        raise PythonLoadError(
            f"{failed}: ({type(exc).__name__}) {exception_text(exc)}{hint}",
            target="Executor",
            additional_info={"PythonLoadErrorDetails": describe(exc)},
        ) from exc
