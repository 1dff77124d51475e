"""The Prefect entry point that `deployments/prefect.yaml` deploys: `batch_run`, whose parameters name flow and data."""

from __future__ import annotations

from prefect_batchflow.flows import batch_run

__all__ = ["batch_run"]
