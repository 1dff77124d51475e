"""The deployments of `deployments/prefect.yaml`: scheduled, run by hand with parameters, run again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from prefect_api import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_api import PrefectAPI
    from prefect_processes import Home
    from steering import Steering

pytestmark = [pytest.mark.server, pytest.mark.timeout(300), pytest.mark.usefixtures("deployed")]


def test_the_nightly_deployment_gets_its_scheduled_runs(api: PrefectAPI) -> None:
    deployment = api.deployment("nightly")
    body = {"deployments": {"id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}

    def scheduled() -> list[dict[str, Any]]:
        return [run for run in api.post("/flow_runs/filter", body) if run["auto_scheduled"]]

    runs = wait_for(scheduled, "the scheduler has made runs of the nightly deployment")
    schedule = deployment["schedules"][0]["schedule"]
    assert (schedule["cron"], schedule["timezone"]) == ("30 2 * * *", "Europe/Berlin")
    assert {(run["state"]["type"], run["expected_start_time"][14:16]) for run in runs} == {("SCHEDULED", "30")}
    assert runs[0]["parameters"]["flow"] == "flows/ticket_triage"


def test_the_working_directory_is_filled_in_by_the_worker(api: PrefectAPI) -> None:
    step = api.deployment("ad-hoc")["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]

    assert step == {"directory": "{{ $BATCHFLOW_HOME }}"}


@pytest.mark.parametrize("name", ["nightly", "ad-hoc", "rerun"])
def test_the_form_describes_every_parameter(api: PrefectAPI, name: str) -> None:
    properties: dict[str, Any] = api.deployment(name)["parameter_openapi_schema"]["properties"]

    assert [parameter for parameter, field in properties.items() if not field.get("description")] == []
    # A form shows a field for each of these, and tabs for anything else.
    assert {
        parameter
        for parameter, field in properties.items()
        if field.get("type") not in ("string", "integer", "number", "boolean")
    } == {
        *("inputs_mapping", "more_data", "init_kwargs", "connections", "node_connections", "environment_variables"),
        "image_roots",  # a list of texts
    }


@pytest.mark.parametrize(
    ("parameter", "bounds"),
    [
        ("max_lines_count", {"minimum": 0}),
        ("worker_count", {"minimum": 0, "maximum": 1024}),
        ("max_concurrency", {"minimum": 1, "maximum": 10_000}),
        ("line_timeout_sec", {"exclusiveMinimum": 0}),
        ("retry_backoff", {"minimum": 1}),
        ("retry_jitter", {"minimum": 0, "maximum": 1}),
        ("granularity", {"enum": ["auto", "line", "chunk"]}),
        ("on_change", {"enum": ["refuse", "reuse", "rerun"]}),
    ],
)
def test_the_form_has_bounds(api: PrefectAPI, parameter: str, bounds: dict[str, object]) -> None:
    field: dict[str, object] = api.deployment("ad-hoc")["parameter_openapi_schema"]["properties"][parameter]

    assert {name: value for name, value in field.items() if name in bounds} == bounds


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"worker_count": -1}, "-1 is less than the minimum of 0"),
        ({"line_timeout_sec": 0}, "0 is less than or equal to the minimum of 0"),
        ({"granularity": "lines"}, "'lines' is not one of ['auto', 'line', 'chunk']"),
        ({"data": ["a.jsonl"]}, "['a.jsonl'] is not of type 'string'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_parameter_out_of_bounds_starts_nothing(api: PrefectAPI, parameters: dict[str, Any], reason: str) -> None:
    response = api.try_to_start("ad-hoc", parameters)

    assert response.status_code == 409
    assert reason in response.json()["detail"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nightly", "136 of 136 lines completed"), ("ad-hoc", "9 of 12 lines completed, 3 failed")],
    ids=["nightly", "ad-hoc"],
)
def test_a_deployment_runs_as_it_stands(api: PrefectAPI, name: str, message: str) -> None:
    state = api.ended(api.start(name, {}))

    assert (state["type"], state["message"]) == ("COMPLETED", message)


def test_a_run_by_hand_and_its_rerun(api: PrefectAPI, deployed: Home, steering: Callable[[int], Steering]) -> None:
    steered = steering(60)
    steered.fail(7)

    first = api.start("ad-hoc", steered.parameters(granularity="line"))

    state = api.ended(first)
    assert (state["type"], state["message"]) == ("COMPLETED", "59 of 60 lines completed, 1 failed")
    assert api.flow_run(first)["name"] == f"steered-{first}"
    assert steered.executed() == dict.fromkeys(range(60), 1)

    task_runs = {run["name"]: run for run in api.ended_task_runs(first, 60)}
    assert list(task_runs) == [f"line-{number:06d}" for number in range(60)]
    assert all(run["tags"] == [f"run:{first}"] for run in task_runs.values())
    assert task_runs["line-000042"]["state_type"] == "COMPLETED"
    assert task_runs["line-000007"]["state_type"] == "FAILED"
    assert "line 7 was told to fail" in task_runs["line-000007"]["state"]["message"]

    artifacts = api.artifacts(first)
    assert set(artifacts) == {"markdown", "table", "progress"}
    assert "# steered: 59 of 60 lines completed, 1 failed" in artifacts["markdown"]["data"]
    assert [row["line_number"] for row in json.loads(artifacts["table"]["data"])] == [7]
    assert artifacts["progress"]["data"] == 100.0

    steered.fail(None)
    second = api.start("rerun", steered.parameters(resume_from=first))

    state = api.ended(second)
    assert (state["type"], state["message"]) == ("COMPLETED", "60 of 60 lines completed")
    assert steered.executed() == {number: 2 if number == 7 else 1 for number in range(60)}
    assert [run["name"] for run in api.ended_task_runs(second, 1)] == ["line-000007"]
    outputs = (deployed.runs / second / "outputs.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in outputs] == list(range(60))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"flow": "flows/ticket_triag"}, "No flow at ", id="missing flow"),
        pytest.param({"inputs_mapping": {"number": "${data.numbr}"}}, "numbr", id="misspelt column"),
        pytest.param({"resume_from": "never-run"}, "never-run", id="unknown run"),
        pytest.param(
            {"flow": "subprocess:getoutput"}, "flow 'subprocess:getoutput': not below ", id="flow of any module"
        ),
    ],
)
def test_a_wrong_parameter_fails_the_run_with_the_reason_and_nothing_else(
    api: PrefectAPI, deployed: Home, steering: Callable[[int], Steering], wrong: dict[str, Any], message: str
) -> None:
    steered = steering(3)

    flow_run_id = api.start("ad-hoc", steered.parameters(**wrong))

    state = api.ended(flow_run_id)
    assert state["type"] == "FAILED"
    assert message in state["message"]
    logs = wait_for(
        lambda: [text for text in api.logs(flow_run_id) if "Finished in state" in text] and api.logs(flow_run_id),
        "the log of the flow run has arrived",
    )
    assert not [text for text in logs if "Traceback" in text]
    assert steered.executed() == {}
    folder = deployed.runs / flow_run_id
    assert not [
        file.name for file in folder.rglob("*") if file.suffix in (".jsonl", ".json") and file.parent.name != "leases"
    ]


@pytest.mark.parametrize(
    "brought", [{"command": "true"}, {"env": {"BATCHFLOW_ROOTS": ""}}], ids=["command", "environment"]
)
def test_a_run_brings_no_surroundings_of_its_own(
    api: PrefectAPI, steering: Callable[[int], Steering], brought: dict[str, Any]
) -> None:
    response = api.try_to_start("ad-hoc", steering(3).parameters(), job_variables=brought)

    assert response.status_code == 422
    assert "Additional properties are not allowed" in response.json()["detail"]
