"""`batchflow`: run a flow over data, resume a run, list and show runs, check a flow.

Commands that need Prefect import it themselves, after `quiet_prefect` has kept its log lines off the terminal.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import traceback
from datetime import datetime
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from prefect_batchflow.cli import again, care, connections, one_line
from prefect_batchflow.cli.arguments import (
    Connections,
    EnvironmentVariables,
    FlowOrFile,
    Init,
    NodeConnections,
    OptionFlags,
    OutputDir,
    RunFilePath,
    Screen,
    Storage,
    Texts,
    Variant,
    WorkingDir,
    assignments,
    data_parameters,
    environment_of,
    flag,
    joined,
    node_connections_of,
    number_of,
    sources,
)
from prefect_batchflow.cli.old_words import translated
from prefect_batchflow.cli.places import absolute_place, peek, promptflow_run
from prefect_batchflow.cli.process import end_soon, quiet_prefect
from prefect_batchflow.cli.running import COMPLETED, EXIT_STATUSES, RUN_FAILED, run_and_show, show_run
from prefect_batchflow.exceptions import BatchflowException, InvalidOptionError, UnexpectedError, error_dict
from prefect_batchflow.settings import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

app = App(
    name="batchflow",
    help=(
        "Run promptflow flows over datasets on Prefect.\n\n"
        "Exit status: 0 all lines completed, 1 the run failed, 2 wrong use (an option, the flow, the data, the mapping, or a "
        "run that does not exist or is in use), 3 lines or the aggregation failed, 130 canceled."
    ),
    help_format="plaintext",
    version=lambda: f"batchflow {metadata.version('prefect-batchflow')}, Prefect {metadata.version('prefect')}",
    default_parameter=Parameter(negative=(), show_default=False),
)


_NO_FLOW = (
    "FLOW is missing. Give the flow's folder or file, or path/to/file.py:attr, or a --file that names the flow. See "
    "`batchflow {} --help`."
)
_PLAIN = Screen()
_NO_FLAGS = OptionFlags()

app.command(connections.app)
app.command(one_line.try_flow, name="test", sort_key=4)
app.command(again.resume, sort_key=1)
app.command(again.rerun, sort_key=1)
for _command_of_care in (care.verify, care.copy, care.export, care.compact, care.delete):
    app.command(_command_of_care, sort_key=7)


# --- commands -------------------------------------------------------------------------------------------------------


@app.command(sort_key=0)
def run(
    flow: FlowOrFile = "",
    /,
    *,
    file: RunFilePath = "",
    data: Annotated[Texts, flag("data")] = None,
    map: Annotated[Texts, flag("inputs_mapping")] = None,  # noqa: A002 - the option's name
    image_root: Annotated[Texts, flag("image_roots")] = None,
    run_id: Annotated[str, flag("run_id")] = "",
    run: Annotated[str, flag("run")] = "",
    resume_from: Annotated[str, flag("resume_from")] = "",
    storage: Storage = "",
    output_dir: OutputDir = "",
    init: Init = None,
    connection: Connections = None,
    working_dir: WorkingDir = "",
    variant: Variant = "",
    node_connections: NodeConnections = None,
    environment_variables: EnvironmentVariables = None,
    flags: OptionFlags = _NO_FLAGS,
    screen: Screen = _PLAIN,
) -> int:
    """Run a flow over data, line by line."""
    from prefect_batchflow.cli.run_file import RunFile, read_run_file
    from prefect_batchflow.definition.load import load_flow
    from prefect_batchflow.settings import given_by_promptflows_variables
    from prefect_batchflow.storage.keys import check_run_id

    # Report every error that needs no Prefect first: importing Prefect takes a second.
    written = read_run_file(file) if file else RunFile()
    if not flow:
        flow, working_dir = written.flow, working_dir or written.working_dir
    if not flow:
        raise InvalidOptionError(_NO_FLOW.format("run"))
    run = run or written.run
    urls = {**written.data, **sources(data or [], needed=not (written.data or run))}
    mapping, init_kwargs = assignments("--map", map or []), assignments("--init", init or [])
    variant = variant or written.variant
    chosen = joined(written.node_connections, node_connections_of(node_connections or []))
    loaded = load_flow(flow, working_dir or None, variant=variant, node_connections=chosen)
    peek(urls)
    begun = promptflow_run(resume_from)
    run_id = run_id or written.run_id
    environment = {**written.environment_variables, **environment_of(environment_variables or [])}
    places = connections.places_of(connection)
    parameters = {
        "flow": loaded.source or flow,
        "working_dir": absolute_place(working_dir),
        "image_roots": image_root or [],
        "variant": variant,
        "node_connections": chosen,
        **data_parameters(urls),
        "inputs_mapping": {**written.inputs_mapping, **mapping},
        "init_kwargs": {**written.init_kwargs, **init_kwargs},
        "connections": places,
        "run_id": check_run_id(run_id) if run_id else _new_run_id(),
        "run": check_run_id(run) if run else "",
        "resume_from": check_run_id(resume_from) if resume_from and not begun else "",
        "output_dir": absolute_place(output_dir),
        **({"inputs_with_default": "default"} if file else {}),
        **given_by_promptflows_variables(),
        **flags.given(),
    }
    asked = connections.asked_for(places, environment)
    return run_and_show(parameters, absolute_place(storage), screen, written.notes, begun, environment, asked)


@app.command(name="list", sort_key=2)
def list_command(
    *,
    storage: Storage = "",
    limit: Annotated[
        int,
        Parameter(
            show_default=True,
            converter=number_of(PARAMETERS["max_lines_count"]),
            help="Show this many runs. 0 shows all.",
        ),
    ] = 20,
    screen: Screen = _PLAIN,
) -> int:
    """List the runs of a storage, newest first."""
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import list_stored
    from prefect_batchflow.cli.screen import print_json, print_note
    from prefect_batchflow.cli.view_runs import print_runs, runs_document

    listing, location = list_stored(absolute_place(storage), limit or None)
    if screen.json:
        print_json(runs_document(listing))
    else:
        print_runs(listing, location)
    for problem in listing.problems:
        print_note(problem)
    return COMPLETED


@app.command(sort_key=3)
def show(
    run_id: Annotated[str, Parameter(name="RUN", help="Id of the run. `batchflow list` shows it.")],
    /,
    *,
    storage: Storage = "",
    screen: Screen = _PLAIN,
) -> int:
    """Show a run: counts, metrics, errors, files, and what to do next."""
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import read_stored, set_right_in_prefect

    storage = absolute_place(storage)
    show_run(set_right_in_prefect(read_stored(run_id, storage)), screen, storage_option=storage)
    return COMPLETED


@app.command(sort_key=5)
def check(
    flow: FlowOrFile = "",
    /,
    *,
    file: RunFilePath = "",
    imports: Annotated[
        bool,
        Parameter(
            name="--import",
            help="Let a worker process import the flow's code, as a run does, and build its class. No line runs.",
        ),
    ] = False,
    init: Init = None,
    connection: Connections = None,
    environment_variables: EnvironmentVariables = None,
    variant: Variant = "",
    node_connections: NodeConnections = None,
    working_dir: WorkingDir = "",
    screen: Screen = _PLAIN,
) -> int:
    """Check whether a flow can run here, as `batchflow run` with the same options would, without data.

    It reads the flow's code and runs none of it, unless you give --import.

    Exit status: 0 nothing in the flow stops it (you may still have to give what
    is listed), 1 the flow cannot run, 2 wrong use, such as a flow that does not
    exist.
    """
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.flow_check import check_flow
    from prefect_batchflow.cli.run_file import RunFile, read_run_file
    from prefect_batchflow.cli.screen import print_json
    from prefect_batchflow.cli.view_check import check_document, print_check

    written = read_run_file(file) if file else RunFile()
    if not flow:
        flow, working_dir = written.flow, working_dir or written.working_dir
    if not flow:
        raise InvalidOptionError(_NO_FLOW.format("check"))
    environment = {**written.environment_variables, **environment_of(environment_variables or [])}
    places = connections.places_of(connection)
    checked = check_flow(
        flow,
        working_dir or None,
        variant or written.variant,
        joined(written.node_connections, node_connections_of(node_connections or [])),
        imports=imports,
        init_kwargs={**written.init_kwargs, **assignments("--init", init or [])},
        blocks=places,
        connections=connections.asked_for(places, environment),
        environment_variables=environment,
    )
    if screen.json:
        print_json(check_document(checked))
    else:
        print_check(checked)
    return COMPLETED if checked.runs else RUN_FAILED


# --- arguments ---------------------------------------------------------------------------------------------


def _new_run_id() -> str:
    """A name that sorts by time and that no other run has."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


# --- the process ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status.

    Args:
        arguments: The words after `batchflow`; `None` takes those of the process, which then ends soon.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    screen = Screen(json="--json" in words, debug="--debug" in words)
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show becomes an escape, not an error.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    if arguments is not None:
        return _status(words, screen)
    # Otherwise Prefect's log handlers write into the screen that they do not reach the server.
    logging.raiseExceptions = screen.debug
    status = _status(words, screen)
    end_soon(status, debug=screen.debug)
    return status


def _status(words: list[str], screen: Screen) -> int:
    try:
        status = _command(words)()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, such as `| head`: write nothing more, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_FAILED
    except (BatchflowException, KeyboardInterrupt) as exc:
        return _failed(exc, screen)
    except Exception as exc:  # noqa: BLE001 - the border: show any error
        error = UnexpectedError(f"({type(exc).__name__}) {exc}. Add --debug for the traceback.")
        error.__cause__ = exc
        return _failed(error, screen)
    return status


def _command(words: list[str]) -> Callable[[], int]:
    words, notes = translated(words)
    if notes:
        from prefect_batchflow.cli.screen import print_note

        for note in notes:
            print_note(note)
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as exc:
        # cyclopts says what is wrong, and guesses what you meant.
        place: list[str] = []
        known: Any = app
        for word in words[:2]:
            if known is None or word not in known:
                break
            place, known = [*place, word], known[word] if isinstance(known[word], App) else None
        raise InvalidOptionError(f"{exc} See `{' '.join(['batchflow', *place])} --help`.") from None
    return lambda: command(*bound.args, **bound.kwargs) or COMPLETED


def _failed(exc: BaseException, screen: Screen) -> int:
    from prefect_batchflow.cli.screen import print_error, print_json

    if screen.debug:
        traceback.print_exception(exc)
    message = str(exc)
    if isinstance(exc, KeyboardInterrupt):
        message = (
            "Canceled. Finished lines are kept. `batchflow list` shows the run and `batchflow resume` continues it."
        )
    print_error(message)
    if screen.json:
        print_json({"error": error_dict(exc, debug=screen.debug) | {"message": message}})
    return next((status for kind, status in EXIT_STATUSES if isinstance(exc, kind)), RUN_FAILED)
