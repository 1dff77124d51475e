"""Which lines run, which records count, and that outputs have just these: real stages over real records, without Prefect."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from staged_run import FAILS, STOPS, VANISHES, StagedRun, dies_at

from prefect_batchflow.exceptions import RunChangedError, RunInUseError, StorageError, UnexpectedError
from prefect_batchflow.results.records import Status
from prefect_batchflow.run import ending
from prefect_batchflow.storage import lease, retries, takeover
from prefect_batchflow.storage.manifest import keep_manifest, look_for_manifest
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

pytestmark = pytest.mark.anyio


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> StagedRun:
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0,))
    monkeypatch.setattr(lease, "ABSENT_AGAIN_SEC", 0.0)
    return StagedRun(monkeypatch)


Start = tuple[str, dict[str, str]]
"""Rows, and what becomes of their letters."""


@pytest.mark.parametrize(
    ("earlier", "now", "options", "runs", "outputs", "failed"),
    [
        ([], "abc", {}, "abc", "a1 b1 c1", ""),
        ([("abc", {})], "abc", {}, "", "a1 b1 c1", ""),
        ([("abc", {"b": STOPS})], "abc", {}, "bc", "a1 b1 c1", ""),
        ([("abc", {"b": FAILS})], "abc", {}, "b", "a1 b2 c1", ""),
        ([("abc", {"a": FAILS, "b": FAILS}), ("abc", {"b": STOPS})], "abc", {}, "b", "a2 b2 c1", ""),
        ([("abc", {})], "axc", {"on_change": "reuse"}, "x", "a1 x1 c1", ""),
        ([("abc", {})], "axc", {"on_change": "rerun"}, "axc", "a2 x1 c2", ""),
        ([("abcd", {})], "ab", {"on_change": "reuse"}, "", "a1 b1", ""),
        ([("abc", {})], "xabc", {"on_change": "reuse"}, "x", "x1 a1 b1 c1", ""),
        ([("abc", {"b": FAILS})], "xabc", {"on_change": "reuse"}, "xb", "x1 a1 b2 c1", ""),
        ([("aba", {"b": FAILS})], "baa", {"on_change": "reuse", "rerun_lines": "2"}, "a", "a1 a3", "b"),
        ([("abcb", {})], "bxba", {"on_change": "reuse"}, "x", "b1 x1 b2 a1", ""),
        ([("abc", {}), ("ac", {"on_change": "reuse"})], "abc", {"on_change": "reuse"}, "", "a1 b1 c1", ""),
        ([("abc", {"b": FAILS, "c": FAILS})], "abc", {"rerun": "timed_out"}, "", "a1", "b c"),
        ([("abc", {"b": FAILS})], "abc", {"rerun": "failed"}, "b", "a1 b2 c1", ""),
        ([("abc", {"b": FAILS})], "abc", {"rerun": "user_code"}, "b", "a1 b2 c1", ""),
        ([("abc", {"b": FAILS})], "abc", {"rerun_lines": "0,2"}, "ac", "a2 c2", "b"),
        ([("abc", {"b": FAILS, "c": STOPS})], "abc", {"rerun_lines": "0"}, "ac", "a2 c1", "b"),
        ([("abc", {"b": FAILS})], "abc", {"rerun": "failed", "rerun_lines": "2"}, "bc", "a1 b2 c2", ""),
        ([("abc", {"b": FAILS})], "abc", {"rerun": "timed_out", "rerun_lines": "2"}, "c", "a1 c2", "b"),
    ],
    ids=[
        "a first start", "nothing is left", "lines that never ended", "a failed line", "the newest start counts",
        "a changed line", "all lines anew", "fewer lines", "a row on top",
        "a failed line that moved", "a chosen line that moved", "equal rows that moved", "a row that comes back",
        "failed lines with other errors stay", "failed lines only", "an error class", "lines by number",
        "lines by number and one that never ended", "failed lines and a number", "other errors and a number",
    ],
)  # fmt: skip
async def test_the_lines_that_run_are_those_that_are_not_done_or_were_chosen(
    run: StagedRun,
    earlier: Sequence[tuple[str, dict[str, str]]],
    now: str,
    options: dict[str, Any],
    runs: str,
    outputs: str,
    failed: str,
) -> None:
    for rows, script in earlier:
        given = {name: script[name] for name in script if len(name) > 1}
        await run.start(rows, script, **given)

    result = await run.start(now, **options)

    assert "".join(run.begun) == runs
    assert list((await run.outputs()).values()) == outputs.split()
    assert list((await run.failed()).values()) == failed.split()
    counts = (result.total_lines, result.completed_lines, result.failed_lines)
    assert counts == (len(now), len(outputs.split()), len(failed.split()))
    assert result.status == Status.Completed


@pytest.mark.parametrize(
    ("before", "now", "options", "outputs", "failed"),
    [
        (None, ("abc", {"b": STOPS}), {}, "a1", ""),
        (("abc", {"b": STOPS}), ("abc", {"c": STOPS}), {}, "a1 b1", ""),
        (("abc", {}), ("xbc", {"x": STOPS}), {"on_change": "reuse"}, "b1 c1", ""),
        (("abc", {}), ("xyc", {"x": STOPS}), {"on_change": "reuse"}, "c1", ""),
        (("abc", {}), ("abc", {"b": STOPS}), {"rerun_lines": "0-2"}, "a2 b1 c1", ""),
        (("abc", {"b": FAILS}), ("abc", {"b": STOPS}), {"rerun_lines": "1"}, "a1 c1", "b"),
    ],
    ids=[
        "a first start",
        "a resume",
        "a changed line",
        "a changed line that did not begin",
        "chosen lines that are completed",
        "a chosen line that failed",
    ],
)
async def test_a_stopped_start_loses_nothing_that_there_was(
    run: StagedRun, before: Start | None, now: Start, options: dict[str, Any], outputs: str, failed: str
) -> None:
    if before is not None:
        await run.start(*before)

    result = await run.start(*now, **options)

    assert list((await run.outputs()).values()) == outputs.split()
    assert list((await run.failed()).values()) == failed.split()
    assert (result.completed_lines, result.failed_lines) == (len(outputs.split()), len(failed.split()))
    assert result.status == Status.Canceled


async def test_a_changed_flow_is_refused_before_anything_is_written(run: StagedRun) -> None:
    await run.start("ab")
    before = await run.files.list_names("r/manifests")
    run.flow = "edited"

    with pytest.raises(RunChangedError, match=r"the flow's files changed \(flow\.py changed\)"):
        await run.start("ab")

    assert (run.begun, await run.files.list_names("r/manifests")) == ([], before)


async def test_a_line_that_never_ended_is_no_success(run: StagedRun) -> None:
    with pytest.raises(UnexpectedError, match="The data has 3 lines, but 2 have ended"):
        await run.start("abc", {"b": VANISHES})
    assert "outputs.jsonl" not in await run.names()


@pytest.mark.parametrize(
    ("spoil", "completed", "failed", "stopped"),
    [
        (lambda records: records[1:], 2, 1, "too"),
        (lambda records: records[:-1], 3, 0, "too"),
        (lambda _: [], 0, 0, "too"),
        (lambda records: [records[0], *records], 4, 1, ""),
        (lambda records: [*records, records[-1]], 3, 2, ""),
        (lambda records: [(stored, {**record, "status": "Completed"}) for stored, record in records], 4, 0, ""),
        (lambda records: [(stored, {**record, "status": "Failed"}) for stored, record in records], 0, 4, "too"),
    ],
    ids=[
        "a completed line less", "a failed line less", "none", "a line twice", "a failed line twice",
        "a failed line as completed", "completed lines as failed",
    ],
)  # fmt: skip
async def test_records_that_are_not_the_counted_lines_make_no_outputs(
    run: StagedRun,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[list[Any]], list[Any]],
    completed: int,
    failed: int,
    stopped: str,
) -> None:
    newest = RunRecords.newest

    async def spoilt(self: RunRecords) -> AsyncIterator[Any]:
        for pair in spoil([pair async for pair in newest(self)]):
            yield pair

    monkeypatch.setattr(RunRecords, "newest", spoilt)
    # A stopped run can have records that nobody counted, of a write that ended late; never less.
    for rows, script in [("abcd", {"d": FAILS}), *([("abcde", {"d": FAILS, "e": STOPS})] if stopped else [])]:
        with pytest.raises(
            StorageError, match=rf"3 lines completed and 1 failed, but .* have {completed} and {failed}\. No outputs"
        ):
            await run.start(rows, script)
        assert not {"outputs.jsonl", "failed.jsonl", "batch_result.json"} & await run.names()
        assert run.shown == []
        await run.files.delete_folder("r")


async def test_a_run_that_was_taken_over_shows_nothing(run: StagedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last write was before that. Artifacts are not in the storage, so nothing else refuses them."""

    async def taken_over_meanwhile(*given: Any) -> bool:
        written = await keep_manifest(*given)
        await run.files.write_path(run.keys.lease(99), b"{}")
        return written

    monkeypatch.setattr(ending, "keep_manifest", taken_over_meanwhile)

    with pytest.raises(RunInUseError, match="taken over"):
        await run.start("ab")
    assert (run.shown, run.live.result) == ([], None)


@pytest.mark.parametrize("how", ["gone", "torn"])
async def test_a_manifest_that_is_lost_meanwhile_is_written_again_and_said(run: StagedRun, how: str) -> None:
    async def lose() -> None:
        if how == "gone":
            await run.files.delete_path(run.keys.manifest)
        else:
            await run.files.write_path(run.keys.manifest, b'{"half')

    run.before_report = lose
    await run.start("ab")

    kept = await look_for_manifest(run.files, run.keys)
    assert kept.manifest is not None
    assert kept.problem == ""
    assert run.notes == ["The run's manifest.json was gone or changed at the end of the run. It is written again."]


RESTARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a first start": ("", "abc", {}),
    "a row on top": ("abcb", "xabcb", {"on_change": "reuse"}),
    "rows in another order": ("abcb", "bbca", {"on_change": "reuse"}),
    "rows that are gone": ("abcb", "cb", {"on_change": "reuse"}),
    "all lines anew": ("ab", "ab", {"on_change": "rerun"}),
}


@pytest.mark.parametrize("kind", RESTARTS)
async def test_a_start_that_dies_at_any_write_costs_one_line_at_most(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before, now, options = RESTARTS[kind]
    n, died = 0, True
    while died:
        n += 1
        run = StagedRun(monkeypatch)
        if before:
            await run.start(before)
        if kind == "all lines anew":
            run.flow = "edited"
        died = await dies_at(run, n, now, **options)
        first = run.begun
        await run.start(now, **options)

        assert [row["q"] for row in await run.rows()] == list(now), f"it died at write {n}"
        again = sum((Counter(first) & Counter(run.begun)).values())
        assert again <= 1, f"it died at write {n}: lines {first} and then {run.begun} ran"
        paid = Counter(before) & Counter(now) if kind != "all lines anew" else Counter()
        assert not paid & Counter([*first, *run.begun]), f"it died at write {n}"
    assert n > 3


@pytest.mark.parametrize(
    "kind", [kind for kind, (*_, options) in RESTARTS.items() if options == {"on_change": "reuse"}]
)
async def test_a_start_over_changed_rows_that_dies_at_any_write_leaves_the_old_ones_as_they_were(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before, now, options = RESTARTS[kind]
    n, died = 0, True
    while died:
        n += 1
        run = StagedRun(monkeypatch)
        await run.start(before)
        outputs = await run.outputs()
        died = await dies_at(run, n, now, **options)

        await run.start(before, on_change="reuse")

        assert await run.outputs() == outputs, f"it died at write {n}"
        assert run.begun == [], f"it died at write {n}"
    assert n > 3


async def test_a_run_that_dies_while_it_takes_lines_over_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next start takes over what is missing: a manifest before that would make it a run with few lines."""
    monkeypatch.setattr(takeover, "_LINES_A_SEGMENT", 2)
    n, died = 0, True
    while died:
        n += 1
        old = StagedRun(monkeypatch, run_id="old")
        await old.start("abcdef")
        run = StagedRun(monkeypatch, old.files)
        died = await dies_at(run, n, "xfabcde", resume_from="old")

        await run.start("xfabcde", resume_from="old")

        assert set(run.begun) <= {"x"}, f"it died at write {n}"
        assert [row["q"] for row in await run.rows()] == list("xfabcde"), f"it died at write {n}"
    assert n > 5
