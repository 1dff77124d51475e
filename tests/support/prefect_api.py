"""Prefect's API as these tests ask it, over plain HTTP: what the UI does, and what it shows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
LIMIT_SEC = 120.0
"""How long anything may take on a machine that does other things too."""


def wait_for(predicate: Callable[[], T], description: str, limit_sec: float = LIMIT_SEC) -> T:
    """Give the predicate's value once it is true; ten looks a second, since each may be a request.

    Raises:
        AssertionError: It was not within the limit; the message has the description and the last value.
    """
    end = time.monotonic() + limit_sec
    while not (value := predicate()):
        assert time.monotonic() < end, f"not within {limit_sec:g} s: {description}; the last value was {value!r}"
        time.sleep(0.1)
    return value


class PrefectAPI:
    """A client of one server.

    Args:
        url: Its address, `/api` included.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # Longer than the 60 s that the server itself waits for its database.
        self._client = httpx.Client(base_url=url, timeout=90)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        return self._answer("GET", path).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._answer("POST", path, body).raise_for_status().json()

    def _answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """What the server says; one whose database is busy says 503, and is asked again."""

        def answer() -> httpx.Response | None:
            response = self._client.request(method, path, json=body)
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        response = wait_for(answer, f"the server answers {method} {path}")
        assert response is not None
        return response

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/deployments/name/batch-run/{name}"))

    def has_deployment(self, name: str) -> bool:
        return self._answer("GET", f"/deployments/name/batch-run/{name}").is_success

    def try_to_start(self, deployment: str, parameters: dict[str, Any], **more: Any) -> httpx.Response:
        """Ask for a run of a deployment, as the UI's form does."""
        path = f"/deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return self._answer("POST", path, {"parameters": parameters, "state": {"type": "SCHEDULED"}, **more})

    def start(self, deployment: str, parameters: dict[str, Any], **more: Any) -> str:
        """Start a run of a deployment and give its id."""
        return str(self.try_to_start(deployment, parameters, **more).raise_for_status().json()["id"])

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        return dict(self.get(f"/flow_runs/{flow_run_id}"))

    def state(self, flow_run_id: str) -> dict[str, Any]:
        return dict(self.flow_run(flow_run_id)["state"])

    def ended(self, flow_run_id: str, limit_sec: float = LIMIT_SEC) -> dict[str, Any]:
        """The final state of a run, once it has one."""

        def final_state() -> dict[str, Any] | None:
            state = self.state(flow_run_id)
            return state if state["type"] in FINAL else None

        return wait_for(final_state, f"flow run {flow_run_id} has ended", limit_sec) or {}

    def retry(self, flow_run_id: str) -> None:
        """Press Retry."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        self.post(f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": False})

    def cancel(self, flow_run_id: str) -> None:
        """Press Cancel."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.post(f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": True})

    def task_runs(self, flow_run_id: str) -> list[dict[str, Any]]:
        """The task runs of a flow run, by name; the server may not have heard of all yet."""
        body = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "sort": "NAME_ASC", "limit": 200}
        return list(self.post("/task_runs/filter", body))

    def ended_task_runs(self, flow_run_id: str, count: int) -> list[dict[str, Any]]:
        """The task runs, once the server knows of so many that ended."""

        def ended() -> list[dict[str, Any]]:
            return [run for run in self.task_runs(flow_run_id) if run["state_type"] in FINAL]

        wait_for(lambda: len(ended()) >= count, f"{count} task runs of {flow_run_id} have ended")
        return ended()

    def artifacts(self, flow_run_id: str) -> dict[str, dict[str, Any]]:
        """The artifacts of a flow run, by type."""
        body = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        return {artifact["type"]: artifact for artifact in self.post("/artifacts/filter", body)}

    def logs(self, flow_run_id: str) -> list[str]:
        """What a flow run has logged so far."""
        body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [log["message"] for log in self.post("/logs/filter", body)]
