"""`batchflow verify`, `copy`, `export`, `delete` and `compact`: care for runs that are stored. No line runs."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from prefect_batchflow.cli.arguments import Screen, Storage, Texts, sources, typed
from prefect_batchflow.cli.places import absolute_place
from prefect_batchflow.cli.process import quiet_prefect
from prefect_batchflow.cli.running import COMPLETED, LINES_FAILED, RUN_FAILED
from prefect_batchflow.exceptions import InvalidOptionError, RunNotFoundError, StorageError
from prefect_batchflow.inputs.places import without_credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from prefect_batchflow.results.records import LineRecord

T = TypeVar("T")
_PLAIN = Screen()
RunId = Annotated[str, Parameter(name="RUN", help="Id of the run. `batchflow list` shows it.")]


def _now(work: Coroutine[Any, Any, T]) -> T:
    """Do it now. Help and errors of use need no asyncio."""
    import asyncio

    return asyncio.run(work)


def verify(
    run_id: RunId,
    /,
    *,
    data: Annotated[
        Texts,
        Parameter(
            metavar="[NAME=]URL",
            help="The run's data, if it is at another place now. Repeatable. [default: where it was]",
        ),
    ] = None,
    storage: Storage = "",
    screen: Screen = _PLAIN,
) -> int:
    """Prove that a stored run is whole: each line counts once, and each completed line has one sound record.

    If the data and the flow are still there, it also compares the inputs of
    each record with the data. It runs no line, asks no server and changes nothing.

    Exit status: 0 the run is whole, 1 something is wrong (listed, with what to
    do), 2 wrong use, such as a run that does not exist or is running, 3 nothing
    is wrong, but the run has not finished.
    """
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import find_run, opened
    from prefect_batchflow.cli.screen import print_error, print_note
    from prefect_batchflow.run.proving import data_now
    from prefect_batchflow.storage.care import Findings, verify_run

    async def work() -> Findings:
        files = await opened(absolute_place(storage))
        manifest = await find_run(files, run_id)
        return await verify_run(files, manifest, await data_now(files, manifest, sources(data or [], needed=False)))

    found = _now(work())
    complete = partial(_with_storage, run_id=run_id, storage=absolute_place(storage))
    wrong, noted = [complete(text) for text in found.wrong], [complete(text) for text in found.notes]
    counted = ("total_lines", "completed", "failed", "not_started", "compared", "segments")
    counts = {name: getattr(found, name) for name in counted}
    _show(
        {
            "run_id": run_id, "is_whole": not found.wrong, "is_finished": found.is_finished, **counts, "wrong": wrong,
            "notes": noted,
        },
        f"Run {run_id}: {found.completed} completed, {found.failed} failed, {found.not_started} not started, "
        f"{found.total_lines} lines in all. "
        + (f"{len(found.wrong)} fault{'s' * (len(found.wrong) > 1)}." if found.wrong else "Nothing is wrong.")
        + (f" {found.compared} records have the inputs of the data." if found.compared else "")
        + ("" if found.is_finished else f" It has not finished: {complete(f'`batchflow resume {run_id}`').strip('`')}"),
        screen,
    )  # fmt: skip
    if not screen.json:
        for text in wrong:
            print_error(text)
        for text in noted:
            print_note(text)
    return RUN_FAILED if found.wrong else COMPLETED if found.is_finished else LINES_FAILED


def copy(
    run_id: RunId,
    url: Annotated[str, Parameter(name="URL", help="The other storage: a path, a URL, or a saved block.")],
    /,
    *,
    storage: Storage = "",
    screen: Screen = _PLAIN,
) -> int:
    """Copy a run to another storage, under the same name. Each file is read back.

    If it was stopped, the same command finishes the copy.
    """
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import find_run, opened
    from prefect_batchflow.storage.care import copy_run

    async def work() -> tuple[int, str]:
        files, target = await opened(absolute_place(storage)), await opened(absolute_place(url))
        return await copy_run(files, await find_run(files, run_id), target), target.location(run_id)

    if not url:
        raise InvalidOptionError("URL is empty. Give the storage to copy to.")
    count, place = _now(work())
    _show({"run_id": run_id, "files": count, "folder": place}, f"Copied {count} files to {place}", screen)
    return COMPLETED


def export(
    run_id: RunId,
    /,
    *,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["jsonl", "csv", "parquet"], Parameter(show_default=True, help="The format of the table.")
    ] = "jsonl",
    output: Annotated[
        str, Parameter(metavar="FILE", help="The file to write. [default: standard output; parquet needs a file]")
    ] = "",
    storage: Storage = "",
    screen: Screen = _PLAIN,
) -> int:
    """Write the lines of a run as one table: number, status, inputs, outputs, error and cost of each line.

    A run that is running gives the lines that have ended.

    In csv, a text that begins with = + - or @ gets an apostrophe, so that a
    spreadsheet does not run it as a formula.

    Exit status: 0 all is written, 1 the table lacks lines whose records are
    damaged or lost, 2 wrong use.
    """
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import find_run, opened
    from prefect_batchflow.cli.screen import print_error, print_note
    from prefect_batchflow.storage.export import export_records
    from prefect_batchflow.storage.files import write_beside
    from prefect_batchflow.storage.keys import RunKeys
    from prefect_batchflow.storage.lease import is_held
    from prefect_batchflow.storage.outputs import read_result
    from prefect_batchflow.storage.records import records_of

    if format == "parquet" and not output:
        raise InvalidOptionError("The format parquet needs a file: --output FILE.parquet.")
    if screen.json and not output:
        raise InvalidOptionError("--json needs --output FILE here, because the rows go to standard output otherwise.")
    notes: list[str] = []
    lost: list[str] = []

    async def work(path: Path | None) -> int:
        files = await opened(absolute_place(storage))
        manifest = await find_run(files, run_id)
        keys = RunKeys(run_id)
        if path is not None and files.is_local and is_below(path, files.location(run_id)):
            raise InvalidOptionError(f"--output {output} is in the folder of the run itself. Give another file.")
        is_running = await is_held(files, keys)
        if is_running:
            notes.append(f"The run {run_id!r} is running. These are the lines that have ended so far.")
        records = records_of(files, keys, manifest)

        async def newest() -> AsyncIterator[LineRecord]:
            async for _, record in records.newest():
                yield record

        if path is None:
            count = await export_records(newest(), format, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with path.open("wb") as file:
                count = await export_records(newest(), format, file)
        lost.extend(f"{damage} Its lines are left out, unless another record has them." for damage in records.damage)
        result = None
        with contextlib.suppress(StorageError):
            result = await read_result(files, keys, manifest)
        counted = result.completed_lines + result.failed_lines if result else 0
        if count < counted and not is_running:
            lost.append(
                f"The run counts {counted} lines that have ended, but {count} have a sound record and are in the table."
            )
        return count

    if output:
        target = Path(output).expanduser().absolute()
        if target.is_dir():
            raise InvalidOptionError(f"--output {output} is a folder. Give the name of a file.")
        counts: list[int] = []
        write_beside(target.parent, target.name, lambda path: counts.append(_now(work(path))))
        _show({"run_id": run_id, "rows": counts[0], "file": str(target)}, f"Wrote {counts[0]} rows to {target}", screen)
    else:
        _now(work(None))
    for note in notes:
        print_note(note)
    for text in lost:
        advice = _with_storage(f"`batchflow verify {run_id}` says what to do.", run_id, absolute_place(storage))
        print_error(f"{text} {advice}")
    return RUN_FAILED if lost else COMPLETED


def is_below(path: Path, folder: str) -> bool:
    """Whether a path is in a folder, whatever links lead there."""
    return path.resolve().is_relative_to(Path(folder).resolve())


def delete(
    run_id: RunId,
    /,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], help="Do not ask.")] = False,
    storage: Storage = "",
    screen: Screen = _PLAIN,
) -> int:
    """Delete a run with its records, outputs and images. It asks first. A run that is running is refused.

    It also deletes a run without a sound manifest, and the rest that a killed
    delete or copy has left. Files of --output-dir stay.
    """
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import find_run, opened
    from prefect_batchflow.storage.care import delete_run, is_rest_of_run, refuse_running
    from prefect_batchflow.storage.keys import RunKeys

    async def look() -> str:
        files = await opened(absolute_place(storage))
        keys = RunKeys(run_id)
        try:
            what = f"run {run_id} with its {(await find_run(files, run_id)).total_lines} lines"
        except StorageError:  # its manifest is lost
            what = f"run {run_id} with all that is left of it"
        except RunNotFoundError:
            if not await is_rest_of_run(files, keys):
                raise
            what = f"what is left of run {run_id}"
        await refuse_running(files, keys, "deleted")
        return f"Delete {what} in {files.location(run_id)}?"

    async def work() -> tuple[int, str]:
        files = await opened(absolute_place(storage))
        return await delete_run(files, run_id), files.location(run_id)

    question = _now(look())
    if not yes:
        if screen.json or not sys.stdin.isatty():
            raise InvalidOptionError(f"{question} There is no terminal to answer at. Give -y to delete it.")
        if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
            _show({"run_id": run_id, "deleted": False}, "Nothing was deleted.", screen)
            return COMPLETED
    count, place = _now(work())
    _show({"run_id": run_id, "deleted": True, "files": count}, f"Deleted {count} files in {place}", screen)
    return COMPLETED


def compact(run_id: RunId, /, *, storage: Storage = "", screen: Screen = _PLAIN) -> int:
    """Merge the record files of a run into few. All records stay, so resume, rerun and verify work as before."""
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.runs import find_run, opened
    from prefect_batchflow.storage.care import compact_run

    async def work() -> tuple[int, int]:
        files = await opened(absolute_place(storage))
        return await compact_run(files, await find_run(files, run_id))

    before, after = _now(work())
    _show(
        {"run_id": run_id, "segments_before": before, "segments": after},
        f"Run {run_id}: {before} record files are {after} now.",
        screen,
    )
    return COMPLETED


def _with_storage(text: str, run_id: str, storage: str) -> str:
    """A text whose commands about the run name its storage, so that they can be typed as they stand."""
    if not storage:
        return text
    option = shlex.join(typed("--storage", [without_credentials(storage)]))
    return re.sub(rf"`batchflow \w+ {re.escape(run_id)}(?=`)", lambda command: f"{command[0]} {option}", text)


def _show(document: dict[str, Any], text: str, screen: Screen) -> None:
    from prefect_batchflow.cli.screen import print_json, printable

    if screen.json:
        print_json(document)
    else:
        sys.stdout.write(printable(text) + "\n")
