"""Any starts of a run, one after the other, over rows that come, go, move and repeat, also killed: each line is paid once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staged_run import STOPS, StagedRun, dies_at

from prefect_batchflow.results.records import Status

if TYPE_CHECKING:
    from collections.abc import Sequence


class Start(NamedTuple):
    """One start of the run, with on_change='reuse'."""

    rows: str
    script: dict[str, str]
    """What becomes of the lines with a letter."""
    dies: int
    """The write before which the process dies; 0 for none."""


starts = st.builds(
    Start,
    rows=st.text("abc", min_size=1, max_size=6),
    script=st.dictionaries(st.sampled_from("abc"), st.sampled_from(["fails", STOPS]), max_size=1),
    dies=st.one_of(st.just(0), st.integers(1, 12)),
)


async def check(run: StagedRun, sequence: Sequence[Start]) -> None:
    """Start the run again and again. A last start, over the last rows, completes all lines."""
    done: Counter[str] = Counter()
    """By letter: of how many equal lines at once there are records, at least. That of a line in flight at a death is extra."""
    for start in [*sequence, Start(sequence[-1].rows, {}, 0)]:
        rows = Counter(start.rows)
        kept = rows & done
        died = await dies_at(run, start.dies or 1_000, start.rows, start.script, on_change="reuse")

        again = Counter(run.begun) - (rows - kept)
        assert not again, f"{start}: {dict(again)} were paid again"
        done |= kept + run.acknowledged
        if died:
            continue
        outputs, failed = Counter(row["q"] for row in await run.rows()), Counter((await run.failed()).values())
        assert kept + run.acknowledged <= outputs <= rows, f"{start}: outputs have {dict(outputs)}"
        assert run.live.result is not None
        is_completed = run.live.result.status == Status.Completed
        assert is_completed == (STOPS not in map(start.script.get, run.begun)), f"{start}: {run.live.result.status}"
        assert not is_completed or outputs + failed == rows, f"{start}: lines are missing"
        done |= outputs
    assert [row["q"] for row in await run.rows()] == list(sequence[-1].rows)


@settings(max_examples=40)
@given(st.lists(starts, min_size=1, max_size=5))
def test_a_line_whose_record_is_kept_never_runs_again_and_outputs_have_each_line_once(sequence: list[Start]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(check(StagedRun(monkeypatch), sequence))
