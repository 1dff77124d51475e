"""Every key of the run storage. Names that become part of a key are checked here.

::

    <storage>/<run_id>/
        manifest.json        the flow, data and options of the run, and its sessions
        manifests/*.json     the same, as each session wrote it
        lock                 a file lock that the running process holds, on local disks
        leases/*.json        one lease per start; the newest names the process that runs it now
        .reserve             on local disks, space for the results of running lines, while lines run
        control.json         orders for the tasks of a run on a cluster
        records/*.jsonl      segments of line records, written once
        records/damaged/*    segments that were found damaged; their lines run again
        outputs.jsonl        completed lines, sorted
        images/*             the images in outputs and failed lines, named by their content
        failed.jsonl         failed lines with their inputs; can be the data of a new run
        batch_result.json    the BatchResult
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from prefect_batchflow.exceptions import InvalidRunIdError, RecordCorruptError
from prefect_batchflow.inputs.mapping import MAX_LINE_NUMBER

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGITS = len(str(MAX_LINE_NUMBER))
_SEGMENT = re.compile(rf"([0-9]{{{_DIGITS}}})-([0-9]{{{_DIGITS}}})-([0-9]{{4}})-[0-9a-f]{{12}}(\.jsonl?)")
IMAGES = "images"
"""The folder of images, beside the outputs file that names them."""

DAMAGED = "damaged"
"""The folder of segments that were set aside, among the others."""


def check_run_id(run_id: str) -> str:
    """Give the run id back if it is a safe name.

    Raises:
        InvalidRunIdError: It is not; the message says what is allowed.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidRunIdError(
            f"The run id {run_id!r} is not valid. Use 1 to 128 letters, digits, '.', '_' and '-', "
            "starting with a letter or a digit.",
            run_id=run_id,
        )
    return run_id


class RunKeys:
    """The keys of one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = check_run_id(run_id)
        self.manifest = f"{run_id}/manifest.json"
        self.manifests = f"{run_id}/manifests"
        self.lock = f"{run_id}/lock"
        self.leases = f"{run_id}/leases"
        self.reserve = f"{run_id}/.reserve"
        self.control = f"{run_id}/control.json"
        self.records = f"{run_id}/records"
        self.outputs = f"{run_id}/outputs.jsonl"
        self.images = f"{run_id}/{IMAGES}"
        self.failed = f"{run_id}/failed.jsonl"
        self.batch_result = f"{run_id}/batch_result.json"

    def kept_manifest(self, session: int) -> str:
        """The manifest of one session."""
        return f"{self.manifests}/{session:04d}.json"

    def lease(self, number: int) -> str:
        """One lease. Each start takes the next number."""
        return f"{self.leases}/{number:06d}.json"

    @staticmethod
    def lease_number(name: str) -> int | None:
        """The number in a lease's file name; `None` for any other file."""
        stem, _, suffix = name.partition(".")
        return int(stem) if suffix == "json" and stem.isascii() and stem.isdigit() else None

    def image(self, name: str) -> str:
        """One image. Outputs and failed lines name it by its path relative to their folder."""
        return f"{self.images}/{name}"

    def segment(self, name: str) -> str:
        """One segment."""
        return f"{self.records}/{name}"

    def damaged_segment(self, name: str) -> str:
        """One segment that was set aside."""
        return f"{self.records}/{DAMAGED}/{name}"


@dataclass(frozen=True, slots=True)
class SegmentName:
    """A segment's name: the numbers of its first and last line, and the session that wrote it."""

    name: str
    first: int
    last: int
    session: int

    @property
    def suffix(self) -> str:
        """`.jsonl`; `.json` for segments of format 1."""
        return self.name[self.name.rindex(".") :]

    @classmethod
    def new(cls, first: int, last: int, session: int) -> SegmentName:
        """Make a unique name. Names sort by their first line."""
        return cls(
            f"{first:0{_DIGITS}d}-{last:0{_DIGITS}d}-{session:04d}-{uuid.uuid4().hex[:12]}.jsonl", first, last, session
        )

    @classmethod
    def parse(cls, name: str) -> SegmentName:
        """Read a name back.

        Raises:
            RecordCorruptError: The file is not a segment.
        """
        match = _SEGMENT.fullmatch(name)
        if match is None:
            raise RecordCorruptError(f"The file {name!r} among the run's records is not a record file. Move it away.")
        first, last, session = (int(group) for group in match.groups()[:3])
        return cls(name, first, last, session)
