r"""Rows with half a surrogate pair or NUL, and paths that are not UTF-8: Prefect gets all states and logs of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from prefect_api import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_api import PrefectAPI
    from prefect_processes import Home

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

FLOW = """
def f(q):
    print("row", q)
    if q.startswith("bad"):
        raise ValueError("cannot do " + q)
    return {"a": q}
"""
ROWS = ["x\ud800y", "bad\udcff", "ok", "nul\0", "bad\0"]


def run(server: Home, *words: str | bytes, cwd: Path | bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "prefect_batchflow.cli", *words]
    return subprocess.run(command, env=server.environment(), cwd=cwd, capture_output=True, check=False, timeout=200)


def flow_run_of(api: PrefectAPI, run_id: str) -> dict[str, Any]:
    found = api.post("/flow_runs/filter", {"flow_runs": {"name": {"like_": f"-{run_id}"}}})
    assert len(found) == 1
    return dict(found[0])


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_every_task_run_ends_and_every_log_arrives(
    granularity: str, server: Home, api: PrefectAPI, tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"q": q}) + "\n" for q in ROWS))
    run_id = f"hostile-{granularity}"
    words = ("--data", "rows.jsonl", "--granularity", granularity, "--run-id", run_id)
    done = run(server, "run", "flow.py:f", *words, cwd=tmp_path)
    assert done.returncode == 3, done.stderr.decode()
    flow_run = flow_run_of(api, run_id)
    of_run = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}

    def logged() -> list[str]:
        return [
            str(log["message"])
            for log in api.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run["id"]]}}})
        ]

    printed = {"row x\\ud800y", "row bad\\xff", "row ok", "row nul\\x00", "row bad\\x00"}
    wait_for(
        lambda: printed <= {text.rpartition("printed:\n")[2] for text in logged()}, "all prints are in the log", 60
    )

    def ends() -> dict[str, str]:
        return {task["name"]: task["state_type"] for task in api.post("/task_runs/filter", of_run)}

    failed = {"line-000001": "FAILED", "line-000004": "FAILED"}
    others = {f"line-{number:06d}": "COMPLETED" for number in (0, 2, 3)}
    wanted = {**failed, **(others if granularity == "line" else {"lines-000000-000004": "COMPLETED"})}
    wait_for(lambda: ends() == wanted, "every task run has ended", 60)
    messages = {task["name"]: task["state"]["message"] for task in api.post("/task_runs/filter", of_run)}
    assert "cannot do bad\\xff" in messages["line-000001"]
    assert "cannot do bad\\x00" in messages["line-000004"]


LATIN_1 = b"caf\xe9"


@pytest.mark.parametrize("what", ["data", "folder of the flow", "dag", "output folder", "storage", "current folder"])
def test_a_name_that_is_not_utf_8_works_everywhere_and_resumes(
    what: str, server: Home, api: PrefectAPI, tmp_path: Path
) -> None:
    odd = os.path.join(os.fsencode(tmp_path), LATIN_1)  # noqa: PTH118 - a path of bytes
    os.makedirs(odd)  # noqa: PTH103
    for folder in (odd, os.fsencode(tmp_path)):
        for name, text in ((b"flow.py", FLOW), (b"rows.jsonl", '{"q": "hi"}\n')):
            with open(os.path.join(folder, name), "w") as file:  # noqa: PTH118, PTH123
                file.write(text)
    with open(os.path.join(odd, b"flow.dag.yaml"), "w") as file:  # noqa: PTH118, PTH123
        file.write(
            "inputs: {q: {type: string}}\noutputs: {a: {reference: '${n.output}'}}\nnodes:\n- {name: n, type: python, "
            "source: {type: code, path: node.py}, inputs: {q: '${inputs.q}'}}\n"
        )
    with open(os.path.join(odd, b"node.py"), "w") as file:  # noqa: PTH118, PTH123
        file.write("from promptflow.core import tool\n@tool\ndef n(q: str):\n    return q\n")
    flow: str | bytes = {"folder of the flow": odd + b"/flow.py:f", "dag": odd}.get(what, "flow.py:f")
    data: str | bytes = odd + b"/rows.jsonl" if what == "data" else "rows.jsonl"
    run_id = "latin-" + what.replace(" ", "-")
    output = ("--output-dir", odd + b"/out") if what == "output folder" else ()
    storage = ("--storage", odd + b"/runs") if what == "storage" else ()
    here = odd if what == "current folder" else os.fsencode(tmp_path)

    done = run(server, "run", flow, "--data", data, "--run-id", run_id, *output, *storage, cwd=here)
    assert done.returncode == 0, done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert flow_run_of(api, run_id)["state_type"] == "COMPLETED"
    shown = run(server, "show", run_id, *storage, "--json", cwd=here)
    assert json.loads(shown.stdout)["result"]["completed_lines"] == 1
    again = run(server, "resume", run_id, *storage, cwd=here)
    assert again.returncode == 0, again.stderr.decode()
    if what == "output folder":
        assert os.path.exists(odd + b"/out/output.jsonl")  # noqa: PTH110
        assert "caf\\xe9/out" in done.stdout.decode()
