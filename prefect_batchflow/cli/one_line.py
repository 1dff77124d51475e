"""`batchflow test`: one line of a flow, without a run, a Prefect server or any record of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_batchflow.cli import connections
from prefect_batchflow.cli.arguments import (
    Connections,
    EnvironmentVariables,
    Init,
    NodeConnections,
    Screen,
    Texts,
    Variant,
    WorkingDir,
    assignments,
    environment_of,
    flag,
    node_connections_of,
)
from prefect_batchflow.cli.process import quiet_prefect, signals_interrupt
from prefect_batchflow.cli.running import CANCELED, COMPLETED, LINES_FAILED
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.settings import PARAMETERS, RunOptions

if TYPE_CHECKING:
    from prefect_batchflow.run.trial import GivenRow, Trial

_PLAIN = Screen()


def try_flow(
    flow: Annotated[str, Parameter(name="FLOW", help=PARAMETERS["flow"].help)],
    /,
    *,
    input: Annotated[  # noqa: A002 - the option's name
        Texts,
        Parameter(
            name=("--input", "-i"),
            metavar="NAME=VALUE",
            help="An input of the flow. VALUE is read as JSON if it is JSON, unless the input is a string. Repeatable.",
        ),
    ] = None,
    inputs: Annotated[
        Texts,
        Parameter(
            metavar="FILE|NAME=VALUE",
            consume_multiple=True,
            help="All inputs: a json or jsonl file, as --data, or NAME=VALUE as --input.",
        ),
    ] = None,
    data: Annotated[
        str,
        Parameter(
            metavar="URL",
            allow_leading_hyphen=True,
            help="Take the first row of this data. A json file with one object is one row. - is standard input.",
        ),
    ] = "",
    map: Annotated[Texts, flag("inputs_mapping")] = None,  # noqa: A002 - the option's name
    image_root: Annotated[Texts, flag("image_roots")] = None,
    init: Init = None,
    connection: Connections = None,
    variant: Variant = "",
    node_connections: NodeConnections = None,
    environment_variables: EnvironmentVariables = None,
    working_dir: WorkingDir = "",
    line_timeout_sec: Annotated[float, flag("line_timeout_sec")] = RunOptions.line_timeout_sec,
    screen: Screen = _PLAIN,
) -> int:
    """Run one line of a flow, and show its output, prompts, tokens and time. Nothing is kept of it.

    Exit status: 0 the line completed, 2 wrong use, 3 the line failed.
    """
    import asyncio

    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.run.starting import FlowRequest
    from prefect_batchflow.run.trial import try_line

    row = _row(input or [], inputs or [], data, assignments("--map", map or []), image_root or [])
    environment = environment_of(environment_variables or [])
    places = connections.places_of(connection)
    request = FlowRequest(
        flow=flow,
        working_dir=working_dir,
        variant=variant,
        node_connections=node_connections_of(node_connections or []),
        init_kwargs=assignments("--init", init or []),
        blocks=places,
        connections=connections.asked_for(places, environment),
        environment_variables=environment,
        options=RunOptions(worker_count=1, max_concurrency=1, line_timeout_sec=line_timeout_sec),
        run_id="test",
    )
    try:
        with signals_interrupt():
            trial = asyncio.run(try_line(request, row))
    except KeyboardInterrupt:
        from prefect_batchflow.cli.screen import print_error

        print_error("Canceled.")
        return CANCELED
    _show(trial, screen)
    return COMPLETED if trial.record["status"] == "Completed" else LINES_FAILED


def _row(inputs: list[str], more: list[str], data: str, mapping: dict[str, Any], image_roots: list[str]) -> GivenRow:
    from prefect_batchflow.run.trial import GivenRow

    files = [text for text in more if "=" not in text or Path(text).expanduser().is_file()]
    if data and files:
        raise InvalidOptionError(f"--data {data} and --inputs {files[0]} both give a row. Leave one of them out.")
    if len(files) > 1:
        raise InvalidOptionError(f"--inputs takes one file, found {', '.join(files)}. One line has one row.")
    pairs = [*inputs, *(text for text in more if text not in files)]
    values = assignments("--input", pairs)
    texts = {name.strip(): text for name, _, text in (pair.partition("=") for pair in pairs)}
    return GivenRow(data or (files[0] if files else ""), mapping, values, texts, image_roots)


def _show(trial: Trial, screen: Screen) -> None:
    from prefect_batchflow.cli.screen import print_json, print_note
    from prefect_batchflow.cli.view_test import print_trial, trial_document

    if screen.json:
        print_json(trial_document(trial))
        return
    print_trial(trial)
    for note in trial.notes:
        print_note(note)
