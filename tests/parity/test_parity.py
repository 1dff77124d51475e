"""The cases of `cases/`, run here and compared with what promptflow 1.18.5 made of them.

What is compared: run status, counts, node status, outputs, metrics, tokens, the codes of errors, and what user code raised.
Numbers strictly: 1, 1.0 and true differ. `record.py` made the recordings; a case that was changed since says so.

`pytest -m parity` runs each case through the engine, but for those of images, whose outputs name files of the run. Those run
by their stages alone (`replay.run_stages`): the same functions and worker processes, without Prefect and the run storage. The
quick tests run, through the engine, the cases of what only `BatchEngine` does, and one of each area.

`DIFFERENCES` are meant: there our value is asserted, and that promptflow's is another.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from comparable import as_text, surroundings
from declared import Case, all_cases
from differences import DIFFERENCES
from record import recordings
from replay import run_engine, run_stages

if TYPE_CHECKING:
    from pathlib import Path

CASES = all_cases()
RECORDED = {area: recordings(area) for area in sorted({case.area for case in CASES.values()})}
BY_ENGINE = {
    "one_node",
    "two_sources_by_line_number",
    "aggregation_over_completed_lines_only",
    "a_tool_that_raises",
    "refused_import",
    "flex_aggregate",
    "sample_ticket_triage",
}
"""Cases among the quick tests, besides those that only the engine can run."""


def needs_engine(case: Case) -> bool:
    return case.resumes or "raise_on_line_failure" in case.run or "image_roots" in case.engine


def expected(case: Case) -> dict[str, Any]:
    """What promptflow gave."""
    recorded = RECORDED[case.area]["cases"].get(case.name)
    again = f"python tests/parity/record.py --only {case.name}"
    assert recorded is not None, f"The case {case.name} has no recording. Make one: {again}"
    assert recorded["case"] == case.digest(), f"The case {case.name} has changed since it was recorded. Again: {again}"
    return dict(recorded["result"])


def compare(case: Case, ours: dict[str, Any]) -> None:
    """Equal, but for what `DIFFERENCES` says of the case."""
    theirs = expected(case)
    difference = DIFFERENCES.get(case.name)
    if difference is None:
        assert as_text(ours) == as_text(theirs)
        return
    meant = {**({} if "raised" in difference.ours or "raised" in theirs else theirs), **difference.ours}
    assert as_text(meant) != as_text(theirs), f"promptflow does the same: take {case.name} out of DIFFERENCES"
    assert as_text(ours) == as_text(meant), difference.why


@pytest.mark.parity
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("an_image_") and not needs_engine(CASES[n])])
@pytest.mark.filterwarnings("ignore:.*is left out")
def test_the_stages_give_what_promptflow_gave(name: str, folder: Path, model_url: str) -> None:
    case = CASES[name]
    sources = case.write(folder, model_url)
    with surroundings(case, model_url):
        compare(case, run_stages(case, folder, sources, model_url))


@pytest.mark.parametrize("name", [n for n in CASES if n in BY_ENGINE or needs_engine(CASES[n])])
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.filterwarnings("ignore:.*is left out")
def test_the_engine_gives_what_promptflow_gave(name: str, folder: Path, storage: Path, model_url: str) -> None:
    by_engine(CASES[name], folder, storage, model_url)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", [n for n in CASES if not (n in BY_ENGINE or needs_engine(CASES[n]) or n.startswith("an_image_"))]
)
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.filterwarnings("ignore:.*is left out")
def test_the_engine_gives_it_for_every_case(name: str, folder: Path, storage: Path, model_url: str) -> None:
    by_engine(CASES[name], folder, storage, model_url)


def by_engine(case: Case, folder: Path, storage: Path, model_url: str) -> None:
    sources = case.write(folder, model_url)
    with surroundings(case, model_url):
        compare(case, run_engine(case, folder, sources, model_url, storage))
    shutil.rmtree(storage, ignore_errors=True)


def test_every_difference_is_that_of_a_case() -> None:
    assert set(DIFFERENCES) <= set(CASES)


def test_every_recording_is_that_of_a_case() -> None:
    assert {name for told in RECORDED.values() for name in told["cases"]} <= set(CASES)
