"""The README says what is so: its Python runs and prints what it says, its commands and links exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

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
    ours = "\n".join(block for block in blocks("bash") if "batchflow run" in block)
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


def test_every_link_leads_to_a_file() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
