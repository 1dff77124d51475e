"""What the parameters of a deployment's run may name: only what lies below the roots that the worker's operator set.

`flow` names code and `data` names what it reads, so who may choose them freely may run any command as the worker's user.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prefect_batchflow.definition.load import NAMED_CALLABLE
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.inputs.places import locate
from prefect_batchflow.settings import default_storage_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.settings import BatchRequest

ROOTS_VARIABLE = "BATCHFLOW_ROOTS"
"""In the worker's environment: folders and URL prefixes, separated by commas; unset is no limit."""


def check_roots(request: BatchRequest, roots: str) -> None:
    """Refuse a run that names a flow, data or a place to write outside of the roots.

    Args:
        request: The run. Its storage is free where it is the worker's own or a saved block, which somebody had to make.
        roots: As in `ROOTS_VARIABLE`; empty is no limit.

    Raises:
        InvalidOptionError: It names something else; the message lists all of it.
    """
    places: list[tuple[str, str]] = []
    named = NAMED_CALLABLE.fullmatch(request.flow)
    if named and named["module"]:
        places.append(("flow", request.flow))
    else:
        # It is looked for in the working directory first, as `load_flow` does.
        path = named["file"] if named else request.flow
        first = Path(request.working_dir, path)
        places.append(("flow", str(first) if first.exists() else path))
    places += [("working_dir", request.working_dir), ("output_dir", request.output_dir)]
    if request.storage != default_storage_url() and not request.storage.startswith("batchflow-run-storage/"):
        places.append(("storage", request.storage))
    # Data is looked for with its variables filled in, and shown as it was given.
    found = [(f"{name} {url!r}", locate(url)) for name, url in request.sources.items()]
    # The cluster gets the run's connections, and its answers are unpickled here. It is no place below which others lie.
    address = request.options.task_runner_address
    addresses = [address] if address not in ("", "auto") else []
    _refuse_outside([*found, *((f"{name} {place!r}", place) for name, place in places if place)], roots, addresses)


def check_roots_of(name: str, url: str, roots: str) -> None:
    """Refuse one more place that a run is to read, as `check_roots` does."""
    _refuse_outside([(f"{name} {url!r}", url)], roots)


def _refuse_outside(places: list[tuple[str, str]], roots: str, addresses: Sequence[str] = ()) -> None:
    """Refuse places, each as a message shows it and as it is looked for, and addresses that are no root themselves."""
    allowed = [root.strip() for root in roots.split(",") if root.strip()]
    if not allowed:
        return
    outside = [shown for shown, place in places if not any(_is_below(place, root) for root in allowed)]
    outside += [f"task_runner_address {address!r}" for address in addresses if address not in allowed]
    if outside:
        raise InvalidOptionError(
            f"{', '.join(outside)}: not below {' or '.join(allowed)}, to which this worker holds runs of "
            f"deployments. Move it there, or ask who runs the worker to add a root to its {ROOTS_VARIABLE}."
        )


def _is_below(place: str, root: str) -> bool:
    """Whether a path, or a URL, is below a root of its kind, with links and `..` followed."""
    path, folder = _local_path(place), _local_path(root)
    if path is not None and folder is not None:
        return path.resolve().is_relative_to(folder.resolve())
    if path is not None or folder is not None:
        return False
    steps = unquote(place).split("/")
    return "::" not in place and ".." not in steps and f"{place}/".startswith(f"{root.rstrip('/')}/")


def _local_path(place: str) -> Path | None:
    """A path of this machine; `None` for another URL, and for the name of a module."""
    named = NAMED_CALLABLE.fullmatch(place)
    if "::" in place or (named and named["module"]):
        return None
    url = urlsplit(place)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return None if "://" in place else Path(place).expanduser()
