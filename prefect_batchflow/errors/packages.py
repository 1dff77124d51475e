"""Optional packages: whether one is installed, and the command that installs it."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PACKAGES: Final = {
    "openai": "'prefect-batchflow[llm]'",
    "pyarrow": "'prefect-batchflow[parquet]'",
    "backports.zstd": "'prefect-batchflow[zstd]'",
    "s3fs": "'prefect-batchflow[s3]'",
    "gcsfs": "'prefect-batchflow[gcs]'",
    "adlfs": "'prefect-batchflow[azure]'",
    "aiohttp": "aiohttp requests",
    "prefect_dask": "'prefect-batchflow[dask]'",
    "prefect_ray": "'prefect-batchflow[ray]'",
    "azure.identity": "azure-identity",
    # It depends on promptflow, which this package mirrors, and which asks for a starlette that Prefect cannot run with.
    "promptflow.tools": "--no-deps promptflow-tools",
    **dict.fromkeys(("promptflow_vectordb", "embeddingstore"), "promptflow-vectordb"),
}
"""Modules, and the arguments with which pip installs them."""


def pip_install(module: str) -> str:
    """The command that installs a module of `PACKAGES`."""
    return f"pip install {PACKAGES[module]}"


def is_installed(module: str, folders: Iterable[str] = ()) -> bool:
    """Whether a module is installed, or in one of the folders; nothing is imported."""
    search: Sequence[str] = [*folders, *sys.path]
    for part in module.split("."):
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return False
        search = list(spec.submodule_search_locations or [])
    return True
