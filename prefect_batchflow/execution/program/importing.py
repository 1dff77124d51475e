"""Importing a flow's Python files, and reporting what they raise."""

from __future__ import annotations

import os
import sys
import zlib
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import PythonLoadError
from prefect_batchflow.execution.program.user_errors import describe, exception_text, passes_through

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType


def import_file(file: Path, whose: str) -> ModuleType:
    """Import a file under a unique name in `sys.modules`, so that dataclasses and pickle find it."""
    stem = "".join(character if character.isalnum() else "_" for character in file.stem)
    name = f"batchflow_{stem}_{zlib.crc32(os.fsencode(file)):08x}"
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise PythonLoadError(f"The source of {whose} does not exist: {file}.")
    module = module_from_spec(spec)
    sys.modules[name] = module
    with loading(f"{file}, the source of {whose}, cannot be imported"):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


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
            hint = (
                f". Install the package that has '{exc.name}' in this Python, or put the module into the flow's folder"
            )
        raise PythonLoadError(
            f"{failed}: ({type(exc).__name__}) {exception_text(exc)}{hint}",
            target="Executor",
            additional_info={"PythonLoadErrorDetails": describe(exc)},
        ) from exc
