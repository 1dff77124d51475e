"""Limits a deployment's runs to places below the roots that the operator of the worker has set.

`flow` names code and `data` names what the code reads. Anyone who chooses them freely can run any command as the worker's user.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prefect_batchflow.blocks import is_block
from prefect_batchflow.connections.files import is_connection_file
from prefect_batchflow.definition.load import NAMED_CALLABLE
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.inputs.places import locate
from prefect_batchflow.settings import default_storage_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.settings import BatchRequest

ROOTS_VARIABLE = "BATCHFLOW_ROOTS"
"""A variable of the worker's environment: folders and URL prefixes, separated by commas. Unset means no limit."""


def check_roots(request: BatchRequest, roots: str) -> None:
    """Refuse a run that names a flow, data or a place to write outside the roots.

    Args:
        request: The run. The worker's own storage and saved blocks are allowed as its storage: an operator chose them.
        roots: As in `ROOTS_VARIABLE`; empty means no limit.

    Raises:
        InvalidOptionError: It names other places; the message lists them all.
    """
    places: list[tuple[str, str]] = []
    named = NAMED_CALLABLE.fullmatch(request.flow)
    if named and named["module"]:
        places.append(("flow", request.flow))
    else:
        # `load_flow` looks in the working directory first, too.
        path = named["file"] if named else request.flow
        first = Path(request.working_dir, path)
        places.append(("flow", str(first) if first.exists() else path))
    places += [
        (f"connection {name}", place) for name, place in request.connections.items() if is_connection_file(place)
    ]
    places += [("working_dir", request.working_dir), ("output_dir", request.output_dir)]
    if request.storage != default_storage_url() and not is_block(request.storage):
        places.append(("storage", request.storage))
    # The check sees data with its variables filled in; the message shows it as it was given.
    given = [*request.sources.items(), *(("image_roots", root) for root in request.image_roots)]
    found = [(f"{name} {url!r}", locate(url)) for name, url in given]
    # A cluster gets the run's connections, and its answers are unpickled here. Its address must be a root itself.
    address = request.options.task_runner_address
    addresses = [address] if address not in ("", "auto") else []
    _refuse_outside([*found, *((f"{name} {place!r}", place) for name, place in places if place)], roots, addresses)


def check_roots_of(name: str, url: str, roots: str) -> None:
    """Refuse one more place that a run wants to read, as `check_roots` does."""
    _refuse_outside([(f"{name} {url!r}", url)], roots)


def _refuse_outside(places: list[tuple[str, str]], roots: str, addresses: Sequence[str] = ()) -> None:
    """Refuse places outside the roots, given as (shown in the message, checked), and addresses that are not roots."""
    allowed = [root.strip() for root in roots.split(",") if root.strip()]
    if not allowed:
        return
    outside = [shown for shown, place in places if not any(_is_below(place, root) for root in allowed)]
    outside += [f"task_runner_address {address!r}" for address in addresses if address not in allowed]
    if outside:
        raise InvalidOptionError(
            f"{', '.join(outside)}: not below {' or '.join(allowed)}. This worker limits deployment runs to these roots. "
            f"Move it there, or ask the operator of the worker to add a root to {ROOTS_VARIABLE}."
        )


def _is_below(place: str, root: str) -> bool:
    """Whether a path is below a root that is a path, or a URL below a URL, after following links and `..`."""
    path, folder = _local_path(place), _local_path(root)
    if path is not None and folder is not None:
        return path.resolve().is_relative_to(folder.resolve())
    if path is not None or folder is not None:
        return False
    steps = unquote(place).split("/")
    return "::" not in place and ".." not in steps and f"{place}/".startswith(f"{root.rstrip('/')}/")


def _local_path(place: str) -> Path | None:
    """A path on this machine; `None` for any other URL and for the name of a module."""
    named = NAMED_CALLABLE.fullmatch(place)
    if "::" in place or (named and named["module"]):
        return None
    url = urlsplit(place)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return None if "://" in place else Path(place).expanduser()
