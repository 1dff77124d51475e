"""A connection that is missing while the Prefect server, where saved ones are, cannot be asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_batchflow.exceptions import PrefectServerError
from prefect_batchflow.run.starting import FlowRequest
from prefect_batchflow.run.trial import GivenRow, try_line

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_batchflow.run.trial import Trial

pytestmark = pytest.mark.programs

CLASS = """\
from promptflow.connections import CustomConnection
class Main:
    def __init__(self, c: CustomConnection): self.c = c
    def __call__(self, q: str): return self.c.place
"""


def tried(folder: Path) -> Trial:
    (folder / "main.py").write_text(CLASS)
    request = FlowRequest(flow=str(folder / "main.py") + ":Main", init_kwargs={"c": "my_own"}, run_id="test")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        return asyncio.run(try_line(request, GivenRow(inputs={"q": "a"})))


def test_one_line_takes_it_from_variables_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_PLACE", "here")

    trial = tried(tmp_path)

    assert trial.record["output"] == {"output": "here"}
    (note,) = trial.notes
    assert "'my_own' comes from variables. The Prefect server at http://127.0.0.1:9/api cannot be reached" in note


def test_without_variables_both_causes_are_said(tmp_path: Path) -> None:
    with pytest.raises(
        PrefectServerError, match=r"'my_own'.* was not given.* Saved .*127\.0\.0\.1:9.* cannot be reached"
    ):
        tried(tmp_path)
