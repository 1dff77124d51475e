"""Which files and packages make up a flow, for each kind of flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.flow_files import files_of
from prefect_batchflow.definition.load import load_flow

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

FLEX = "entry: main:run\n"


def write(folder: Path, files: dict[str, str] | Collection[str]) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(files[name] if isinstance(files, dict) else "x = 1\n")


def names_of(folder: Path, flow: str, **options: Any) -> set[str]:
    found = files_of(load_flow(flow, folder if ":" in flow and "/" not in flow else None), **options)
    return {str(file.relative_to(folder.resolve())) for file in found.files}


@pytest.mark.parametrize(
    "name",
    [
        *[
            "system.txt",
            "prompts/a.j2",
            "prompts/deep/b.md",
            "settings.json",
            "settings.toml",
            "query.sql",
            "page.html",
        ],
        *["helper.py", "p.jinja2", "sub/p.prompty", "more.yaml", "UPPER.TXT", "catalog.txt", "blog.md"],
    ],
)
def test_what_the_code_of_a_flow_folder_could_read_counts(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"flow.flex.yaml": FLEX, "main.py": "", name: "x"})

    assert names_of(tmp_path, str(tmp_path)) == {"flow.flex.yaml", "main.py", name}


@pytest.mark.parametrize(
    "name",
    [
        *[
            "data.jsonl",
            "rows.csv",
            "README.md",
            "LICENSE.txt",
            "witness",
            "flow.log",
            "cache.db",
            "image.png",
            "log.txt",
        ],
        *[
            ".cache/a.json",
            "__pycache__/a.py",
            "node_modules/a.json",
            ".venv/a.txt",
            "cache/a.json",
            "logs/a.txt",
            "tmp/a.md",
        ],
        *["my_cache/a.json", "out/batch_result.json", "out/output.jsonl", ".ipynb_checkpoints/a.py", "my-cache.json"],
    ],
)
def test_data_outputs_caches_and_texts_for_people_do_not(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"flow.flex.yaml": FLEX, "main.py": "", name: "x"})
    write(tmp_path, ["runs/monday/manifest.json", "runs/monday/records/a.json", "runs/monday/batch_result.json"])

    assert names_of(tmp_path, str(tmp_path)) == {"flow.flex.yaml", "main.py"}


@pytest.mark.parametrize(
    "named",
    [
        *[
            "few.csv",
            "examples/few.csv",
            "README.md",
            "PROMPT",
            "few.json.gz",
            "model.pkl",
            "few_shot.png",
        ],
        *["vectors.npy", "prompts/system", "run.sh"],
    ],
)
def test_data_and_texts_for_people_and_other_files_count_if_a_source_names_them(tmp_path: Path, named: str) -> None:
    write(tmp_path, {"flow.flex.yaml": FLEX, "main.py": f"def run(q): return open('{named}').read()\n", named: "x"})

    assert named in names_of(tmp_path, str(tmp_path))


@pytest.mark.parametrize(
    "code",
    [
        "def run(q):\n    with open('seen', 'a') as file: file.write(q)\n",
        "def run(q):\n    with (HERE / 'seen').open(mode='w') as file: file.write(q)\n",
        "def run(q): HERE.joinpath('seen').write_bytes(q)\n",
        "def run(q): return (HERE / 'seen').exists() or (HERE / 'seen').touch()\n",
    ],
)
def test_a_file_that_the_code_itself_writes_does_not_count(code: str, tmp_path: Path) -> None:
    write(tmp_path, {"flow.flex.yaml": FLEX, "main.py": code, "seen": "a line"})
    assert names_of(tmp_path, str(tmp_path)) == {"flow.flex.yaml", "main.py"}


@pytest.mark.parametrize("name", ["healed", "witness.ready", "done.xyz"])
def test_a_file_of_an_unknown_kind_does_not_count(name: str, tmp_path: Path) -> None:
    code = f"from pathlib import Path\nMARK = Path('{name}')\ndef run(q): return MARK.exists() or MARK.open('a')\n"
    write(tmp_path, {"flow.flex.yaml": FLEX, "main.py": code, name: "a line"})
    assert names_of(tmp_path, str(tmp_path)) == {"flow.flex.yaml", "main.py"}


def test_an_empty_marker_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, {"flow.flex.yaml": FLEX, "main.py": "from os.path import exists\nexists('done')\n", "done": ""})
    assert names_of(tmp_path, str(tmp_path)) == {"flow.flex.yaml", "main.py"}


def test_what_a_run_reads_as_data_or_writes_is_left_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"flow.flex.yaml": FLEX, "main.py": "open('rows.csv')", "rows.json": "", "rows.csv": "", "out/a.json": ""},
    )
    given = [tmp_path / "rows.json", tmp_path / "rows.csv", tmp_path / "out"]

    assert names_of(tmp_path, str(tmp_path), leave_out=given) == {"flow.flex.yaml", "main.py"}
    assert names_of(tmp_path, str(tmp_path), leave_out=[tmp_path]) >= {"flow.flex.yaml", "main.py"}, (
        "data in the folder"
    )


HELPERS = {
    "import helper": {"helper.py"},
    "import pack.mod": {"pack/__init__.py", "pack/mod.py"},
    "from pack import mod": {"pack/__init__.py", "pack/mod.py"},
    "from pack.mod import x": {"pack/__init__.py", "pack/mod.py"},
    "from space.sub import x": {"space/sub.py"},
    "def g():\n    import helper": {"helper.py"},
    "try:\n    import helper\nexcept ImportError: pass": {"helper.py"},
    "import middle": {"middle.py", "helper.py"},
    "import pack.relative": {"pack/__init__.py", "pack/relative.py", "pack/mod.py"},
    "import importlib\nm = importlib.import_module('helper')": {"helper.py"},
    "import importlib\ndef g(n): return importlib.import_module('space.' + n)": {"space/sub.py"},
    "import importlib\ndef g(n): return importlib.import_module(f'space.{n}')": {"space/sub.py"},
    "open('prompts/a.txt')": {"prompts/a.txt", "prompts/b.txt"},
    "from pathlib import Path\np = Path(__file__).with_name('note.md')": {"note.md"},
    "from pathlib import Path\nd = Path(__file__).parent / 'prompts'\ndef g(k): return d / f'{k}.txt'": {
        "prompts/a.txt", "prompts/b.txt",
    },
    "import glob\nglob.glob('*.md')": {"note.md"},
    "def g(k): return open(f'some_{k}')": {"some_texts.html"},
    "import importlib\ndef g(k): return importlib.import_module('help' + '_' + k)": set(),
    "import importlib\ndef g(k): return importlib.import_module(f'hel_{k}')": {"hel_per.py"},
    "import importlib\ndef g(k): return importlib.import_module(k)": {
        "hel_per.py", "helper.py", "middle.py", "other.py", "pack/__init__.py", "pack/mod.py", "pack/relative.py",
        "space/sub.py", "tests/test_main.py",
    },
    "from pathlib import Path\nd = Path(__file__).parent\ndef g(): return [f.read_text() for f in d.iterdir()]": {
        "from_list.j2", "listed.yaml", "note.md", "prompts/a.txt", "prompts/b.txt", "some_texts.html", "unrelated.json",
    },
    "import os\ndef g(): return os.listdir('prompts')": {"prompts/a.txt", "prompts/b.txt"},
    "import glob\nx = glob.glob('*.md')": {"note.md"},
    "x = 'model'": set(),
    "x = open('model.bin')": {"model.bin"},
    "x = 'state.db run.log .env'": set(),
    "t = 'listed.yaml'": {"listed.yaml", "from_list.j2"},
    "x = 'A sentence about a helper and some prompts.'": set(),
    "import json, os": set(),
}  # fmt: skip


@pytest.mark.parametrize("form", ["file.py:attribute", "module:attribute"])
@pytest.mark.parametrize(("code", "counts"), HELPERS.items(), ids=HELPERS)
def test_a_callable_counts_what_its_file_imports_and_names(
    tmp_path: Path, form: str, code: str, counts: set[str]
) -> None:
    write(tmp_path, {"main.py": f"{code}\ndef run(q): return q\n", "middle.py": "import helper"})
    write(tmp_path, ["helper.py", "other.py", "pack/__init__.py", "pack/mod.py", "space/sub.py", "prompts/a.txt"])
    write(tmp_path, ["prompts/b.txt", "note.md", "from_list.j2", "unrelated.json", "tests/test_main.py"])
    write(tmp_path, ["some_shot", "some_texts.html", "hel_per.py", "model.bin", "state.db", "run.log", ".env"])
    write(tmp_path, {"pack/relative.py": "from . import mod", "listed.yaml": "- from_list.j2\n"})

    flow = f"{tmp_path / 'main.py'}:run" if form.startswith("file") else "main:run"

    assert names_of(tmp_path, flow) == {"main.py", *counts}


def test_a_file_that_an_argument_names_counts(tmp_path: Path) -> None:
    write(tmp_path, {"main.py": "class Main:\n    def __call__(self, q): return q\n", "v1.txt": "", "v2.txt": ""})

    assert names_of(tmp_path, "main:Main", names=["v2.txt"]) == {"main.py", "v2.txt"}


def test_local_code_elsewhere_counts_and_installed_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    write(shared, {"common.py": "import also", "also.py": ""})
    write(tmp_path / "flow", {"main.py": "import common, yaml, json, no_such_package, prefect\ndef run(q): return q\n"})
    monkeypatch.syspath_prepend(str(shared))

    found = files_of(load_flow(f"{tmp_path / 'flow' / 'main.py'}:run"))

    assert [file.name for file in found.files] == ["main.py", "also.py", "common.py"]
    assert found.packages == ("no_such_package", "yaml")


def test_a_file_that_is_not_python_or_not_readable_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path, {"flow.flex.yaml": FLEX, "main.py": "import broken", "broken.py": "def (", "b.txt": "\x00"})
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")

    assert names_of(tmp_path, str(tmp_path)) == {"flow.flex.yaml", "main.py", "broken.py", "b.txt", "latin.py"}
