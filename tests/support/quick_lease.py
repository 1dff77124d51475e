"""The command line with leases that run out within seconds, for tests that stop a run for longer than its lease."""

from __future__ import annotations

import runpy

from prefect_batchflow.storage import lease

lease.RENEW_EVERY_SEC = 0.3
lease.LEASE_EXPIRES_AFTER_SEC = 3.0
lease.WATCH_SEC = 2.0
lease.WATCH_LOOKS = 4

if __name__ == "__main__":
    runpy.run_module("prefect_batchflow.cli", run_name="__main__", alter_sys=True)
