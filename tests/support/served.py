"""A served deployment of `batch_run`, as a program: it runs what is asked for, each run in a process of its own."""

from __future__ import annotations

from prefect_batchflow import batch_run

if __name__ == "__main__":
    batch_run.serve(name="served")
