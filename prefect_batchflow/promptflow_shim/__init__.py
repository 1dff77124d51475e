"""`from promptflow.core import tool` without promptflow; mirrors its import paths."""

from __future__ import annotations

from prefect_batchflow.promptflow_shim.finder import install, uninstall

__all__ = ["install", "uninstall"]
