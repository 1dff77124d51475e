"""`from promptflow.core import tool` without promptflow; mirrors its import paths."""

from __future__ import annotations

from prefect_batchflow.promptflow_shim.finder import FOR_PROCESSES, install, is_in_place, uninstall

__all__ = ["FOR_PROCESSES", "install", "is_in_place", "uninstall"]
