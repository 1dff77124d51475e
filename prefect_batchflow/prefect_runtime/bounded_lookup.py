"""A bounded look for saved connections, for a command that has something to say without them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.exceptions import BatchflowException
from prefect_batchflow.prefect_runtime.own_database import block_name, may_have_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

WITHIN_SEC: Final = 30.0
"""How long the look can take, with the start of an own server."""


def look_up_connections(names: Iterable[str]) -> tuple[dict[str, Any], str]:
    """Load the connections that have a block of their name.

    Returns:
        The connections that were found, and why blocks could not be looked up; empty if they could.
    """
    wanted = set(names)
    if not may_have_blocks([block for block in map(block_name, wanted) if block]):
        return {}, ""
    found: dict[str, Any] = {}
    failure = ""

    def look() -> None:
        nonlocal failure
        # Not at the top: it imports Prefect, which takes a second.
        from prefect_batchflow.prefect_runtime.connection_blocks import find_connections

        try:
            found.update(asyncio.run(find_connections(wanted)))
        except BatchflowException as exc:
            failure = exc.message
        except Exception as exc:  # noqa: BLE001 - the border to Prefect: the flow can be checked without it
            failure = f"({type(exc).__name__}) {exc}"

    # A daemon: a server that does not answer in time must not keep the command.
    thread = threading.Thread(target=look, name="saved-connections", daemon=True)
    thread.start()
    thread.join(WITHIN_SEC)
    if thread.is_alive():
        failure = f"no answer within {WITHIN_SEC:g} s"
    if failure:
        return {}, f"Saved Prefect blocks, which a run uses, could not be looked up: {failure}"
    return found, ""
