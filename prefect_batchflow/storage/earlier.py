"""The earlier starts of a run: what its manifest and the names of its segments tell, also when the manifest is lost."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import RecordCorruptError, RunNotFoundError, StorageError
from prefect_batchflow.storage.manifest import (
    WITHOUT_MANIFEST,
    KeptManifest,
    Session,
    instead,
    kept_manifests,
    look_for_manifest,
    read_manifest,
    run_names,
)
from prefect_batchflow.storage.records import RunRecords, is_of_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys, SegmentName
    from prefect_batchflow.storage.manifest import Manifest
    from prefect_batchflow.storage.segments import Segment


@dataclass(frozen=True, slots=True)
class EarlierStarts:
    """What a storage has of the earlier starts of a run."""

    manifest: Manifest | None
    """The newest sound one; `None` for the first start, or if it is lost."""
    problem: str
    """A sentence about what is wrong with `manifest.json`, empty if nothing is."""
    segments: Sequence[SegmentName]
    strangers: str = ""
    """A text about other files among the segments, empty if there are none."""

    @property
    def lost(self) -> str:
        """If there were starts, but no manifest tells of them: the begin of a sentence that ends in `since …`."""
        if self.manifest is not None or not self.problem:
            return ""
        return f"{self.problem} So nobody can tell whether the flow or the data changed"

    def sessions(self, this_start: Session) -> list[Session]:
        """All starts, with this one. A start of which only segments are left counts: its number must not come again."""
        known = list(self.manifest.sessions) if self.manifest else []
        newest = max((name.session for name in self.segments), default=0)
        only_records = Session(started_at=this_start.started_at, prefect_flow_run_id=None, versions={})
        return [*known, *[only_records] * (newest - len(known)), this_start]


async def earlier_starts(files: RunFiles, keys: RunKeys) -> EarlierStarts:
    """Look for the earlier starts of a run.

    A manifest that is that of another run, or older than the records, is not the run's. A copy of the run's own takes its
    place, if there is one.

    Raises:
        StorageError: The storage cannot be read.
    """
    records = RunRecords(files, keys, session=0)
    segments, strangers = await records.listed()
    manifest, problem = await look_for_manifest(files, keys)
    # Records of session 0 are those of another run, taken over by a start that did not get as far as its manifest.
    if manifest is None and not problem and any(name.session for name in segments):
        manifest, problem = await look_for_manifest(files, keys)  # one stale answer is not yet a loss
        if manifest is None and not problem:
            problem = f"The manifest {files.location(keys.manifest)} is gone."
    if manifest is not None and (wrong := await _misfit(manifest, records, segments)):
        place = files.location(keys.manifest)
        manifest, problem = await _fitting(files, keys, records, segments, f"The manifest {place} {wrong}.")
    return EarlierStarts(manifest, problem, segments, strangers)


async def _fitting(
    files: RunFiles, keys: RunKeys, records: RunRecords, segments: Sequence[SegmentName], problem: str
) -> KeptManifest:
    """The newest copy that fits the records."""
    async with contextlib.aclosing(kept_manifests(files, keys)) as copies:
        async for place, manifest in copies:
            if not await _misfit(manifest, records, segments):
                return instead(place, manifest, problem)
    return KeptManifest(None, problem)


async def _misfit(manifest: Manifest, records: RunRecords, segments: Sequence[SegmentName]) -> str:
    """The rest of a sentence about a manifest that is not that of these records; empty if it is, or nobody can tell.

    The newest sound segment of the run tells. Damaged ones tell nothing, and single ones of other runs may be among them.
    """
    if not manifest.identity:
        return ""
    others = set()
    for name in sorted(segments, key=lambda name: name.session, reverse=True):
        if (segment := await _sound(records, name)) is None:
            continue
        if is_of_run(segment, manifest.identity, manifest.unnamed_until):
            known = len(manifest.sessions)
            is_old = name.session > known
            return (
                f"is an old one: start {known} wrote it, and there are records of start {name.session}"
                if is_old
                else ""
            )
        others.add(segment.run or "a run without a name")
    if not others:
        return ""
    return f"belongs to the run {manifest.identity}, but the records belong to {', '.join(sorted(others))}"


async def _sound(records: RunRecords, name: SegmentName) -> Segment | None:
    """One segment; `None` if it is damaged or gone."""
    try:
        return await records.read(name)
    except StorageError as exc:
        if isinstance(exc, RecordCorruptError) or isinstance(exc.__cause__, FileNotFoundError):
            return None
        raise


async def require_manifest(files: RunFiles, keys: RunKeys) -> Manifest:
    """The manifest of a run that must exist.

    Raises:
        RunNotFoundError: There is no such run; the message names the storage and some of its runs.
        StorageError: The manifest cannot be read.
    """
    starts = await earlier_starts(files, keys)
    if starts.manifest is not None:
        return starts.manifest
    if starts.problem:
        await read_manifest(files, keys)  # which says what to do if it is damaged
        raise StorageError(f"{starts.problem} {WITHOUT_MANIFEST}")
    there = await run_names(files)
    known = (
        f"The storage has {len(there)} run{'s' * (len(there) > 1)}, such as {', '.join(there[-3:])}."
        if there
        else "The storage has no runs."
    )
    raise RunNotFoundError(
        f"There is no run {keys.run_id!r} in {files.location()}. {known} `batchflow list` shows them all.",
        run_id=keys.run_id,
    )


async def identity_of(files: RunFiles, keys: RunKeys, earlier: EarlierStarts) -> tuple[str, int]:
    """The name of the run in its records, and the last session whose records can be without it.

    A lost name is that of most lines in the segments. It stays when somebody renames or copies the run's folder.

    Raises:
        StorageError: The storage cannot be read.
    """
    if earlier.manifest is not None and earlier.manifest.identity:
        return earlier.manifest.identity, earlier.manifest.unnamed_until
    new = f"{keys.run_id}/{secrets.token_hex(6)}"
    if earlier.manifest is not None:
        return new, max([len(earlier.manifest.sessions), *(name.session for name in earlier.segments)])
    records, names, unnamed_until = RunRecords(files, keys, session=0), Counter[str](), 0
    for name in earlier.segments:
        if (segment := await _sound(records, name)) is not None:
            names[segment.run] += len(segment.stored)
            unnamed_until = max(unnamed_until, 0 if segment.run else name.session)
    own = f"{keys.run_id}/"
    most = max(names, key=lambda run: (run.startswith(own), names[run], run), default="")
    return (most, 0) if most else (new, unnamed_until)
