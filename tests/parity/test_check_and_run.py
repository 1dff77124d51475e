"""`batchflow check` agrees with the start of a run, for every flow of the parity cases and every sample.

A worker loads each flow as a run does. A check without an import says `can run` exactly for those that load, but for flows that
only an import shows to be wrong; a check with one always agrees.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from comparable import connections_of, entry_of, surroundings
from declared import all_cases

from prefect_batchflow.cli.flow_check import check_flow
from prefect_batchflow.exceptions import BatchflowException, FlowNotFoundError
from prefect_batchflow.run.starting import FlowRequest, starting

CASES = all_cases()
SAMPLES = Path(__file__).parents[2] / "flows"
ONLY_AN_IMPORT_SHOWS = {
    "flex_class_that_cannot_be_built": "its constructor raises",
    "refused_module_that_raises": "its module raises when it is imported",
}
CANNOT_TELL = {
    "a_package_that_only_a_line_imports": "its lines fail",
}
"""Flows that load, of which a check says that lines can fail."""
AI = {"type": "OpenAIConnection", "value": {"api_key": "k", "base_url": "http://127.0.0.1:9"}}


def refusal(request: FlowRequest) -> str:
    """Why a worker does not load the flow; empty if it does."""

    async def start() -> None:
        async with starting(request) as start:
            await start.start()

    try:
        asyncio.run(start())
    except BatchflowException as exc:
        return exc.message
    return ""


def compare(name: str, flow: Any, working_dir: str, **given: Any) -> None:
    refused = refusal(FlowRequest(flow=flow, working_dir=working_dir, **given))
    if refused.startswith("No flow at"):
        with pytest.raises(FlowNotFoundError, match="No flow at"):
            check_flow(flow, working_dir, **given)
        return
    read = check_flow(flow, working_dir, **given)
    if name in ONLY_AN_IMPORT_SHOWS:
        assert (read.verdict, bool(refused)) == ("can run", True), ONLY_AN_IMPORT_SHOWS[name]
    elif name in CANNOT_TELL:
        assert (read.verdict, refused) == ("cannot tell", ""), CANNOT_TELL[name]
    else:
        assert (read.verdict == "can run") == (not refused), (refused, read.findings)
    if refused:
        imported = check_flow(flow, working_dir, imports=True, **given)
        assert imported.verdict in ("cannot run", "needs"), (refused, imported.findings)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.filterwarnings("ignore:.*is left out")
def test_a_check_says_whether_a_case_loads(name: str, folder: Path, model_url: str) -> None:
    compare_case(name, folder, model_url)


def compare_case(name: str, folder: Path, model_url: str) -> None:
    case = CASES[name]
    case.write(folder, model_url)
    with surroundings(case, model_url):
        connections = connections_of(case, model_url) if case.connections else {}
        compare(name, entry_of(case, folder), str(folder), init_kwargs=case.init or {}, connections=connections)


@pytest.mark.parametrize(
    ("sample", "given"),
    [
        ("code_eval/evaluate.py:evaluate", {}),
        ("math_qa", {}),
        ("math_qa", {"connections": {"open_ai_connection": AI}}),
        ("qa_prompty/ask.prompty", {}),
        ("qa_prompty/ask.prompty", {"environment_variables": {"OPENAI_API_KEY": "k"}}),
        ("ticket_triage", {}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("prefect_server")
def test_a_check_says_whether_a_sample_loads(
    sample: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    compare(sample, str(SAMPLES / sample), "", **given)
