"""Runs on real clusters: a worker that dies, a run that is killed, ends and limits, lines that go wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faulted_run import FaultedRun
from invariants import alive
from prefect.settings import PREFECT_API_URL
from real_clusters import RealCluster, dask_cluster, ray_cluster
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
LINES = 300
CHUNKS_OF_20 = 7
"""On two places, of which each is to have four."""
CANCELED = 130
GONE_WITHIN_SEC = 5.0
ENDS_WITHIN_SEC = 10.0
FLOW = """
import os, time

def main(n: int, fault: str, folder: str) -> dict:
    fd = os.open(folder + "/begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    with open(folder + f"/ran-in-{os.getppid()}", "w"):
        pass
    time.sleep(0.01)  # so that there is a middle to be killed in
    return {"square": n * n}
"""

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(180)]


@pytest.fixture(scope="session")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    pytest.importorskip("prefect_dask", reason="pip install -c constraints.txt -e '.[dask]'")
    with dask_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    pytest.importorskip("prefect_ray", reason="pip install -c constraints.txt -e '.[ray]'")
    with ray_cluster(tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster


@pytest.fixture(params=["dask", "ray"])
def cluster(request: pytest.FixtureRequest) -> RealCluster:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, RealCluster)
    return found


@pytest.fixture
def square(tmp_path: Path) -> str:
    """A flow that says which process ran it."""
    path = tmp_path / "square.py"
    path.write_text(FLOW)
    return f"{path}:main"


def acknowledged(run: FaultedRun) -> set[int]:
    return {n for n, record in run.records().items() if record["status"] == "Completed"}


def outputs(run: FaultedRun) -> list[dict[str, int]]:
    return [json.loads(line) for line in (run.run / "outputs.jsonl").read_text().splitlines()]


def squares(count: int) -> list[dict[str, int]]:
    return [{"line_number": n, "square": n * n} for n in range(count)]


def wait_for_middle(run: FaultedRun, process: subprocess.Popen[bytes]) -> None:
    wait_until(
        lambda: len(acknowledged(run)) > LINES // 5 or process.poll() is not None,
        description="a part of the lines is done",
        timeout_sec=90,
    )
    assert process.poll() is None, (run.folder / "log").read_text()


def test_a_worker_that_is_killed_costs_only_lines_that_were_not_kept(
    cluster: RealCluster, tmp_path: Path, square: str
) -> None:
    run = FaultedRun(tmp_path, [""] * LINES, *cluster.options(), flow=square)
    process = run.start()
    wait_for_middle(run, process)
    workers = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("ran-in-*")]
    kept, begun = acknowledged(run), len(run.begun())
    os.kill(workers[0], signal.SIGKILL)

    assert run.ended(process) == 0, (tmp_path / "log").read_text()

    assert kept.isdisjoint(run.begun()[begun + 2 :]), "a line whose record was kept ran again"
    assert outputs(run) == squares(LINES)
    assert len(run.begun()) < LINES + LINES // 3, "most of the chunk was not run again"
    cluster.wait_until_empty(GONE_WITHIN_SEC)


def test_a_run_that_is_killed_ends_on_the_cluster_and_goes_on_here(
    cluster: RealCluster, tmp_path: Path, square: str
) -> None:
    run = FaultedRun(tmp_path, [""] * LINES, *cluster.options(), flow=square)
    process = run.start()
    wait_for_middle(run, process)
    process.kill()
    process.wait()

    cluster.wait_until_empty(GONE_WITHIN_SEC)

    kept, begun = acknowledged(run), len(run.begun())
    assert len(kept) < LINES, "it was killed in the middle"
    here = FaultedRun(tmp_path, run.faults, "--task-runner", "local", flow=square)
    assert here.ended(here.start()) == 0
    assert kept.isdisjoint(run.begun()[begun:])
    assert outputs(run) == squares(LINES)


def test_a_run_that_began_here_goes_on_on_the_cluster(dask: RealCluster, tmp_path: Path) -> None:
    faults = ["raise" if n % 10 == 0 else "" for n in range(60)]
    run = FaultedRun(tmp_path, faults)
    assert run.ended(run.start()) == 3
    begun = len(run.begun())
    run.mend()
    there = FaultedRun(tmp_path, faults, *dask.options())

    assert there.ended(there.start()) == 0

    assert set(run.begun()[begun:]) == {n for n, fault in enumerate(faults) if fault}
    assert outputs(run) == squares(60)


def test_a_signal_ends_the_run_on_the_cluster_with_what_it_has(cluster: RealCluster, tmp_path: Path) -> None:
    run = FaultedRun(tmp_path, ["", "", "hang in C", *[""] * 9], *cluster.options())
    process = run.start()
    wait_until(lambda: run.held() == 1 and len(acknowledged(run)) >= 4, description="only the hung line is left there")
    process.send_signal(signal.SIGTERM)

    assert run.ended(process, ENDS_WITHIN_SEC) == CANCELED

    cluster.wait_until_empty(GONE_WITHIN_SEC)
    result = run.result()
    assert result["status"] == "Canceled"
    assert result["canceled_lines"] == 1
    assert result["completed_lines"] == len(acknowledged(run)) == len(outputs(run)) >= 4
    run.check_invariants()


@pytest.fixture
def silent_port() -> Iterator[socket.socket]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(60)
        yield listening


@pytest.mark.parametrize(("kind", "scheme"), [("dask", "tcp"), ("ray", "ray")])
def test_a_signal_ends_a_run_that_still_connects(
    silent_port: socket.socket, tmp_path: Path, kind: str, scheme: str
) -> None:
    pytest.importorskip(f"prefect_{kind}", reason=f"pip install -c constraints.txt -e '.[{kind}]'")
    address = f"{scheme}://127.0.0.1:{silent_port.getsockname()[1]}"
    run = FaultedRun(tmp_path, [""], "--task-runner", kind, "--task-runner-address", address)
    process = run.start()
    with silent_port.accept()[0]:
        process.send_signal(signal.SIGTERM)

        assert run.ended(process, ENDS_WITHIN_SEC) == CANCELED

    wait_until(lambda: not alive(run.watch.mark), description="nothing of it is left", timeout_sec=GONE_WITHIN_SEC)
    assert "0 of 0 lines completed. Canceled by SIGTERM." in (tmp_path / "log").read_text()


def test_the_limit_of_the_run_ends_its_lines_on_the_cluster(dask: RealCluster, tmp_path: Path) -> None:
    run = FaultedRun(tmp_path, ["", "hang with a grandchild", *[""] * 4], *dask.options(), "--batch-timeout", "15")
    process = run.start()
    wait_until(lambda: run.held() == 2, description="a line hangs")
    pids = [int(line.split()[0]) for line in (tmp_path / "held").read_text().splitlines()]

    assert run.ended(process, 60) == 1

    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), description="the hung line is gone")
    result = run.result()
    assert result["error_summary"]["batch_error_dict"]["innerError"]["code"] == "BatchRunTimeoutError"
    assert (result["completed_lines"], result["canceled_lines"]) == (5, 1)
    dask.wait_until_empty(GONE_WITHIN_SEC)


def codes_of_faults(folder: Path, *options: str) -> dict[int, str]:
    faults = ["", "raise", "segfault", "hang in C", "", "exit", "hang with a grandchild", "kill", *[""] * 12]
    run = FaultedRun(folder, faults, *options, "--line-timeout", "2")
    assert run.ended(run.start()) == 3, (folder / "log").read_text()
    result = run.result()
    assert (result["completed_lines"], result["failed_lines"]) == (14, 6)
    return run.codes()


@pytest.fixture(scope="session")
def codes_here(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What becomes of lines that go wrong on one machine."""
    return codes_of_faults(tmp_path_factory.mktemp("here"))


def test_lines_that_go_wrong_are_told_as_on_one_machine(
    cluster: RealCluster, codes_here: dict[int, str], tmp_path: Path
) -> None:
    assert codes_of_faults(tmp_path, *cluster.options()) == codes_here
    cluster.wait_until_empty(GONE_WITHIN_SEC)


def test_prefect_gets_the_task_runs_and_no_secret(dask: RealCluster, tmp_path: Path) -> None:
    import httpx

    secret = "the-secret-of-this-run"  # noqa: S105 - it is none
    run = FaultedRun(tmp_path, [""] * 20, *dask.options(), "--environment-variables", f"KEY={secret}")
    assert run.ended(run.start()) == 0

    manifest = json.loads((run.run / "manifest.json").read_text())
    flow_run = manifest["sessions"][-1]["prefect_flow_run_id"]
    found: list[dict[str, object]] = []

    def all_are_there() -> bool:
        body = {"flow_runs": {"id": {"any_": [flow_run]}}}
        response = httpx.post(f"{PREFECT_API_URL.value()}/task_runs/filter", json=body)
        found[:] = response.json()
        return len(found) == CHUNKS_OF_20 and all(task["state_type"] == "COMPLETED" for task in found)

    wait_until(all_are_there, description="the server has the task runs", timeout_sec=30)
    assert {tag for task in found for tag in task["tags"]} == {f"run:{run.run_id}"}  # type: ignore[attr-defined]
    assert secret not in json.dumps(found)
    assert secret not in (run.run / "control.json").read_text()


@pytest.mark.usefixtures("dask", "ray")
def test_outputs_are_the_same_bytes_from_processes_dask_and_ray(dask: RealCluster, ray: RealCluster) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "cluster.py"), "--lines", "200"]
    addresses = [
        "--dask-address",
        dask.address,
        "--ray-address",
        ray.address,
        "--api-url",
        str(PREFECT_API_URL.value()),
    ]
    done = subprocess.run([*command, *addresses], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bytes" in done.stdout
