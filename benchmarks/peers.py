"""Virtual environments for packages that cannot live beside Prefect, created on first use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".benchmarks"
"""Git-ignored: the peers' virtual environments, and each run's scratch folder while it lasts."""
PEERS = {"promptflow": "promptflow-devkit==1.18.5", "inspect": "inspect-ai==0.3.285"}
"""The package to install, by contender."""


def peer_python(peer: str) -> str:
    """Its interpreter: `BATCHFLOW_BENCH_<PEER>_PYTHON`, or that of an environment created here."""
    if given := os.environ.get(f"BATCHFLOW_BENCH_{peer.upper()}_PYTHON"):
        return given
    requirement = PEERS[peer]
    folder = CACHE / requirement.replace("==", "-")
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"Installing {requirement} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement], check=True)
        complete.touch()
    return str(python)


def peer_version(peer: str) -> str:
    """Name and version, as that interpreter has it."""
    name = PEERS[peer].partition("==")[0]
    ask = f"from importlib.metadata import version; print(version({name!r}))"
    answer = subprocess.run([peer_python(peer), "-c", ask], check=True, capture_output=True, text=True)
    return f"{name} {answer.stdout.strip()}"
