"""The second stage: how a resume decides.

A run is compared with its earlier starts, by fingerprint; its manifest is written and its records are opened. `feeding` then
runs the lines that have no completed record, and `errors.chosen` says which failed lines run again. The file is long because
the order of its steps is what makes a start that is cut short safe to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect_batchflow.definition.variants import parse_variant
from prefect_batchflow.exceptions import InvalidOptionError, RecordCorruptError, RunChangedError, StorageError
from prefect_batchflow.images.forms import form_of
from prefect_batchflow.inputs.places import is_local_path, locate
from prefect_batchflow.inputs.survey import Survey
from prefect_batchflow.prefect_runtime.flow_runs import set_right
from prefect_batchflow.prefect_runtime.states import of_result
from prefect_batchflow.settings import PARAMETERS
from prefect_batchflow.storage.control import supersede
from prefect_batchflow.storage.earlier import earlier_starts, identity_of, require_manifest
from prefect_batchflow.storage.files import remove_unfinished_on_server
from prefect_batchflow.storage.flow_print import flow_print, listed
from prefect_batchflow.storage.keys import IMAGES, RunKeys
from prefect_batchflow.storage.manifest import (
    Manifest,
    Session,
    changes,
    differences,
    fingerprint,
    look_for_manifest,
    versions,
    write_manifest,
)
from prefect_batchflow.storage.matching import History, copy_matches, known_lines
from prefect_batchflow.storage.outputs import OUTPUT_FILES, read_result
from prefect_batchflow.storage.private_files import make_folder, remove_unfinished
from prefect_batchflow.storage.records import RunRecords, records_of
from prefect_batchflow.storage.surroundings import (
    named_variables,
    surroundings,
    variables_of_arguments,
    without_secrets,
)
from prefect_batchflow.storage.taken_images import TakenImages
from prefect_batchflow.storage.takeover import take_over_run, take_over_storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.run.preparation import Prepared
    from prefect_batchflow.run.state import RunState
    from prefect_batchflow.storage.flow_print import FlowPrint
    from prefect_batchflow.storage.index import RecordIndex
    from prefect_batchflow.storage.matching import LineChanges, Matches

_ACCEPT_CHANGES = (
    "Give another run id, or on_change='reuse' to keep lines with the same inputs, or on_change='rerun' to run all lines "
    "again. On the command line, these are --on-change reuse and --on-change rerun."
)
FLOW_PARTS = frozenset({"flow", "packages", "init", "variant", "node_connections", "environment", "connections"})
"""The fingerprints that must be equal before lines of another run are taken over."""
WHAT_IS_AROUND = {"connections": "connections", "environment": "environment variables"}
"""The fingerprints of what a flow gets from around it, and what they are called."""
LINE_PARTS = frozenset({"inputs_mapping", "line_number_column", "inputs_with_default"})
"""The fingerprints, besides those of the data, that decide which inputs the lines have."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The records of a run, open for this start."""

    session: int
    """Which start of the run this is, counted from 1."""
    records_since: int
    """The first session whose records count."""
    records: RunRecords
    index: RecordIndex
    """The lines that already have records."""
    manifest: Manifest
    """What this start has written about the run."""
    request_since: int
    """The first session of this Prefect flow run. A Retry of it is another session."""


class Resuming:
    """Opens the records of a run, for its first start or a later one."""

    def __init__(self, state: RunState, prepared: Prepared) -> None:
        self._state = state
        self._prepared = prepared
        self._request, self._keys = state.request, state.keys
        self._files: RunStorageBlock = prepared.files
        self._flow: FlowPrint | None = None

    async def check_before_writing(self) -> None:
        """Refuse now what would otherwise fail after the storage was written, or after the lines were paid for."""
        resume_from, output_dir = self._request.resume_from, self._prepared.output_dir
        resume_storage, rerun = self._state.live.resume_storage, self._state.options.errors_to_rerun
        chooses_in_storage = resume_storage is not None and bool(rerun)
        takes_over = bool(resume_from) or chooses_in_storage
        if takes_over and await look_for_manifest(self._files, self._keys) == (None, ""):
            if resume_from:
                await self._refuse_other_flow(await require_manifest(self._files, RunKeys(resume_from)))
            if chooses_in_storage:
                raise InvalidOptionError(
                    f"rerun={','.join(rerun)!r} selects lines that failed in a run of this package. "
                    f"{type(resume_storage).__name__} gives completed lines only, and all other lines run. Leave rerun out."
                )
        if output_dir is not None:
            try:
                await asyncio.to_thread(_try_to_write, output_dir)
            except OSError as exc:
                raise InvalidOptionError(
                    f"Cannot write to the output_dir {output_dir}: ({type(exc).__name__}) {exc}. No line has run. "
                    "Give another folder."
                ) from exc

    async def open(self, files: RunStorageBlock) -> Resumed | None:
        """Compare the run with its earlier starts, write its manifest and find the lines that are done. Needs the lease.

        `files` is the storage as the lease's holder may write it. Gives `None` if the run is stopped first.
        """
        state, self._files = self._state, files
        starts = await earlier_starts(self._files, self._keys)
        if starts.strangers:
            raise RecordCorruptError(starts.strangers)
        before, lost = starts.manifest, starts.lost
        if lost and state.options.on_change == "refuse":
            raise RunChangedError(
                f"{lost} since the run {self._request.run_id!r} began. {_ACCEPT_CHANGES}",
                changes=[starts.problem],
            )
        if before and starts.problem:
            state.note(starts.problem)
        flow = await self._flow_print()
        prints = self._fingerprints(flow)
        changed = await self._changed(before, prints, flow) if before else {"manifest": lost} if lost else {}
        matches = await self._matches(before, changed) if before else None
        if matches is not None and matches.are_the_same:
            for part in [part for part in changed if _decides_lines(part)]:
                state.note(f"{changed.pop(part)} since the run began, but the lines are the same")
        if matches is not None:
            changed = _with_counts(changed, matches.changes)
        if changed and state.options.on_change == "refuse":
            raise RunChangedError(
                f"The run {self._request.run_id!r} has changed since it began: {'; '.join(changed.values())}. "
                f"{_ACCEPT_CHANGES}",
                changes=list(changed.values()),
            )
        for change in changed.values():
            state.note(f"{change} since the run began; on_change is {state.options.on_change!r}")
        await self._check_lines_to_rerun(before)
        resume_from = self._request.resume_from
        if before and resume_from and resume_from not in {session.resumed_from for session in before.sessions}:
            state.note(
                f"resume_from {resume_from!r} is ignored: the run {self._request.run_id!r} exists and continues from its own "
                "lines. To take over lines of the other run, give a new run id."
            )
        if before and (earlier := before.sessions[-1].prefect_flow_run_id):
            await state.stop.unless_stopped(self._set_right(UUID(earlier), before))
        this_start = Session(
            started_at=state.start_time.isoformat(),
            prefect_flow_run_id=str(state.flow_run.id),
            versions=versions(),
            resumed_from=resume_from or None,
        )
        sessions = starts.sessions(this_start)
        session = len(sessions)
        identity, unnamed_until = await identity_of(self._files, self._keys, starts)
        if before is None:
            # Before the manifest: a run that could not take over all lines has not begun, and its next start tries again.
            await state.stop.unless_stopped(self._take_over(identity))
        if state.stop.is_stopped:
            return None
        since = before.records_since if before else 0
        contents_since = before.contents_since if before else None
        if changed and state.options.on_change == "rerun":
            since = contents_since = session
        elif before is not None and matches is not None and not matches.are_in_place:
            before = before.model_copy(
                update={"sessions": sessions[:-1], "identity": identity, "unnamed_until": unnamed_until}
            )
            copied = await state.stop.unless_stopped(self._renumber(before, this_start, matches))
            if copied is None:
                return None
            # The lines run in a session of their own: what was copied is not yet what this request wants to run again, and a
            # copied failure must not be newer, by its attempts, than what its line has now.
            sessions[-1] = this_start.model_copy(update={"renumbers": "done", "prefect_flow_run_id": None})
            sessions.append(this_start)
            since, contents_since, session = session, History.of(before).since, len(sessions)
        manifest = self._manifest(prints, flow, sessions, since, contents_since).model_copy(
            update={"identity": identity, "unnamed_until": unnamed_until}
        )
        await write_manifest(self._files, self._keys, manifest)
        if session > 1:
            # Even if its last start ran here: a start before that can have left tasks on a cluster when it was killed.
            await supersede(self._files, self._keys, session)
        if (written := self._files.local_path(self._keys.manifest)) is not None:
            await asyncio.to_thread(remove_unfinished, written.parent, written)
        keys = self._keys
        await remove_unfinished_on_server(self._files, (keys.run_id, keys.records, keys.manifests, keys.images))
        records = RunRecords(self._files, self._keys, session, since, identity, unnamed_until)
        scanned = await state.stop.unless_stopped(records.scan(starts.segments))
        if scanned is None:
            return None
        index, _ = scanned
        for damage in await records.set_damaged_aside():
            state.note(f"{damage} Its lines run again, unless another record has them.")
        same_request = (
            n for n, one in enumerate(sessions, 1) if one.prefect_flow_run_id == this_start.prefect_flow_run_id
        )
        return Resumed(session, since, records, index, manifest, min(same_request))

    async def _set_right(self, flow_run_id: UUID, before: Manifest) -> None:
        """Let Prefect know how the start before this one ended."""
        ended = None
        with contextlib.suppress(StorageError):
            ended = await read_result(self._files, self._keys, before)
        await set_right(flow_run_id, of_result(ended) if ended is not None else None, self._state.flow_run.id)

    async def _check_lines_to_rerun(self, before: Manifest | None) -> None:
        """Refuse numbers of lines that the run does not have."""
        lines, total = self._state.options.lines_to_rerun, self._prepared.inventory.total_lines
        if not lines:
            return
        run_id = self._request.run_id
        if before is None and not self._request.resume_from:
            raise InvalidOptionError(
                f"rerun_lines={str(lines)!r} names lines that run again, but the run {run_id!r} has not begun before. Leave "
                "rerun_lines out, or give the id of the run that has these lines."
            )
        if self._has_own_numbers:
            numbers = await asyncio.to_thread(lambda: {line.line_number for line in self._prepared.lines()})
            missing, has = lines.missing(numbers), f"{total} lines, {min(numbers)} to {max(numbers)}"
        else:
            missing, has = lines.beyond(total), f"{total} lines, 0 to {total - 1}"
        if missing is not None:
            raise InvalidOptionError(
                f"The lines {str(lines)!r} to run again: the run {run_id!r} has no line {missing}. It has {has}. "
                f"Leave this number out. `batchflow show {run_id}` shows the failed lines."
            )

    async def _changed(self, before: Manifest, prints: dict[str, str], flow: FlowPrint) -> dict[str, str]:
        """The parts that differ from the run's earlier start, each described. Reading more or fewer rows is no change."""
        now = dict(prints)
        if before.options.max_lines_count != self._state.options.max_lines_count:
            for source in self._prepared.sources:
                part = f"data:{source.name}"
                if part in before.fingerprints and before.fingerprints[part] != now[part]:
                    survey = Survey(source, ())
                    rows = before.options.max_lines_count or None
                    now[part] = (await asyncio.to_thread(survey.read, rows)).summary.sha256[:32]
        return self._changes(before, now, flow)

    async def _matches(self, before: Manifest, changed: Iterable[str]) -> Matches | None:
        """Find the records of lines whose numbers may be others now. `None` if that is not so, or does not matter."""
        is_unfinished = before.sessions[-1].renumbers == "begun"
        on_change = self._state.options.on_change
        if on_change == "rerun" and changed:
            return None
        moves_lines = any(map(_decides_lines, changed))
        if not (is_unfinished or moves_lines or (changed and on_change == "reuse")):
            return None
        records = RunRecords(self._files, self._keys, 0, 0, before.identity, before.unnamed_until)
        damaged: list[str] = []
        known = await known_lines(records, History.of(before), damaged.append)
        for damage in damaged:
            self._state.note(f"{damage} Its lines run again.")
        matches = await asyncio.to_thread(
            known.match, self._prepared.lines(), before.total_lines, own_numbers=self._has_own_numbers
        )
        # By its number, a line would now find what the unfinished start has copied there, with the inputs of another line.
        return replace(matches, are_in_place=False) if is_unfinished else matches

    async def _renumber(self, before: Manifest, this_start: Session, matches: Matches) -> int:
        """Copy the records of all lines under their numbers of now. If this is cut short, the next start does it again."""
        begun = this_start.model_copy(update={"renumbers": "begun"})
        await write_manifest(self._files, self._keys, before.model_copy(update={"sessions": [*before.sessions, begun]}))
        own, copies = (
            RunRecords(self._files, self._keys, session, 0, before.identity, before.unnamed_until)
            for session in (0, len(before.sessions) + 1)
        )
        copied = await copy_matches(own, History.of(before), matches.numbers, copies.append)
        self._state.logger.info("The records of %d lines are kept under other line numbers", copied)
        return copied

    @property
    def _has_own_numbers(self) -> bool:
        return any(source.own_numbers for source in self._prepared.inventory.sources)

    async def _take_over(self, identity: str) -> None:
        """Copy completed lines of another run, or of a storage that the caller gave, into this run."""
        state, earlier = self._state, RunRecords(self._files, self._keys, session=0, run=identity)
        if self._request.resume_from:
            other = RunKeys(self._request.resume_from)
            manifest = await require_manifest(self._files, other)
            there = records_of(self._files, other, manifest)
            taken = await take_over_run(
                there,
                History.of(manifest),
                self._prepared.lines(),
                earlier,
                state.options.errors_to_rerun,
                total_before=manifest.total_lines,
                own_numbers=self._has_own_numbers,
            )
            state.logger.info("%d lines taken over from run %s", taken, self._request.resume_from)
        if (storage := state.live.resume_storage) is not None:
            others: list[int] = []
            lost: list[int] = []
            flow = self._prepared.flow
            folder = state.live.resume_output_dir or getattr(storage, "image_folder", None)
            taken = await take_over_storage(
                storage,
                self._prepared.lines(),
                earlier,
                others.append,
                images=TakenImages(form_of(flow.message_format), folder, str(flow.working_dir)),
                aggregated={
                    reference.name
                    for node in flow.program.nodes
                    if node.aggregation
                    for reference in node.references.values()
                },
                is_entry=self._prepared.has_aggregation and not flow.program.nodes,
                on_lost_image=lost.append,
            )
            if lost:
                state.note(
                    f"{len(lost)} completed lines run again, because {type(storage).__name__} does not have the images that "
                    f"the aggregation needs; the first is line {lost[0]}."
                )
            if others:
                state.note(
                    f"{len(others)} completed lines of {type(storage).__name__} had different inputs and run again; "
                    f"the first is line {others[0]}."
                )
            state.logger.info("%d completed lines taken over from %s", taken, type(storage).__name__)

    async def _refuse_other_flow(self, other: Manifest) -> None:
        """Refuse lines of another flow. Other data or another mapping show in the inputs of each line."""
        flow = await self._flow_print()
        now = self._fingerprints(flow)
        changed = [
            *self._changes(other, {part: now[part] for part in FLOW_PARTS & now.keys()}, flow, FLOW_PARTS).values()
        ]
        if changed and self._state.options.on_change == "refuse":
            raise RunChangedError(
                f"Cannot take over lines of run {other.run_id!r}: {'; '.join(changed)} since then. Run without resume_from, or "
                "with on_change='reuse' (--on-change reuse) to take lines with the same inputs anyway.",
                changes=changed,
            )
        for change in changed:
            self._state.note(f"{change} since run {other.run_id}, and its lines are taken over anyway")

    async def _flow_print(self) -> FlowPrint:
        """What the flow consists of now; read once for each start."""
        if self._flow is None:
            texts = [text for value in self._state.init_kwargs.values() for text in _texts(value)]
            self._flow = await asyncio.to_thread(
                flow_print, self._prepared.flow, names=texts, leave_out=self._read_or_written()
            )
        return self._flow

    def _read_or_written(self) -> set[Path]:
        """The files and folders of this machine that are the run's data, outputs and records."""
        prepared, request = self._prepared, self._request
        own_folder = f"{request.storage.rstrip('/')}/{request.run_id}"
        urls = [*(locate(url) for url in request.sources.values()), request.storage, own_folder]
        paths = [path for url in urls if is_local_path(path := url.removeprefix("file://"))]
        places = {Path(found) for path in paths for found in [path, *glob(path, recursive=True)]}  # noqa: PTH207 - absolute
        if (folder := prepared.output_dir) is not None:
            places |= {folder, *(folder / name for name in (*OUTPUT_FILES, IMAGES))}
        # A flow with includes runs in a copy, which has them as well.
        own, copy = prepared.loaded_flow.working_dir, prepared.flow.working_dir
        return places | {copy / place.relative_to(own) for place in places if place.is_relative_to(own)}

    def _fingerprints(self, flow: FlowPrint) -> dict[str, str]:
        state, prepared, request = self._state, self._prepared, self._request
        around = self._surroundings(flow)
        parts = {
            "connections": {name: value for name, value in around.items() if name.startswith("connection ")},
            "environment": {name: value for name, value in around.items() if name.startswith("variable ")},
        }
        return {
            **{f"data:{source.name}": source.sha256[:32] for source in prepared.inventory.sources},
            "inputs_mapping": fingerprint(request.inputs_mapping),
            **flow.fingerprints,
            "init": fingerprint(without_secrets(dict(state.init_kwargs))),
            **({"variant": fingerprint(parse_variant(request.variant))} if request.variant else {}),
            **({"node_connections": fingerprint(chosen)} if (chosen := request.node_connections) else {}),
            **{name: fingerprint(found) for name, found in parts.items() if found},
            **{
                name: fingerprint(chosen)
                for name in ("line_number_column", "inputs_with_default")
                if (chosen := getattr(state.options, name)) != PARAMETERS[name].default
            },
        }

    def _surroundings(self, flow: FlowPrint) -> dict[str, str]:
        prepared, state = self._prepared, self._state
        return surroundings(
            prepared.connections,
            state.environment_variables,
            {
                *flow.variables,
                *variables_of_arguments(state.init_kwargs),
                *(name for text in prepared.flow.environment_variables.values() for name in named_variables(text)),
            },
            prepared.environ,
            uses_models=flow.uses_models,
        )

    def _changes(
        self, before: Manifest, now: Mapping[str, str], flow: FlowPrint, parts: frozenset[str] | None = None
    ) -> dict[str, str]:
        """Describe what differs from an earlier start, or from another run."""
        known = {part: value for part, value in before.fingerprints.items() if parts is None or part in parts}
        now, details = dict(now), flow.details(before)
        for part, name, earlier, given in (
            ("inputs_mapping", "inputs_mapping", before.inputs_mapping, self._request.inputs_mapping),
            ("init", "init arguments", before.init_kwargs, self._state.init_kwargs),
        ):
            if earlier is not None and (differing := differences(_each(earlier), _each(given))):
                details[part] = f"the {name} changed ({listed([f'{argument} {how}' for argument, how in differing])})"
        known.setdefault("packages", now["packages"])  # a run of an older version has none
        if before.surroundings is None:
            # Nor does it have connections. It hashed arguments and variables as a whole.
            now.pop("connections", None)
            now.pop("environment", None)
            now["init"] = fingerprint(dict(self._state.init_kwargs))
            if environment := dict(self._state.environment_variables):
                now["environment"] = fingerprint(environment)
        else:
            named = differences(before.surroundings, self._surroundings(flow))
            for part, kind in (("connections", "connection "), ("environment", "variable ")):
                if said := [f"{name.removeprefix(kind)} {how}" for name, how in named if name.startswith(kind)]:
                    details[part] = f"the {WHAT_IS_AROUND[part]} changed ({listed(said)})"
        return changes(known, now, details)

    def _manifest(
        self,
        prints: dict[str, str],
        flow: FlowPrint,
        sessions: list[Session],
        records_since: int,
        contents_since: int | None,
    ) -> Manifest:
        state, prepared, request = self._state, self._prepared, self._request
        return Manifest(
            run_id=request.run_id,
            flow_name=prepared.flow.name,
            flow=prepared.flow.source,
            working_dir=str(prepared.loaded_flow.working_dir),
            variant=request.variant,
            node_connections=request.node_connections,
            environment_names=sorted(state.environment_variables),
            data={name: locate(url) for name, url in request.sources.items()},
            image_roots=list(prepared.image_roots),
            run=request.run or None,
            inputs_mapping=request.inputs_mapping,
            init_names=sorted(state.init_kwargs),
            init_kwargs=request.init_kwargs if state.live.init_kwargs is None else None,
            connections=request.connections,
            connection_names=sorted(set(state.live.connections or ()) - request.connections.keys()),
            options=state.options,
            output_dir=str(prepared.output_dir) if prepared.output_dir else None,
            total_lines=prepared.inventory.total_lines,
            fingerprints=prints,
            flow_parts=flow.named_parts,
            packages=dict(flow.packages),
            surroundings=self._surroundings(flow),
            sessions=sessions,
            records_since=records_since,
            contents_since=contents_since,
        )


def _decides_lines(part: str) -> bool:
    """Whether a fingerprint is one of those that decide which inputs the lines have."""
    return part.startswith("data:") or part in LINE_PARTS


def _with_counts(changed: Mapping[str, str], lines: LineChanges) -> dict[str, str]:
    """Say what has become of the lines, at the first change that can have changed them."""
    first = next(filter(_decides_lines, changed), None)
    return {
        part: text if part != first else f"{text[:-1]}; {lines})" if text.endswith(")") else f"{text} ({lines})"
        for part, text in changed.items()
    }


def _each(values: Mapping[str, Any]) -> dict[str, str]:
    """A hash of each value that is no secret."""
    return {name: fingerprint(value) for name, value in without_secrets(values).items()}


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, which can be names of files."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Path):
        yield str(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _try_to_write(folder: Path) -> None:
    make_folder(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass
