"""`batchflow resume` and `batchflow rerun`: start a run again, with the options that it had."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from prefect_batchflow.cli import connections
from prefect_batchflow.cli.arguments import (
    Connections,
    EnvironmentVariables,
    Init,
    OutputDir,
    ResumeFlags,
    Screen,
    Storage,
    Texts,
    assignments,
    data_parameters,
    environment_of,
    parameters_of_resume,
)
from prefect_batchflow.cli.places import absolute_place
from prefect_batchflow.cli.process import quiet_prefect
from prefect_batchflow.cli.running import run_and_show
from prefect_batchflow.errors.chosen import FAILED, numbered_lines, rerun_errors
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.settings import PARAMETERS

_PLAIN = Screen()
_RESUME_AS_BEFORE = ResumeFlags()


def resume(
    run_id: Annotated[str, Parameter(name="RUN", help="Id of the run. `batchflow list` shows it.")],
    /,
    *,
    storage: Storage = "",
    output_dir: OutputDir = "",
    init: Init = None,
    environment_variables: EnvironmentVariables = None,
    connection: Connections = None,
    flags: ResumeFlags = _RESUME_AS_BEFORE,
    screen: Screen = _PLAIN,
) -> int:
    """Resume a run: run its lines that have not completed, with the same flow, data, mapping and options.

    An option that you give replaces the run's own.
    """
    return _resumed(run_id, storage, output_dir, init, environment_variables, connection, flags, screen, {})


def rerun(
    run_id: Annotated[str, Parameter(name="RUN", help="Id of the run. `batchflow list` shows it.")],
    /,
    *,
    only: Annotated[
        Texts,
        Parameter(
            metavar="CLASS",
            help="The failed lines that run again: failed, timed_out, crashed, or classes, codes and types of errors, "
            "separated by commas. --rerun is the same. [default: failed, without --lines]",
        ),
    ] = None,
    lines: Annotated[
        Texts,
        Parameter(
            metavar="LINES",
            help="Lines that run again, completed or not: numbers from 0 and ranges, separated by commas, such as 3,7,20-30. "
            "--rerun-lines is the same.",
        ),
    ] = None,
    storage: Storage = "",
    output_dir: OutputDir = "",
    init: Init = None,
    environment_variables: EnvironmentVariables = None,
    connection: Connections = None,
    flags: ResumeFlags = _RESUME_AS_BEFORE,
    screen: Screen = _PLAIN,
) -> int:
    """Run some lines of a run again, in place, with the same flow, data, mapping and options.

    The earlier records of these lines are kept, the new ones count.
    Outputs, result and artifacts are made anew. Lines that have never ended run,
    too. An option that you give replaces the run's own.
    """
    given = flags.given()
    for name, flag_here, words in (("rerun", "--only", only), ("rerun_lines", "--lines", lines)):
        if words is not None and name in given:
            raise InvalidOptionError(
                f"{flag_here} and {PARAMETERS[name].flags[0]} are the same option. Give one of them."
            )
    chosen = {}
    if only is not None:
        chosen["rerun"] = ",".join(rerun_errors(",".join(only))) or FAILED
    if lines is not None:
        chosen["rerun_lines"] = ",".join(numbered_lines(",".join(lines)))
        if not chosen["rerun_lines"]:
            raise InvalidOptionError("--lines is empty. Give numbers and ranges of lines, such as 3,7,20-30.")
    return _resumed(run_id, storage, output_dir, init, environment_variables, connection, flags, screen, chosen)


def _resumed(
    run_id: str,
    storage: str,
    output_dir: str,
    init: Texts,
    environment_variables: Texts,
    connection: Texts,
    flags: ResumeFlags,
    screen: Screen,
    chosen: dict[str, str],
) -> int:
    """Resume a run; `chosen` are parameters that another command has read."""
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import find_stored

    storage = absolute_place(storage)
    given = assignments("--init", init or [])
    manifest = find_stored(run_id, storage)
    if manifest.flow is None:
        raise InvalidOptionError(
            f"The run {run_id!r} cannot be resumed by a command, because its flow {manifest.flow_name!r} is a Python object. "
            f"Resume it from Python: BatchEngine(...).run(..., run_id={run_id!r})."
        )
    if manifest.init_kwargs is None and manifest.init_names and not given:
        names = " ".join(f"--init {name}=…" for name in manifest.init_names)
        raise InvalidOptionError(
            f"The run {run_id!r} was started with values for {', '.join(manifest.init_names)}, which are not stored, because "
            f"they have a key or come from Python. Give them again ({names}), or resume the run from Python."
        )
    environment = environment_of(environment_variables or [])
    if missing := [name for name in manifest.environment_names if name not in environment]:
        names = " ".join(f"--environment-variables {name}=…" for name in missing)
        raise InvalidOptionError(
            f"The run {run_id!r} was started with values for {', '.join(missing)}, which are not stored. Give them again: "
            f"{names}"
        )
    places = {**manifest.connections, **connections.places_of(connection)}
    parameters = {
        "flow": manifest.flow,
        "working_dir": manifest.working_dir,
        "image_roots": manifest.image_roots,
        "variant": manifest.variant,
        "node_connections": manifest.node_connections,
        **data_parameters(manifest.data),
        "run": manifest.run or "",
        "inputs_mapping": manifest.inputs_mapping,
        "init_kwargs": given or manifest.init_kwargs or {},
        "connections": places,
        "run_id": run_id,
        "output_dir": absolute_place(output_dir) or manifest.output_dir or "",
        **parameters_of_resume(manifest.options, flags),
        **chosen,
    }
    asked = connections.asked_for(places, environment)
    return run_and_show(parameters, storage, screen, environment=environment, connections=asked)
