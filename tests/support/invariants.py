"""The one check after every fault: the invariants I1 to I7 of a run, from its files, the outside witness and the processes.

It reads the files itself, as a person would with `jq` and `sha256sum`, and asks `batchflow verify` last. The invariants:

- I1 every line of the data is in exactly one of completed, failed, canceled and not started; the sum is the line count.
- I2 every completed line has one record whose checksum fits and whose input hash is that of the line. What was there stays.
- I3 a line whose record was kept is never executed again, as the lines themselves witness.
- I4 lines executed without a record are no more than those in flight when the fault struck.
- I5 the outputs file is absent, or complete and sorted; never half a line.
- I6 no process of the run is alive soon after it ended.
- I7 the run goes on with the same command, with no manual unlock.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.storage.care import verify_run
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.manifest import look_for_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

MARK = "BATCHFLOW_TEST_RUN"
"""In the environment of all processes of a run that a test looks for."""
GONE_WITHIN_SEC = 5.0
_SEGMENT = re.compile(r"(\d+)-(\d+)-(\d{4})-[0-9a-f]{12}\.jsonl")
_WENT_ON = (0, 3)
"""Exit statuses of a run that has come to its end: completed, or with failed lines."""


def square(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"square": inputs["n"] ** 2}


class Record(NamedTuple):
    """One record of a line, in a sound segment."""

    number: int
    session: int
    attempt: int
    status: str
    content: str
    """The hash of its inputs."""
    execution: tuple[Any, ...]
    """Which execution of the line it tells of. A copy under another number has the same."""
    output: Any


class Stored(NamedTuple):
    """What a run's folder has."""

    manifest: dict[str, Any]
    """The newest sound one; empty if there is none."""
    records: list[Record]
    unsound: list[str]
    """Names of segments that are damaged, or of another run."""

    def kept(self) -> Counter[str]:
        """How many lines with the same inputs have a completed record that counts."""
        unfinished, since, _ = _marks(self.manifest)
        epochs: dict[int, dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
        for record in self.records:
            if record.session >= since and record.session not in unfinished:
                there = epochs[_epoch(self.manifest, record.session)][record.content]
                if record.number not in there or _order(there[record.number]) <= _order(record):
                    there[record.number] = record
        most: Counter[str] = Counter()
        for contents in epochs.values():
            for content, lines in contents.items():
                most[content] = max(most[content], sum(record.status == "Completed" for record in lines.values()))
        return most

    def newest(self, contents: Mapping[int, str]) -> dict[int, Record]:
        """The record that counts of each line of the data."""
        unfinished, _, since = _marks(self.manifest)
        found: dict[int, Record] = {}
        for record in self.records:
            if record.session < since or record.session in unfinished:
                continue
            if record.number not in found or _order(found[record.number]) <= _order(record):
                found[record.number] = record
        return {number: record for number, record in found.items() if contents.get(number) == record.content}

    def executions(self) -> Counter[str]:
        """How often lines with the same inputs have been executed, as the records tell."""
        return Counter(content for content, _ in {(record.content, record.execution) for record in self.records})


def _marks(manifest: Mapping[str, Any]) -> tuple[frozenset[int], int, int]:
    """Sessions that ran no line, the first one that counts by content, the first one that counts by number."""
    sessions = enumerate(manifest.get("sessions", ()), 1)
    by_number = int(manifest.get("records_since") or 0)
    by_content = manifest.get("contents_since")
    unfinished = frozenset(number for number, session in sessions if session.get("renumbers") == "begun")
    return unfinished, by_number if by_content is None else int(by_content), by_number


def _epoch(manifest: Mapping[str, Any], session: int) -> int:
    sessions = enumerate(manifest.get("sessions", ()), 1)
    return sum(number <= session and one.get("renumbers") == "done" for number, one in sessions)


def _order(record: Record) -> tuple[int, int]:
    return record.session, record.attempt


def read_stored(run: Path) -> Stored:
    """Read a run's folder, past the package."""
    manifest = next(iter(read_manifests(run)), {})
    records: list[Record] = []
    unsound: list[str] = []
    for path in sorted((run / "records").glob("[!.]*.jsonl")):
        found = _segment(path, str(manifest.get("identity", "")))
        if found is None:
            unsound.append(path.name)
        else:
            records += found
    return Stored(manifest, records, unsound)


def read_manifests(run: Path) -> list[dict[str, Any]]:
    """The sound manifests of a run, the one that counts first."""
    paths = [run / "manifest.json", *sorted((run / "manifests").glob("[!.]*.json"), reverse=True)]
    return list(filter(None, map(_sound, paths)))


def _sound(path: Path) -> dict[str, Any]:
    """A manifest; empty if it is not there, or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = dict(json.loads(path.read_bytes()))
        checksum = data.pop("sha256")
        if hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest() == checksum:
            return data
    return {}


def _segment(path: Path, identity: str) -> list[Record] | None:
    """The records of a segment; `None` if it is not sound."""
    match = _SEGMENT.fullmatch(path.name)
    head, _, body = path.read_bytes().partition(b"\n")
    try:
        header = json.loads(head)
        checksum = header.pop("sha256")
        text = json.dumps(header, separators=(",", ":")).encode()
        records = [json.loads(line) for line in body.split(b"\n")[:-1]]
        numbers = [record["line_number"] for record in records]
        is_sound = (
            match is not None
            and hashlib.sha256(text + body).hexdigest() == checksum
            and [min(numbers), max(numbers), header["session"]] == list(map(int, match.groups()))
            and (not identity or header.get("run") == identity)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not is_sound:
        return None
    return [
        Record(
            record["line_number"],
            header["session"],
            record["attempt"],
            record["status"],
            record["input_hash"],
            (record["start_time"], record["duration_sec"], record["attempt"]),
            record["output"],
        )
        for record in records
    ]


def content_of(inputs: Mapping[str, Any]) -> str:
    """The hash of a line's inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def alive(mark: str) -> list[int]:
    """The processes that have this in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}\0".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found


@dataclass
class Watch:
    """Watches one run, from before its first start.

    Call `begin` before each start, and `check` once its process has ended or was killed.
    """

    run: Path
    """Its folder."""
    lines: Mapping[int, Mapping[str, Any]]
    """The inputs of each line of the data, by line_number. Set it anew when the data changes."""
    witness: Path
    """The file to which each line appends its key, in one write, when it is executed."""
    in_flight: int
    """How many lines can have been executed without a record when a fault strikes."""
    answer: Callable[[Mapping[str, Any]], dict[str, Any]] = square
    """The output that a line must have."""
    key: Callable[[Mapping[str, Any]], int] = lambda inputs: int(inputs["n"])
    """What a line writes to the witness file. Lines with equal keys have equal inputs."""
    output_dir: Path | None = None
    attempts: int = 1
    """How often a line is tried in one start."""
    mark: str = ""
    """What its processes have in their environment; empty if they are not looked for."""
    fetch: Callable[[], object] = lambda: None
    """Brings the run's files to its folder here, if they are elsewhere."""
    failing: Collection[int] = ()
    """Keys of lines that fail, which can run again."""
    kills: int = 0
    starts: int = 0
    executed_again: int = 0
    """Executions of lines that had been executed before, in all."""
    worst: int = 0
    """The most lines that a fault has left executed without a record."""
    _before: Stored = field(default_factory=lambda: Stored({}, [], []))
    _executed_before: Counter[int] = field(default_factory=Counter)

    def executed(self) -> Counter[int]:
        return Counter(map(int, self.witness.read_text().split())) if self.witness.exists() else Counter()

    def begin(self) -> None:
        """Look at what there is before a start."""
        self.starts += 1
        self.fetch()
        self._before, self._executed_before = read_stored(self.run), self.executed()

    def check(
        self,
        status: int | None,
        *,
        asked_again: Mapping[int, int] | None = None,
        forgets: bool = False,
        refused: bool = False,
    ) -> None:
        """Check a start.

        Args:
            status: Its exit status; `None` if it was killed.
            asked_again: Keys whose completed lines were to run again, and how often.
            forgets: Whether all lines were to run again.
            refused: Whether it was to be refused.

        Raises:
            AssertionError: An invariant is violated; the message names each violation.
        """
        wrong = list(self.violations(status, asked_again=asked_again, forgets=forgets, refused=refused))
        assert not wrong, "\n".join(wrong)

    def violations(
        self,
        status: int | None,
        *,
        asked_again: Mapping[int, int] | None = None,
        forgets: bool = False,
        refused: bool = False,
    ) -> Iterator[str]:
        """What `check` finds."""
        self.kills += status is None
        if self.mark:
            yield from self._processes()
        self.fetch()
        stored = read_stored(self.run)
        executed = self.executed()
        since = executed - self._executed_before
        contents = {number: content_of(inputs) for number, inputs in self.lines.items()}
        keys = {content_of(inputs): self.key(inputs) for inputs in self.lines.values()}
        if refused:
            if since:
                yield f"I3: a start that was refused executed {dict(since)}"
            if status == 0:
                yield f"I7: a start that was to be refused ended with {status}"
        before = Counter[str]() if forgets else self._before.kept()
        yield from self._kept(before, stored, keys, forgets=forgets)
        yield from self._executions(before, since, contents, keys, Counter(asked_again or {}))
        yield from self._without_record(stored, since, contents, keys, is_over=status in _WENT_ON)
        yield from self._counts(stored, contents, status)
        yield from self._outputs(stored, contents)
        if status is not None and not refused:
            yield from self._went_on(stored, contents, status)
        if not stored.unsound and _sound(self.run / "manifest.json") and not refused:
            yield from self._verified()

    # --- each invariant ----------------------------------------------------------------------------------------------

    def _kept(self, before: Counter[str], stored: Stored, keys: Mapping[str, int], *, forgets: bool) -> Iterator[str]:
        if forgets:
            return
        now = stored.kept()
        for content, count in before.items():
            if now[content] < count:
                yield (
                    f"I2: {count} lines with key {keys.get(content, content)} had completed before this start, and "
                    f"{now[content]} have a sound record now"
                )

    def _executions(
        self,
        before: Counter[str],
        since: Counter[int],
        contents: Mapping[int, str],
        keys: Mapping[str, int],
        asked_again: Counter[int],
    ) -> Iterator[str]:
        occurrences = Counter(contents.values())
        may_run = Counter[int]()
        for content, count in occurrences.items():
            key = keys[content]
            may_run[key] += (max(0, count - before[content]) + min(asked_again[key], count)) * self.attempts
        self.executed_again += sum((since & self._executed_before).values())
        for key, count in sorted(since.items()):
            if count > may_run[key]:
                yield (
                    f"I3: key {key} was executed {count} times, although only {may_run[key]} executions were due: its record "
                    "was kept, or it is not in the data"
                )

    def _without_record(
        self,
        stored: Stored,
        since: Counter[int],
        contents: Mapping[int, str],
        keys: Mapping[str, int],
        *,
        is_over: bool,
    ) -> Iterator[str]:
        known = Counter[int]()
        gained = stored.executions() - self._before.executions()
        for content, count in gained.items():
            if content in keys:
                known[keys[content]] += count
        # A line that is tried several times in one start has one record of them all.
        once = {key: min(count, 1) if self.attempts > 1 else count for key, count in since.items()}
        missing = Counter(once) - known
        count = missing.total()
        self.worst = max(self.worst, count)
        most = 0 if is_over else self.in_flight
        if count > most:
            when = "came to its end" if is_over else "was struck"
            yield f"I4: {count} executions have no record, and {most} could be in flight when the run {when}: {dict(missing)}"

    def _counts(self, stored: Stored, contents: Mapping[int, str], status: int | None) -> Iterator[str]:
        newest = stored.newest(contents)
        states = Counter(record.status for record in newest.values())
        result = self._result()
        if result is None or not self._is_last_result(stored):
            return
        counts = {name: int(result[f"{name}_lines"]) for name in ("completed", "failed", "canceled", "not_started")}
        if any(count < 0 for count in counts.values()) or sum(counts.values()) != result["total_lines"]:
            yield f"I1: {counts} is not {result['total_lines']} in all"
        if status in _WENT_ON and result["total_lines"] != len(contents):
            yield f"I1: the result counts {result['total_lines']} lines, and the data has {len(contents)}"
        if self._total(stored) == len(contents) and (counts["completed"], counts["failed"]) != (
            states["Completed"],
            states["Failed"],
        ):
            yield f"I1: the result counts {counts}, and the records {dict(states)}"

    def _outputs(self, stored: Stored, contents: Mapping[int, str]) -> Iterator[str]:
        is_last = self._is_last_result(stored)
        newest = stored.newest(contents)
        same_data = self._total(stored) == len(contents)
        for path in (self.run / "outputs.jsonl", *([self.output_dir / "output.jsonl"] if self.output_dir else [])):
            if not path.exists():
                if is_last and path.parent == self.run:
                    yield f"I5: {path.name} is absent, and there is a result"
                continue
            content = path.read_bytes()
            rows: list[dict[str, Any]] = []
            try:
                rows = [json.loads(line) for line in content.split(b"\n")[:-1]]
                numbers = [row["line_number"] for row in rows]
            except (ValueError, KeyError, TypeError):
                yield f"I5: {path} has a row that is not whole"
                continue
            if content and not content.endswith(b"\n"):
                yield f"I5: {path} ends in half a line"
            if numbers != sorted(set(numbers)):
                yield f"I5: {path} is not sorted, or has a line twice: {numbers}"
            if not (is_last and same_data and path.parent == self.run):
                continue
            completed = sorted(number for number, record in newest.items() if record.status == "Completed")
            if numbers != completed:
                yield f"I5: {path} has lines {numbers}, and the records {completed}"
            for row in rows:
                inputs = self.lines.get(row["line_number"])
                if inputs is not None and row != {"line_number": row["line_number"], **self.answer(inputs)}:
                    yield f"I5: {path} has {row} for the line {dict(inputs)}"

    def _processes(self) -> Iterator[str]:
        deadline = time.monotonic() + GONE_WITHIN_SEC
        while (there := alive(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if there:
            yield f"I6: processes {there} are alive {GONE_WITHIN_SEC:g} s after the run ended"

    def _went_on(self, stored: Stored, contents: Mapping[int, str], status: int) -> Iterator[str]:
        if status not in _WENT_ON:
            yield f"I7: the same command ended with status {status}"
            return
        newest = stored.newest(contents)
        not_done = [
            number
            for number, inputs in self.lines.items()
            if (record := newest.get(number)) is None
            or (record.status != "Completed" and self.key(inputs) not in self.failing)
        ]
        if not_done:
            yield f"I7: the run came to its end, and lines {not_done} have not completed"
        if not self._is_last_result(stored):
            yield "I7: the run came to its end without a result"
        if self.output_dir is not None:
            own, beside = self.run / "outputs.jsonl", self.output_dir / "output.jsonl"
            if not beside.exists() or own.read_bytes() != beside.read_bytes():
                yield f"I5: {beside} is not equal to {own}"

    def _verified(self) -> Iterator[str]:
        files, keys = RunStorageBlock(url=str(self.run.parent)), RunKeys(self.run.name)

        async def verified() -> Sequence[str]:
            manifest, _ = await look_for_manifest(files, keys)
            assert manifest is not None, "this check has found one"
            return (await verify_run(files, manifest)).wrong

        for text in asyncio.run(verified()):
            yield f"I1 or I2, as `batchflow verify` says: {text}"

    # --- the files ---------------------------------------------------------------------------------------------------

    def _result(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            return dict(json.loads((self.run / "batch_result.json").read_bytes()))
        return None

    def _is_last_result(self, stored: Stored) -> bool:
        """Whether there is a result of the last start."""
        result, sessions = self._result(), stored.manifest.get("sessions")
        if result is None or not sessions:
            return False
        return _moment(result["start_time"]) == _moment(sessions[-1]["started_at"])

    @staticmethod
    def _total(stored: Stored) -> int:
        return int(stored.manifest.get("total_lines", -1))


def _moment(text: str) -> str:
    return text.replace("Z", "+00:00")
