"""Limits a deployment's runs to places below the roots that the operator of the worker has set.

`flow` names code and `data` names what the code reads. Anyone who chooses them freely can run any command as the worker's user.
Each check is about the very path or URL that the run opens. A new parameter needs its row in the table of
`tests/run/test_roots.py`.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.blocks import is_block
from prefect_batchflow.connections.environment import variables_in
from prefect_batchflow.connections.files import is_connection_file
from prefect_batchflow.definition.load import named_place
from prefect_batchflow.definition.parsing import parsed
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.inputs.places import climbs, local_folder, locate
from prefect_batchflow.settings import default_storage_url
from prefect_batchflow.storage.files import folder_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prefect_batchflow.settings import BatchRequest

ROOTS_VARIABLE = "BATCHFLOW_ROOTS"
"""A variable of the worker's environment: folders and URL prefixes, separated by commas. Unset means no limit."""
VARIABLES_VARIABLE = "BATCHFLOW_ALLOWED_VARIABLES"
"""Where roots are set: the environment variables that a run can set, separated by commas; `MY_*` allows a prefix."""

FLOW_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""Prefect sets it in each process that it starts for a run of a deployment; its value names the run."""

_LOCAL = ("file://", "local://")
_URL = re.compile(r"[\s\x00-\x1f]*(?:[A-Za-z][A-Za-z0-9+.-]*:+[/\\]{2}|(?:https?|wss?|ftp):|[/\\]{2})", re.IGNORECASE)
"""Begins like an address. Browsers and Node.js read `http:host`, `//host` and `\\\\host` as addresses as well."""
_LEFT_OUT = re.compile(r"[\t\r\n]")
"""Many parsers of addresses leave these characters out."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The places that a run can use; without any there is no limit."""

    allowed: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    """The environment variables that a run can set."""

    @classmethod
    def of(cls, roots: str, variables: str = "") -> Roots:
        """The roots in the text of `ROOTS_VARIABLE`, and the variables in that of `VARIABLES_VARIABLE`."""
        return cls(tuple(_listed(roots)), tuple(_listed(variables)))

    @classmethod
    def of_flow_run(cls, deployment_id: object) -> Roots:
        """Those of this process's environment for a run of a deployment, also one that another flow starts; else no limit.

        Raises:
            InvalidOptionError: The variable is set, but lists nothing. Perhaps a variable in its text was empty.
        """
        if deployment_id is None and FLOW_RUN_VARIABLE not in os.environ:
            return cls()
        given = os.environ.get(ROOTS_VARIABLE)
        roots = cls.of(given or "", os.environ.get(VARIABLES_VARIABLE, ""))
        if given is not None and not roots.allowed:
            raise InvalidOptionError(
                f"{ROOTS_VARIABLE} is set on this worker, but names no place ({given!r}), so no run is allowed. Ask the "
                "operator of the worker to list folders and URLs, separated by commas, or to unset it."
            )
        return roots

    @property
    def may_read(self) -> Callable[[str], bool] | None:
        """Whether a path or URL is below a root, links followed; `None` without a limit."""
        return self._has if self.allowed else None

    def check(self, request: BatchRequest) -> None:
        """Refuse a run that names a flow, data or a place to write outside the roots, or sets other variables.

        The worker's own storage and saved blocks are allowed: an operator chose them.

        Raises:
            InvalidOptionError: The message lists everything that is refused.
        """
        if not self.allowed:
            return
        working_dir = _resolved(Path(request.working_dir)) if request.working_dir else None
        path, attribute = named_place(request.flow, working_dir)
        shown = request.flow if path is None else request.flow.removesuffix(f":{attribute}")
        places: list[tuple[str, str, str | None]] = [("flow", shown, _path(None if path is None else str(path)))]
        places += [
            (f"connection {name}", place, _path(place))
            for name, place in request.connections.items()
            if is_connection_file(place)
        ]
        places.append(("working_dir", request.working_dir, _path(request.working_dir)))
        places.append(("output_dir", request.output_dir, _output_place(request.output_dir)))
        if request.storage not in ("", default_storage_url()) and not is_block(request.storage):
            places.append(("storage", request.storage, _storage_place(request.storage)))
        # The check sees data with its variables filled in; the message shows it as it was given.
        places += [(name, url, _data_place(url)) for name, url in request.sources.items()]
        places += [("image_roots", root, locate(root)) for root in request.image_roots]
        addresses = [text for text in _texts(request.init_kwargs) if _URL.match(_LEFT_OUT.sub("", text))]
        places += [("init_kwargs", url, url if "://" in url else None) for url in addresses]
        outside = [f"{name} {given!r}" for name, given, place in places if given and not self._has(place)]
        # A cluster gets the run's connections, and its answers are unpickled here. Its address must be a root itself.
        address = request.options.task_runner_address
        if address not in ("", "auto", *self.allowed):
            outside.append(f"task_runner_address {address!r}")
        problems = [self._told(outside)] if outside else []
        if not outside:
            problems += self._links_out_of_runs(request)
            if path is not None and attribute:
                problems += _problem_of_code(path, attribute)
        problems += self._problems_of_values(request)
        if problems:
            raise InvalidOptionError(" ".join(problems))

    def check_source(self, name: str, url: str) -> None:
        """Refuse one more source that a run wants to read, as `check` does."""
        if self.allowed and not self._has(_data_place(url)):
            raise InvalidOptionError(self._told([f"{name} {url!r}"]))

    def _told(self, outside: Sequence[str]) -> str:
        extra = ""
        if any(start in place for place in outside for start in _LOCAL):
            extra = " Write a local place as a path: a file:// URL with a host, ?, # or % is refused here."
        return (
            f"{', '.join(outside)}: not below {' or '.join(self.allowed)}. This worker limits deployment runs to these roots. "
            f"Move it there, or ask the operator of the worker to add a root to {ROOTS_VARIABLE}.{extra}"
        )

    def _links_out_of_runs(self, request: BatchRequest) -> Iterator[str]:
        """Refuse runs in a given storage whose files are links to somewhere else: they are read, and folders written."""
        if request.storage in ("", default_storage_url()) or is_block(request.storage):
            return
        storage = _local_path(_storage_place(request.storage))
        for run_id in filter(None, (request.run_id, request.run, request.resume_from)) if storage else ():
            assert storage is not None
            for place in _links_in(storage / run_id):
                if not self._has(str(place)):
                    yield (
                        f"storage {request.storage!r}: {place} is a link that leads out of {' or '.join(self.allowed)}. This "
                        "worker limits deployment runs to these roots. Remove the link, or put the files themselves there."
                    )
                    return

    def _problems_of_values(self, request: BatchRequest) -> Iterator[str]:
        others = [
            name
            for name in request.environment_variables
            if not any(fnmatchcase(name, allowed) for allowed in self.variables)
        ]
        if others:
            yield (
                f"environment_variables {', '.join(map(repr, others))}: this worker limits what runs can set, because "
                "variables such as PYTHONPATH run code. Set it in the flow's yaml, or ask the operator of the worker to add "
                f"its name to {VARIABLES_VARIABLE}."
            )
        named = dict.fromkeys(name for text in _texts(request.init_kwargs) for name in variables_in(text))
        if named:
            yield (
                f"init_kwargs {', '.join(f'${{env:{name}}}' for name in named)}: this worker's runs cannot name variables of "
                "its environment. Name a connection instead, or write the reference into the flow's yaml."
            )

    def _has(self, place: str | None) -> bool:
        """Whether a path is below a root that is a path, or a URL below a URL, after following links and `..`."""
        return place is not None and any(_is_below(place, root) for root in self.allowed)


def check_roots(request: BatchRequest, roots: str, variables: str = "") -> None:
    """Refuse a run as `Roots.check` does, with roots and variables as texts."""
    Roots.of(roots, variables).check(request)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _path(place: str | None) -> str | None:
    """A path; `None` for a URL, which is no place for it."""
    return None if place is None or "://" in place else place


def _output_place(output_dir: str) -> str:
    # What is no local folder is refused later, with advice.
    return output_dir if _is_strange(output_dir) or "://" in output_dir else str(local_folder(output_dir))


def _storage_place(storage: str) -> str:
    return storage if _is_strange(storage) or "::" in storage else folder_url(storage)


def _data_place(url: str) -> str:
    return "/dev/stdin" if url == "-" else locate(url)


def _is_strange(place: str) -> bool:
    """Whether the URL of a local place has parts that some readers take for something else."""
    rest = next((place.removeprefix(start) for start in _LOCAL if place.startswith(start)), None)
    return rest is not None and (not rest.startswith("/") or any(mark in rest for mark in "?#%"))


def _is_below(place: str, root: str) -> bool:
    path, folder = _local_path(place), _local_path(root)
    if path is not None and folder is not None:
        return not _is_strange(place) and _resolved(path).is_relative_to(_resolved(folder))
    if path is not None or folder is not None:
        return False
    return "::" not in place and not climbs(place) and f"{place}/".startswith(f"{root.rstrip('/')}/")


def _local_path(place: str) -> Path | None:
    """The path that a path or a local URL opens, as fsspec reads it; `None` for any other URL."""
    if "::" in place:
        return None
    for start in _LOCAL:
        if place.startswith(start):
            return Path(place.removeprefix(start))
    return None if "://" in place else Path(place).expanduser()


def _links_in(folder: Path) -> Iterator[Path]:
    """All links at and below a folder; none is followed."""
    if folder.is_symlink():
        yield folder
        return
    for place, folders, files in os.walk(folder):
        yield from (path for name in (*folders, *files) if (path := Path(place, name)).is_symlink())


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a circle of links, or a NUL
        return Path("/", "nowhere")


def _texts(value: Any) -> Iterable[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(key)
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _problem_of_code(file: Path, attribute: str) -> Iterator[str]:
    """Refuse an attribute of a file that the file does not define itself: `random._os.system` would run any command."""
    try:
        body: list[ast.stmt] = parsed(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError) as exc:
        yield f"flow {file}:{attribute}: the file cannot be read: ({type(exc).__name__}) {exc}."
        return
    for part in attribute.split("."):
        found = None if part.startswith("_") else _defined(body, part)
        if found is None:
            yield (
                f"flow {file.name}:{attribute}: {file} does not define {part!r}. This worker runs only public functions and "
                "classes that the file itself defines, not what it imports or assigns. Define a function in the file."
            )
            return
        body = found.body if isinstance(found, ast.ClassDef) else []


def _defined(body: Sequence[ast.stmt], name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    """The function or class of a name in a module or a class, the last one, also below `if` and `try`."""
    for statement in reversed(body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if statement.name == name:
                return statement
            continue
        for field in ("finalbody", "orelse", "handlers", "body"):
            inner = getattr(statement, field, None)
            parts = inner if isinstance(inner, list) else []
            if found := _defined([part for part in parts if isinstance(part, ast.stmt)], name):
                return found
            for handler in (part for part in parts if isinstance(part, ast.ExceptHandler)):
                if found := _defined(handler.body, name):
                    return found
    return None
