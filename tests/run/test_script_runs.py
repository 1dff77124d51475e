"""Scripts that start a run themselves: guarded, not guarded, and files that start one when a worker imports them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

RUN = "BatchEngine({flow}, run_storage_url=sys.argv[1]).run({{'data': sys.argv[2]}}, run_id='r')"
SHOW = "print(result.completed_lines, [error.error['message'] for error in result.error_summary.error_list])\n"


@pytest.fixture
def script(storage: Path, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Run a script and give what it prints, and the outputs of its run."""
    data = write_rows([{"q": "a"}, {"q": "b"}])

    def run(code: str, name: str = "script.py") -> tuple[str, str]:
        from prefect.settings import PREFECT_API_URL

        (tmp_path / name).write_text(code)
        environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value() or "", "PYTHONFAULTHANDLER": "1"}
        ended = subprocess.run(
            [sys.executable, name, str(storage), str(data)], capture_output=True, text=True, timeout=150, cwd=tmp_path,
            check=False, env=environment,
        )  # fmt: skip
        outputs = storage / "r" / "outputs.jsonl"
        return ended.stdout + ended.stderr, outputs.read_text() if outputs.exists() else ""

    return run


GUARDED = (
    "import contextvars, functools, logging, sqlite3, sys, threading\n"
    "from dataclasses import dataclass\n"
    "from prefect_batchflow import AbstractRunStorage, BatchEngine, BatchResult\n"
    "L, C, V = threading.Lock(), sqlite3.connect(':memory:'), contextvars.ContextVar('V', default='v')\n"
    "logging.getLogger('x').addHandler(logging.StreamHandler())\n"
    "PROMPT = ''\n"
    "@dataclass\nclass Config:\n    word: str\n"
    "class Storage(AbstractRunStorage):\n    pass\n"
    "def told(result: 'BatchResult | None'): return result\n"
    "@functools.lru_cache\ndef known(q): return q\n"
    "class Flow:\n"
    "    def __init__(self, config): self.config = config if isinstance(config, Config) else None\n"
    "    def __call__(self, q):\n"
    "        with L: rows = C.execute('select 1').fetchall()\n"
    "        loaded = [name for name in ('prefect', 'pydantic') if name in sys.modules]\n"
    "        return {'out': [known(q), PROMPT, self.config.word, V.get(), rows, loaded]}\n"
    "engine = BatchEngine(Flow, run_storage_url=sys.argv[1], init_kwargs={'config': Config('w')})\n"
    "if __name__ == '__main__':\n"
    "    PROMPT = 'p'\n"
    "    result = engine.run({'data': sys.argv[2]}, run_id='r')\n"
    f"    {SHOW}"
)


def test_a_guarded_script_is_run_again_without_prefect(script: Callable[..., tuple[str, str]]) -> None:
    printed, outputs = script(GUARDED)

    assert printed.startswith("2 []"), printed
    assert '"out": ["a", "p", "w", "v", [[1]], []]' in outputs


def test_a_file_that_starts_a_run_when_it_is_imported_is_refused(script: Callable[..., tuple[str, str]]) -> None:
    """Its workers would import the file, and start the next run."""
    unguarded = RUN.format(flow="sys.argv[0] + ':f'")
    printed, outputs = script(
        f"import sys\nfrom prefect_batchflow import BatchEngine\ndef f(q): return q\n{unguarded}\n"
    )

    assert (
        "The code of the flow 'f' starts a batch run when a worker imports it. Start the run below `if __name__"
        in printed
    )
    assert outputs == ""


def test_a_second_run_above_the_guard_is_refused(script: Callable[..., tuple[str, str]]) -> None:
    printed, _ = script(
        "import sys\nfrom prefect_batchflow import BatchEngine\ndef f(q): return q\n"
        f"if len(sys.argv) == 3 and __name__ != '__main__':\n    {RUN.format(flow='f')}\n"
        f"if __name__ == '__main__':\n    {RUN.format(flow='f')}\n"
    )

    assert "starts a batch run when a worker imports it" in printed


def test_a_script_without_a_guard_runs_by_value(script: Callable[..., tuple[str, str]]) -> None:
    run = RUN.format(flow="f")
    code = f"import sys\nfrom prefect_batchflow import BatchEngine\ndef f(q): return q * 2\nresult = {run}\n{SHOW}"
    printed, outputs = script(code)

    assert printed.startswith("2 []"), printed
    assert '"output": "aa"' in outputs
