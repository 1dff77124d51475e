"""`python -m prefect_batchflow.cli`, the same as `batchflow`."""

from __future__ import annotations

import sys

from prefect_batchflow.cli.commands import main

sys.exit(main())
