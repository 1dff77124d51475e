"""Optional packages: whether one is installed, and the command that installs it."""

from __future__ import annotations

import contextlib
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
    "paramiko": "'prefect-batchflow[sftp]'",
    "aiohttp": "aiohttp requests",
    "prefect_dask": "'prefect-batchflow[dask]'",
    "prefect_ray": "'prefect-batchflow[ray]'",
    "azure.identity": "azure-identity",
    # It depends on promptflow, which this package mirrors, and which asks for a starlette that Prefect cannot run with.
    "promptflow.tools": "--no-deps promptflow-tools",
    **dict.fromkeys(("promptflow_vectordb", "embeddingstore"), "promptflow-vectordb"),
}
"""Modules, and the arguments with which pip installs them."""


_DISTRIBUTIONS: Final = {
    "azureml": "azureml-core",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "github": "PyGithub",
    "google.protobuf": "protobuf",
    "googleapiclient": "google-api-python-client",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "magic": "python-magic",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyOpenSSL",
    "PIL": "Pillow",
    "pkg_resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "pywintypes": "pywin32",
    "rest_framework": "djangorestframework",
    "sentence_transformers": "sentence-transformers",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "socks": "PySocks",
    "telegram": "python-telegram-bot",
    "win32com": "pywin32",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
"""Modules, and the packages that have them under another name."""
_NAMESPACES: Final = frozenset({"azure", "google"})
"""Modules that many packages share: each package is called like its module, with dashes."""
_DEEP: Final = frozenset({"ai", "cloud", "communication", "data", "keyvault", "mgmt", "monitor", "search", "storage"})
"""Modules below them that packages share, too."""


def distribution_of(module: str) -> str:
    """The package to install for a module; if it is not known, one of the module's name."""
    return _known_distribution(module) or module.partition(".")[0].replace("_", "-")


def how_to_install(module: str) -> str:
    """Say how to install the package of a module, without a full stop."""
    if known := _known_distribution(module):
        return f"Install its package: pip install {known}"
    return f"Install the package that has '{module}' in this Python, probably: pip install {distribution_of(module)}"


def _known_distribution(module: str) -> str:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in PACKAGES or name in _DISTRIBUTIONS:
            return PACKAGES.get(name) or _DISTRIBUTIONS[name]
    if parts[0] not in _NAMESPACES or len(parts) == 1:
        return ""
    return "-".join(parts[: 3 if parts[1] in _DEEP else 2])


def pip_install(module: str) -> str:
    """The command that installs a module of `PACKAGES`."""
    return f"pip install {PACKAGES[module]}"


def is_installed(module: str, folders: Iterable[str] = ()) -> bool:
    """Whether a module is installed, or in one of the folders; nothing is imported."""
    search: Sequence[str] = [*folders, *sys.path]
    parts = module.split(".")
    for part in parts:
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return _is_hooked(parts[0])
        search = list(spec.submodule_search_locations or [])
    return True


def _is_hooked(module: str) -> bool:
    """Whether an import hook has a module, such as that of a package installed with `pip install --editable`."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        own = getattr(finder, "__module__", type(finder).__module__).partition(".")[0]
        if find is not None and own not in (
            "_frozen_importlib",
            "_frozen_importlib_external",
            __name__.partition(".")[0],
        ):
            with contextlib.suppress(Exception):  # hooks are anyone's code
                if find(module, None) is not None:
                    return True
    return False
