"""The states that runs and task runs end in. Their texts can be of users, so they are made fit for Prefect here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.states import Cancelled, Completed, Failed

from prefect_batchflow.results.models import BatchResult, summary_line
from prefect_batchflow.results.records import Status
from prefect_batchflow.results.texts import encodable

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

LONGEST_MESSAGE = 5_000
"""Characters of a message. The record of a line and the result of a run have the whole one."""


def completed(message: str, *, name: str | None = None, data: Any = None) -> State[Any]:
    """A state of type COMPLETED."""
    return Completed(message=_fit(message), name=name, data=data)


def failed(message: str, *, name: str | None = None) -> State[Any]:
    """A state of type FAILED."""
    return Failed(message=_fit(message), name=name)


def cancelled(message: str) -> State[Any]:
    """A state of type CANCELLED."""
    return Cancelled(message=_fit(message))


def of_result(result: BatchResult, reason: str = "") -> State[Any]:
    """The state of a run that has this result. `reason` says who cancelled it."""
    message = summary_line(result)
    if result.status is Status.Canceled:
        return cancelled(f"{message}. {reason}" if reason else message)
    if result.status is Status.Failed:
        batch_error = result.error_summary.batch_error_dict or {}
        return failed(f"{message}. {batch_error.get('message', '')}")
    return completed(message, data=result)


def _fit(message: str) -> str:
    text = encodable(message)
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} …"
