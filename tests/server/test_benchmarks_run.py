"""A benchmark from its server's start to its saved figures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]


def test_a_benchmark_measures_time_memory_and_what_the_server_got(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    program = pytestconfig.rootpath / "benchmarks" / "memory.py"
    options = ["--contenders", "line", "--lines", "50", "--rounds", "1", "--results", str(tmp_path)]
    done = subprocess.run([sys.executable, program, *options], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    saved = json.loads((tmp_path / "memory.json").read_text())
    (measured,) = saved["measurements"]
    assert measured["seconds"] > 0
    assert 0 < measured["worker_peak"] < measured["resident_before"] <= measured["peak"]
    assert measured["server"]["task_runs"] == 50
    assert measured["server"]["end_sec"] is not None
    assert "prefect-batchflow" in " ".join(saved["facts"]["versions"])
