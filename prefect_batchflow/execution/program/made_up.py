"""The package of a flow's files that `import` finds by no name; each is a module of it.

A process that a node starts, with multiprocessing or joblib, imports this package by name. It finds the files by a variable
in its environment.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from importlib.util import spec_from_file_location
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from pathlib import Path

FILES_VARIABLE = "BATCHFLOW_MADE_UP_MODULES"
"""Module to file, as JSON."""
__path__: list[str] = []


def module_for(file: Path) -> str:
    """Give a file the name of a module of this package, for this process and those that it starts."""
    stem = "".join(character if character.isalnum() else "_" for character in file.stem)
    name = f"{__name__}.{stem}_{zlib.crc32(os.fsencode(file)):08x}"
    os.environ[FILES_VARIABLE] = json.dumps({**_files(), name: str(file)})
    return name


def _files() -> dict[str, str]:
    return dict(json.loads(os.environ.get(FILES_VARIABLE, "{}")))


class MadeUpModules:
    """Finds the modules of this package."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As import asks for it."""
        file = _files().get(name) if name.startswith(__name__) else None
        return None if file is None else spec_from_file_location(name, file)


sys.meta_path.append(MadeUpModules)
