"""Our own BatchEngine at its defaults, in each process once: the figures of `defaults.py`."""

from __future__ import annotations

import json
import sys
import time

from prefect_batchflow import BatchEngine


def main() -> None:
    """Run the flow, data and options on the command line, and print seconds and counts as JSON."""
    flow, data, storage, options = sys.argv[1:]
    engine = BatchEngine(flow, run_storage_url=storage, **json.loads(options))
    begun = time.monotonic()
    result = engine.run({"data": data}, {"text": "${data.text}"})
    live = engine._live
    assert live is not None
    told = {"completed": result.completed_lines, "failed": result.failed_lines, "workers": live.workers}
    print(json.dumps({"begun": begun, "seconds": time.monotonic() - begun, **told}), flush=True)


if __name__ == "__main__":
    main()
