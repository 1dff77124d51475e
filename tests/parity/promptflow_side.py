"""Run cases with promptflow's own BatchEngine, in promptflow's environment: one process a case, several at once.

    python promptflow_side.py <file for the results> <the model's address> <case> …

promptflow waits far more than it works, and two of its engines in one process disturb each other.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparable import memory_storage, run_whole, surroundings
from declared import all_cases

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

AT_ONCE = 5
LIMIT_SEC = 150.0
"""For one case; promptflow adds ten seconds to a line's limit, and tens to a run's."""


def run_one(name: str, folder: Path, model_url: str, told: Path) -> None:
    """Run a case in this process, a child of its own session, and write what came of it."""
    os.setsid()
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from promptflow._utils.exception_utils import ExceptionPresenter  # type: ignore[import-not-found]
    from promptflow.batch import BatchEngine  # type: ignore[import-not-found]
    from promptflow.storage import AbstractBatchRunStorage  # type: ignore[import-not-found]

    case = all_cases()[name]
    sources = case.write(folder, model_url)
    sys.path.insert(0, str(folder))
    with surroundings(case, model_url):
        facts = run_whole(
            case,
            folder,
            sources,
            model_url=model_url,
            engine=BatchEngine,
            storage=lambda: memory_storage(AbstractBatchRunStorage),
            error_of=lambda exc: ExceptionPresenter.create(exc).to_dict(),
        )
    told.write_text(json.dumps(facts))


def record(names: list[str], model_url: str, scratch: Path) -> dict[str, Any]:
    """Run the cases; what came of each, `None` for one that did not end."""
    import promptflow.batch  # type: ignore[import-not-found] # noqa: F401 - once, before the forks

    context = multiprocessing.get_context("fork")
    waiting = list(names)
    running: dict[str, tuple[BaseProcess, float]] = {}
    results: dict[str, Any] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.pop(0)
            folder = scratch / name
            folder.mkdir()
            told = scratch / f"{name}.json"
            child: BaseProcess = context.Process(target=run_one, args=(name, folder, model_url, told))
            child.start()
            running[name] = child, time.monotonic()
        for name, (child, began) in list(running.items()):
            child.join(0.1)
            late = time.monotonic() - began > LIMIT_SEC
            if child.is_alive() and not late:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
            del running[name]
            told = scratch / f"{name}.json"
            results[name] = json.loads(told.read_text()) if told.exists() else None
            seconds = time.monotonic() - began
            print(f"{name}: {seconds:.0f} s", "" if results[name] else "NO RESULT", flush=True)  # noqa: T201
            if results[name] is None:
                print((scratch / f"{name}.log").read_text()[-3000:])  # noqa: T201 - why
    return results


if __name__ == "__main__":
    result_file, address, *wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="parity-") as home:
        # Its own home: promptflow keeps a database there.
        os.environ.update(HOME=home, PF_HOME_DIRECTORY=home, PF_TRACING_SKIP_LOCAL_SETUP="true")
        Path(home, "pf.yaml").write_text("telemetry:\n  enabled: false\n")
        kept = Path(home, "cases")
        kept.mkdir()
        Path(result_file).write_text(json.dumps(record(wanted, address, kept)))
