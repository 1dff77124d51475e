"""The README and the docs are true: the Python example prints what the page shows, and every command, link and name exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

import prefect_batchflow
from prefect_batchflow.cli.commands import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPTIONS = (ROOT / "docs" / "options.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("prefect_server")
def test_the_python_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    (code,), expected = blocks("python"), blocks("text")[0]
    script = tmp_path / "example.py"
    script.write_text(code)
    env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90)
    assert done.stdout.strip() == expected.strip(), done.stderr


def test_every_command_of_the_command_line_is_in_the_readme() -> None:
    for name in app:
        if not name.startswith("-"):
            assert f"batchflow {name}" in README


def test_readme_and_options_page_have_the_options_that_there_are() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "prefect_batchflow.cli", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "300"},
    ).stdout
    lines = [line for block in blocks("bash") if "batchflow run" in block for line in block.splitlines()]
    ours = "\n".join(line for line in lines if not line.startswith("batchflow rerun"))
    named = set(
        re.findall(r"(?<![\w-])--[a-z-]+", ours + "\n".join(re.findall(r"^\| `(--[^`]*)`", OPTIONS, flags=re.M)))
    )
    assert named
    there_are = set(re.findall(r"(?<![\w-])--[a-z-]+", help_text))
    assert named - there_are == set()
    # `--line-timeout-sec`, as the parameter is called, is `--line-timeout` too.
    assert {
        o for o in there_are if not o.startswith("--no-") and o.removesuffix("-sec") not in README + OPTIONS
    } == set()


PAGES = sorted(
    path for path in ROOT.glob("**/*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", page.read_text())
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.M) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    for module in re.findall(r"prefect_batchflow(?:\.[a-z_]+)+", page.read_text()):
        assert find_spec(module) is not None, module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_that_a_page_imports_from_us_is_public(page: Path) -> None:
    for home, names in re.findall(r"^from (prefect_batchflow[\w.]*) import (.*)$", page.read_text(), flags=re.M):
        assert home == "prefect_batchflow"
        assert set(names.split(", ")) <= set(prefect_batchflow.__all__)


def test_the_design_page_draws_the_rooms_that_there_are() -> None:
    drawn = re.findall(r"^[├└]── ([\w.]+)", (ROOT / "docs" / "design.md").read_text(), flags=re.M)
    package = ROOT / "prefect_batchflow"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(drawn) == sorted(rooms | {path.name for path in package.glob("*.py")})
