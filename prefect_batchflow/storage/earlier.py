"""The earlier starts of a run: what its manifest and the names of its segments tell, also when the manifest is lost."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_batchflow.storage.manifest import Session, look_for_manifest
from prefect_batchflow.storage.records import RunRecords
from prefect_batchflow.storage.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys, SegmentName
    from prefect_batchflow.storage.manifest import Manifest


@dataclass(frozen=True, slots=True)
class EarlierStarts:
    """What a storage has of the earlier starts of a run."""

    manifest: Manifest | None
    """The newest sound one; `None` for the first start, or if it is lost."""
    problem: str
    """A sentence about what is wrong with `manifest.json`, empty if nothing is."""
    segments: Sequence[SegmentName]

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

    Raises:
        StorageError: The storage cannot be read.
    """
    segments = await RunRecords(files, keys, session=0).segments()
    manifest, problem = await look_for_manifest(files, keys)
    # Records of session 0 are those of another run, taken over by a start that did not get as far as its manifest.
    if manifest is None and not problem and any(name.session for name in segments):
        manifest, problem = await look_for_manifest(files, keys)  # one stale answer is not yet a loss
        if manifest is None and not problem:
            problem = f"The manifest {files.location(keys.manifest)} is gone, and the run has records."
    return EarlierStarts(manifest, problem, segments)


async def identity_of(files: RunFiles, keys: RunKeys, earlier: EarlierStarts) -> tuple[str, int]:
    """The name of the run in its records, and the last session whose records can be without it.

    A lost name is read from the newest segment. The name stays when somebody renames or copies the run's folder.

    Raises:
        StorageError: The storage cannot be read.
    """
    if earlier.manifest is not None and earlier.manifest.identity:
        return earlier.manifest.identity, earlier.manifest.unnamed_until
    new = f"{keys.run_id}/{secrets.token_hex(6)}"
    if earlier.manifest is not None:
        return new, max([len(earlier.manifest.sessions), *(name.session for name in earlier.segments)])
    records = RunRecords(files, keys, session=0)
    for name in sorted(earlier.segments, key=lambda name: name.session, reverse=True):
        if isinstance(segment := await records.read_or_damage(name), Segment):
            return (segment.run, 0) if segment.run else (new, name.session)
    return new, 0
