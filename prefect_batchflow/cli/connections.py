"""`batchflow connection`: connections as saved blocks; and the connections that `--connection` gives to a run.

Secrets are asked for at a terminal, or come from a file, a variable or `--set`. They are never printed.
"""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from cyclopts import App, Parameter

from prefect_batchflow.cli.arguments import Screen
from prefect_batchflow.cli.process import quiet_prefect
from prefect_batchflow.cli.running import COMPLETED, OWN_SERVER_TEXT
from prefect_batchflow.connections.environment import variables_in
from prefect_batchflow.connections.files import (
    ConnectionFile,
    connection_of,
    is_connection_file,
    read_connection,
    yaml_type,
)
from prefect_batchflow.exceptions import InvalidConnectionError, InvalidOptionError
from prefect_batchflow.inputs.places import absolute

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from prefect_batchflow.prefect_runtime.connection_blocks import SavedConnection

MASK: Final = "******"
"""Stands for a secret. Source: promptflow `_sdk/_constants.py`, `SCRUBBED_VALUE`."""

app = App(
    name="connection",
    sort_key=6,
    help=(
        "Save connections as Prefect blocks, where a flow finds them by name.\n\n"
        "For one run, no block is needed: batchflow run … --connection my_ai=azure.yml"
    ),
    help_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=False),
)

Name = Annotated[str, Parameter(name="NAME", help="The connection's name in the flow, or its block.")]
Changes = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        metavar="KEY=VALUE",
        consume_multiple=True,
        help="Replace a value of the file, such as api_key=… or, for a custom connection, configs.url=… or "
        "secrets.token=…. Repeatable.",
    ),
]
_NO_SCREEN = Screen()
T = TypeVar("T")


@app.command
def create(
    *,
    file: Annotated[
        str,
        Parameter(
            name=("--file", "-f"),
            metavar="FILE",
            help="A connection in promptflow's yaml format, or a .env file with the secrets of a custom connection.",
        ),
    ],
    name: Annotated[
        str, Parameter(name=("--name", "-n"), help="Its name in flows. [default: the name in the file]")
    ] = "",
    set: Changes = None,  # noqa: A002 - the option's name
    screen: Screen = _NO_SCREEN,
) -> int:
    """Save a connection from a file.

    A connection of that name is replaced. Secrets that the file leaves open (<user-input>) are asked for.
    """
    found = read_connection(file, changes_of(set), name)
    if not found.name:
        raise InvalidOptionError(f"{file} gives no name. Add --name, such as --name my_ai.")
    _save(_completed(found, found.name), screen)
    return COMPLETED


@app.command
def update(
    name: Name,
    /,
    *,
    set: Changes = None,  # noqa: A002 - the option's name
    screen: Screen = _NO_SCREEN,
) -> int:
    """Change values of a saved connection. The others stay."""
    changes = changes_of(set)
    if not changes:
        raise InvalidOptionError("Nothing to change. Give --set KEY=VALUE, such as --set api_key=….")
    saved = _one(name, screen)
    if "type" in changes:
        raise InvalidOptionError(
            "The type of a saved connection stays. Use `batchflow connection create` to replace it."
        )
    _save(_completed(connection_of(saved.spec, saved.block, changes, saved.name), saved.name), screen)
    return COMPLETED


@app.command(name="list")
def list_command(*, screen: Screen = _NO_SCREEN) -> int:
    """List the saved connections."""
    from rich.table import Table

    from prefect_batchflow.cli.screen import console, print_json

    found = _with_prefect(lambda blocks: blocks.saved_connections(), screen)
    if screen.json:
        print_json([{"name": c.name, "type": yaml_type(c.spec["type"]), "block": c.block} for c in found])
        return COMPLETED
    out = console()
    if not found:
        out.print("No connections yet. `batchflow connection create --file FILE.yml` saves one.")
        return COMPLETED
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("NAME", "TYPE", "BLOCK"):
        table.add_column(column, overflow="fold")
    for c in found:
        table.add_row(c.name, yaml_type(c.spec["type"]), c.block)
    out.print(table)
    return COMPLETED


@app.command
def show(name: Name, /, *, screen: Screen = _NO_SCREEN) -> int:
    """Show a saved connection, without its secrets."""
    from prefect_batchflow.cli.screen import console, print_facts, print_json

    saved = _one(name, screen)
    facts = {"name": saved.name, "type": yaml_type(saved.spec["type"]), **_masked(saved), "block": saved.block}
    if screen.json:
        print_json(facts)
    else:
        print_facts(console(), facts)
    return COMPLETED


@app.command
def delete(
    name: Name,
    /,
    *,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), help="Do not ask.")] = False,
    screen: Screen = _NO_SCREEN,
) -> int:
    """Delete a saved connection."""
    from prefect_batchflow.cli.screen import console, print_json

    saved = _one(name, screen)
    if not yes and sys.stdin.isatty():
        answer = input(f"Delete the connection {saved.block}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise InvalidOptionError("Nothing was deleted.")
    _with_prefect(lambda blocks: blocks.delete_connection(saved), screen)
    if screen.json:
        print_json({"deleted": saved.block})
    else:
        console().print(f"Deleted {saved.block}.")
    return COMPLETED


# --- connections of a run --------------------------------------------------------------------------------------------


def places_of(texts: Iterable[str] | None) -> dict[str, str]:
    """Read the texts of `--connection`: `NAME=BLOCK`, `NAME=FILE`, or a file alone that gives its name.

    A file is read at once, to report its errors. Its path becomes absolute, and is all that the run keeps of it.

    Raises:
        InvalidOptionError: A text lacks a part, a file does not exist, or a name is there twice.
        InvalidConnectionError: A file has a wrong type or key.
    """
    from prefect_batchflow.cli.screen import print_note

    places: dict[str, str] = {}
    for text in texts or ():
        name, equals, place = (part.strip() for part in text.partition("="))
        if not equals and any(mark in text for mark in "./"):
            name, place = read_connection(text).name, text
            if not name:
                raise InvalidOptionError(
                    f"--connection {text}: the file gives no name. Write --connection NAME={text}."
                )
        if not name or not place:
            raise InvalidOptionError(
                f"--connection takes NAME=FILE or NAME=BLOCK, found {text!r}. Give it once per connection, such as "
                "--connection my_ai=azure.yml."
            )
        if name in places:
            raise InvalidOptionError(f"--connection gives {name!r} twice. Give it once.")
        if is_connection_file(place):
            place = absolute(place)
            for note in read_connection(place, name=name).notes:
                print_note(note)
        places[name] = place
    return places


def asked_for(places: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Any]:
    """The connections whose file leaves secrets open, with what the user types for them at the terminal.

    Args:
        places: From `places_of`.
        environment: The run's own variables, which can give a secret.

    Raises:
        InvalidConnectionError: There is no terminal to ask at.
    """
    given = {}
    for name, place in places.items():
        if is_connection_file(place):
            found = read_connection(place, name=name)
            if found.left_open(name, {**os.environ, **environment}):
                given[name] = _completed(found, name, environment).spec
    return given


# --- helpers ---------------------------------------------------------------------------------------------------------


def changes_of(texts: list[str] | None) -> dict[str, str]:
    """Read `KEY=VALUE` texts of `--set`. The message of an error does not repeat one, because it can be secret."""
    changes = {}
    for number, text in enumerate(texts or (), 1):
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InvalidOptionError(
                f"--set takes KEY=VALUE; number {number} has no {'key' if equals else 'equals sign'}."
            )
        changes[key.strip()] = value
    return changes


def _completed(found: ConnectionFile, name: str, environment: Mapping[str, str] | None = None) -> ConnectionFile:
    """Ask for the secrets that are open."""
    environ = {} if environment is None else {**os.environ, **environment}
    left = found.left_open(name, environ)
    if not left:
        return found
    if not sys.stdin.isatty():
        if environment is None:
            how = " ".join(f'--set {key}="$…"' for key in left)
            raise InvalidConnectionError(
                f"The connection {name!r} needs {', '.join(left)}, and there is no terminal to ask at. Give {how}, or write "
                "${env:NAME} into the file."
            )
        from prefect_batchflow.connections.environment import variables_of

        names = " and ".join(variables_of(name, key)[0] for key in left)
        raise InvalidConnectionError(
            f"The file of the connection {name!r} leaves {', '.join(left)} open, and there is no terminal to ask at. Set "
            f"{names}, or write ${{env:NAME}} into the file."
        )
    values = {}
    for key in left:
        while not (value := getpass.getpass(f"{key} of {name}: ").strip()):
            sys.stderr.write("It cannot be empty.\n")
        values[key] = value
    return found.with_values(values)


def _save(found: ConnectionFile, screen: Screen) -> None:
    from prefect_batchflow.cli.screen import console, print_json, print_note

    block, is_replaced = _with_prefect(lambda blocks: blocks.save_connection(found.name, found.spec), screen)
    name = found.name
    kind = yaml_type(found.spec["type"])
    for note in found.notes:
        print_note(note)
    variables = {v: None for text in found.spec["value"].values() for v in variables_in(text)}
    if variables:
        print_note(
            f"Set {', '.join(variables)} where the flow runs: the connection refers to it and has no value of it."
        )
    if screen.json:
        print_json({"name": name, "type": kind, "block": block, "replaced": is_replaced})
        return
    done = "Replaced" if is_replaced else "Saved"
    console().print(f"{done} {name!r} ({kind}) as the block {block}. Flows that name it find it.", soft_wrap=True)


def _masked(saved: SavedConnection) -> dict[str, str]:
    """The values of a connection; a secret is masked, unless it is a reference to a variable."""
    secret = {"api_key", *(saved.spec.get("secret_keys") or ())}
    return {
        key: MASK if key in secret and not variables_in(str(value)) else str(value)
        for key, value in saved.spec["value"].items()
    }


def _one(name: str, screen: Screen) -> SavedConnection:
    found: list[SavedConnection] = _with_prefect(lambda blocks: blocks.saved_connections([name]), screen)
    fitting = [c for c in found if name in (c.block, c.name) or "/" not in name]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InvalidOptionError(
            f"{name!r} is the name of {len(fitting)} blocks: {', '.join(c.block for c in fitting)}. Give one of these."
        )
    raise InvalidOptionError(
        f"There is no connection {name!r}. `batchflow connection list` shows the saved ones; `batchflow connection create "
        "--file FILE.yml` saves one."
    )


def _with_prefect(call: Callable[[Any], Coroutine[Any, Any, T]], screen: Screen) -> T:
    """Do something with the saved blocks, on the server that runs use; start one if there is none."""
    import asyncio

    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.progress import Progress

    with Progress(living=False if screen.debug else None) as progress:
        from prefect_batchflow.prefect_runtime import connection_blocks
        from prefect_batchflow.prefect_runtime.own_server import has_own_server, start_own_server
        from prefect_batchflow.prefect_runtime.reached_server import check_server

        if has_own_server():
            progress.say(OWN_SERVER_TEXT)
            start_own_server()
        asyncio.run(check_server(progress.say))
        return asyncio.run(_awaited(call(connection_blocks)))


async def _awaited(work: Coroutine[Any, Any, T]) -> T:
    return await work
