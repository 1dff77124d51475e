"""The entry point in `deployments/prefect.yaml`: `batch_run`, with the flow and the data as parameters."""

from __future__ import annotations

from prefect_batchflow.flows import batch_run

__all__ = ["batch_run"]
