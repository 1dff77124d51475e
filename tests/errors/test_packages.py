"""Optional packages: the command that installs one, and whether one is there."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from prefect_batchflow.errors.packages import PACKAGES, is_installed, pip_install

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(("module", "given"), [item for item in PACKAGES.items() if "batchflow" in item[1]])
def test_an_extra_brings_the_module(module: str, given: str) -> None:
    found = re.fullmatch(r"'prefect-batchflow\[(\w+)\]'", given)
    assert found is not None
    brought = PROJECT["optional-dependencies"][found[1]]
    assert any(
        re.split(r"[>=\[]", each)[0] == re.sub(r"[_.]", "-", module).replace("backports-", "backports.")
        for each in brought
    )


def test_the_command_is_one_that_a_shell_takes() -> None:
    assert pip_install("openai") == "pip install 'prefect-batchflow[llm]'"
    assert pip_install("azure.identity") == "pip install azure-identity"


def test_a_module_is_looked_for_and_not_imported(tmp_path: Path) -> None:
    (tmp_path / "at_hand").mkdir()
    (tmp_path / "at_hand" / "inner.py").write_text("raise RuntimeError")

    assert is_installed("json.decoder")
    assert not is_installed("json.nothing")
    assert not is_installed("at_hand.inner")
    assert is_installed("at_hand.inner", [str(tmp_path)])
    assert "at_hand.inner" not in sys.modules
