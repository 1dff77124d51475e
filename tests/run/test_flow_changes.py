"""A resume after the flow has changed, as users change it: in a notebook, a script, a helper, a prompt, a package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow import BatchEngine
from prefect_batchflow.exceptions import RunChangedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

START = """
import sys
from prefect_batchflow import BatchEngine
from prefect_batchflow.exceptions import RunChangedError
def start(flow, **options):
    try:
        result = BatchEngine(flow, run_storage_url=sys.argv[1], **options).run({"data": sys.argv[2]}, run_id='r')
        print(result.completed_lines, 'completed', *[e.error['message'] for e in result.error_summary.error_list])
    except RunChangedError as exc:
        print('changed:', ', '.join(exc.changes))
"""


@pytest.fixture
def python(storage: Path, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Run Python as a user does, with a script's path or code on standard input, and give the lines that it prints."""
    data = write_rows([{"q": "a"}])

    def run(*arguments: str, code: str | None = None) -> list[str]:
        from prefect.settings import PREFECT_API_URL

        ended = subprocess.run(
            [sys.executable, *(arguments or ("-",)), str(storage), str(data)],
            input=code,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            check=False,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", "PREFECT_API_URL": PREFECT_API_URL.value() or ""},
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout.splitlines()

    return run


NOTEBOOK = START + (
    "PROMPT = 'hi'\n"
    "def f(q): return PROMPT + q\n"
    "start(f)\n"
    "start(f)\n"
    "def f(q): return PROMPT * 2 + q\n"
    "start(f)\n"
    "start(f, on_change='rerun')\n"
    "PROMPT = 'ho'\n"
    "start(f)\n"
    "start(f, on_change='reuse')\n"
)


def test_a_cell_that_was_run_again_with_other_code(python: Callable[..., list[str]], storage: Path) -> None:
    assert python(code=NOTEBOOK) == [
        "1 completed",
        "1 completed",
        "changed: the flow's code changed (function f changed)",
        "1 completed",
        "changed: the flow's code changed (global PROMPT changed)",
        "1 completed",
    ]
    assert json.loads((storage / "r" / "outputs.jsonl").read_text())["output"] == "hihia"


SCRIPT = (
    "import helper\n" + START + "PROMPT = 'hi'\n"
    "def f(q): return PROMPT + helper.end(q)\n"
    "def main():\n"
    "    start(f, line_timeout_sec=60)\n"
    "GUARD"
    "    main()\n"
)


@pytest.mark.parametrize("guard", ["if __name__ == '__main__':\n", "if True:\n"], ids=["guarded", "not guarded"])
def test_a_script_counts_by_what_its_function_uses(
    python: Callable[..., list[str]], tmp_path: Path, guard: str
) -> None:
    script, helper = tmp_path / "script.py", tmp_path / "helper.py"
    text = SCRIPT.replace("GUARD", guard)
    script.write_text(text)
    helper.write_text("def end(q): return q\n")
    assert python(str(script)) == ["1 completed"]

    script.write_text(text.replace("=60", "=90") + "# and a comment\n")
    assert python(str(script)) == ["1 completed"], "an option of the run is no change of the flow"
    script.write_text(text.replace("'hi'", "'ho'"))
    assert python(str(script)) == ["changed: the flow's code changed (global PROMPT changed)"]
    script.write_text(text)
    helper.write_text("def end(q): return q + '!'\n")
    assert python(str(script)) == ["changed: the flow's files changed (helper.py changed)"]


FILES = {
    "helper.py": ("end = '.'", "end = '!'"),
    "lazy.py": ("x = 1", "x = 2"),
    "prompts/system.txt": ("Be kind.", "Be brief."),
    "settings.json": ("{}", '{"a": 1}'),
}


@pytest.mark.parametrize("door", ["folder", "file.py:attribute", "module:attribute", "function"])
@pytest.mark.parametrize("changed", FILES)
def test_a_file_that_the_code_uses_has_changed(
    tmp_path: Path,
    storage: Path,
    write_rows: Callable[..., Path],
    door: str,
    changed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "project"
    (folder / "prompts").mkdir(parents=True)
    (folder / "flow.flex.yaml").write_text("entry: steps_of_change:run\n")
    (folder / "steps_of_change.py").write_text(
        "import json\nfrom pathlib import Path\nfrom helper import end\n"
        "def run(q):\n"
        "    import lazy\n"
        "    text = (Path(__file__).parent / 'prompts' / 'system.txt').read_text()\n"
        "    return [text, end, lazy.x, json.loads(Path('settings.json').read_text())]\n"
    )
    for name, (before, _) in FILES.items():
        (folder / name).write_text(before)
    flow = {
        "folder": str(folder),
        "file.py:attribute": f"{folder / 'steps_of_change.py'}:run",
        "module:attribute": "steps_of_change:run",
    }.get(door)
    data = write_rows([{"q": "a"}])

    def run() -> None:
        with monkeypatch.context() as imports:
            imports.syspath_prepend(str(folder))
            for name in ("steps_of_change", "helper"):
                sys.modules.pop(name, None)
            target = flow
            if target is None:
                import steps_of_change  # type: ignore[import-not-found]

                target = steps_of_change.run
            result = BatchEngine(target, folder, run_storage_url=str(storage)).run({"data": data}, run_id="r")
            assert result.completed_lines == 1, result.error_summary

    run()
    (folder / "out").mkdir()
    (folder / "out" / "batch_result.json").write_text("{}")  # of another run
    run()
    (folder / changed).write_text(FILES[changed][1])
    with pytest.raises(RunChangedError, match=rf"the flow's files changed \({changed} changed\)"):
        run()


def test_what_a_run_writes_into_the_flows_folder_is_no_change(tmp_path: Path) -> None:
    folder = tmp_path / "flow"
    folder.mkdir()
    (folder / "flow.flex.yaml").write_text("entry: writes:run\n")
    (folder / "writes.py").write_text(
        "def run(q):\n    open('rows.json'); open('seen.log', 'a').close()\n    return q\n"
    )
    (folder / "rows.json").write_text('[{"q": "a"}]')

    for _ in range(3):
        engine = BatchEngine(folder, run_storage_url=str(folder))
        result = engine.run({"data": "rows.json"}, output_dir=folder, run_id="r")
        assert result.completed_lines == 1
        result = BatchEngine(folder, run_storage_url=str(folder / "runs")).run(
            {"data": "rows.json"}, output_dir="out", run_id="r"
        )
        assert result.completed_lines == 1


def test_an_object_among_the_arguments_counts_by_its_state(
    tmp_path: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    (tmp_path / "asks.py").write_text(
        "class Ask:\n    def __init__(self, by): self.by = by\n    def __call__(self, q): return q\n"
    )
    data = write_rows([{"q": "a"}])

    def run(by: object) -> None:
        flow = f"{tmp_path / 'asks.py'}:Ask"
        BatchEngine(flow, run_storage_url=str(storage), init_kwargs={"by": by}).run({"data": data}, run_id="r")

    run({"of": complex(1, 2)})
    run({"of": complex(1, 2)})
    with pytest.raises(RunChangedError, match="the init arguments changed"):
        run({"of": complex(1, 3)})
