"""The same lines with process workers, Dask and Ray: seconds, and whether the outputs are identical.

    python benchmarks/cluster.py --lines 20000 --workers 2

Each contender runs `flows/trivial` in a process of its own, with the same Prefect server. The clock covers the call of `run()`
and the connection to the cluster. It covers the start of a cluster only without an address. Exit status 1 if the outputs
differ or a line did not complete.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from server import prefect_server

ROOT = Path(__file__).resolve().parent
FLOW = ROOT / "flows" / "trivial"
LIMIT_SEC = 1_800
RUN = """
import json, sys, time
from prefect_batchflow import BatchEngine

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    engine = BatchEngine(
        asked["flow"], worker_count=asked["workers"], run_storage_url=asked["storage"], granularity="chunk",
        task_runner=asked["kind"], task_runner_address=asked["address"],
    )
    began = time.perf_counter()
    result = engine.run({"data": asked["data"]}, {"text": "${data.text}"}, run_id=asked["kind"])
    print(json.dumps({"seconds": time.perf_counter() - began, "completed": result.completed_lines}))
"""


def main() -> int:
    """Run each contender, print the times and the comparison; 1 if the outputs differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2, help="lines at once, for all contenders")
    parser.add_argument("--contenders", default="local,dask,ray")
    parser.add_argument("--dask-address", default="", help="a running scheduler; by default one is started for the run")
    parser.add_argument("--ray-address", default="", help="the same for Ray")
    parser.add_argument("--api-url", default="", help="a running Prefect server; by default one is started")
    given = parser.parse_args()
    addresses = {"dask": given.dask_address, "ray": given.ray_address}
    print(f"{' '.join(sys.argv)}\n{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="batchflow-benchmark-") as scratch:
        folder = Path(scratch)
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(given.lines)))
        env = {**os.environ, "PREFECT_HOME": str(folder / "home"), "PREFECT_LOGGING_LEVEL": "WARNING"}
        env["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        with contextlib.ExitStack() as stack:
            api_url = given.api_url or stack.enter_context(prefect_server(env, folder / "server.log")).api_url
            for kind in given.contenders.split(","):
                asked = {"kind": kind, "address": addresses.get(kind, ""), "workers": given.workers}
                places = {"flow": str(FLOW), "data": str(data), "storage": str(folder / "runs")}
                script = folder / "run.py"
                script.write_text(RUN)
                done = subprocess.run(
                    [sys.executable, str(script), json.dumps({**asked, **places})],
                    env={**env, "PREFECT_API_URL": api_url},
                    stdout=subprocess.PIPE,
                    text=True,
                    timeout=LIMIT_SEC,
                    check=True,
                )
                said = json.loads(done.stdout.splitlines()[-1])
                outputs = (folder / "runs" / kind / "outputs.jsonl").read_bytes()
                hashes[kind] = hashlib.sha256(outputs).hexdigest()
                per_line = 1_000 * said["seconds"] / given.lines
                print(
                    f"{kind:6} {said['seconds']:8.2f} s  {per_line:7.3f} ms per line  {hashes[kind][:16]}", flush=True
                )
                if said["completed"] != given.lines:
                    print(f"{kind}: {said['completed']} of {given.lines} lines completed")
                    return 1
    same = len(set(hashes.values())) == 1
    print("outputs.jsonl: the same bytes" if same else f"outputs.jsonl: DIFFERENT bytes {hashes}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
