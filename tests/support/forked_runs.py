"""Commands of `batchflow` in processes that are forked from one that has imported everything: a start takes no import.

This file is also that process: it reads one command a line from its standard input, and answers with the exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDS_WITHIN_SEC = 60


class ForkedRuns:
    """A context manager that starts commands, one at a time. Start it when the tests' Prefect server runs."""

    def __enter__(self) -> Self:
        from prefect.settings import PREFECT_API_URL

        import prefect_batchflow

        env = {
            **os.environ,
            "PREFECT_API_URL": PREFECT_API_URL.value(),
            "PYTHONPATH": str(Path(prefect_batchflow.__file__).parents[1]),
            "COLUMNS": "200",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(
        self,
        words: Sequence[str],
        log: Path,
        *,
        environment: dict[str, str] | None = None,
        kill_at: tuple[str, int] = ("", 0),
        passages: Path | None = None,
        signal: str = "SIGKILL",
    ) -> int | None:
        """Run `batchflow` with these words, in a new process, to its end.

        Args:
            words: Of the command line.
            log: Gets what it says.
            environment: Further variables.
            kill_at: The point at whose n-th passage it kills itself, and n.
            passages: Gets all passages of points.
            signal: What it sends itself there.

        Returns:
            Its exit status; `None` if it was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {
            "words": list(words),
            "log": str(log),
            "environment": environment or {},
            "kill_at": kill_at,
            "passages": str(passages or ""),
            "signal": signal,
        }
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that starts commands is gone"
        status = int(answer)
        assert status in (-9, *range(256)), log.read_text()
        return None if status == -9 else status


def _serve() -> None:
    _import_all()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if not child:
            answers.close()
            _begin(command)
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _import_all() -> None:
    import gc
    import importlib
    import pkgutil

    from pydantic import BaseModel

    import prefect_batchflow

    for module in pkgutil.walk_packages(prefect_batchflow.__path__, "prefect_batchflow."):
        if not module.name.endswith("__main__") and ".cluster" not in module.name:
            with contextlib.suppress(ImportError):  # a part that needs an extra
                importlib.import_module(module.name)
    import prefect.client.orchestration
    import prefect.flow_engine
    import prefect.task_engine  # noqa: F401

    models = [BaseModel]
    for model in models:
        models += model.__subclasses__()
        if not model.__pydantic_complete__:
            with contextlib.suppress(Exception):  # one that is never complete
                model.model_rebuild()
    gc.freeze()


def _begin(command: dict[str, Any]) -> None:
    """Be the command's process."""
    import atexit
    import faulthandler

    import kill_points

    status = 70
    try:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        os.environ.update(command["environment"])
        faulthandler.dump_traceback_later(ENDS_WITHIN_SEC, exit=True)
        kill_points.hurry()
        point, n = command["kill_at"]
        kill_points.install(point, n, Path(command["passages"] or os.devnull), command["signal"])
        from prefect_batchflow.cli.commands import main

        status = main(command["words"])
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001 - nothing may reach the process that this one was forked from
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
