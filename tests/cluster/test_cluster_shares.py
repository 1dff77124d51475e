"""How the lines that may run at once are spread over a cluster's places."""

from __future__ import annotations

import pytest

from prefect_batchflow.cluster.feed import LARGEST_CHUNK, Shares


@pytest.mark.parametrize(
    ("lines_at_once", "places", "in_a_chunk", "running", "submitted"),
    [
        pytest.param(2, 2, 1, 2, 4, id="a line a place"),
        pytest.param(4, 100, 1, 4, 4, id="fewer lines than places: none waits, for it would run"),
        pytest.param(64, 4, 16, 4, 6, id="many lines a place"),
        pytest.param(10, 4, 2, 4, 6, id="what does not share evenly is left"),
        pytest.param(1, 1, 1, 1, 3, id="one"),
    ],
)
def test_lines_are_spread_over_places(
    lines_at_once: int, places: int, in_a_chunk: int, running: int, submitted: int
) -> None:
    shares = Shares(lines_at_once, places, 1_000)

    assert (shares.lines_at_once, shares.running, shares.submitted) == (in_a_chunk, running, submitted)
    assert shares.lines_at_once * shares.running <= lines_at_once


@pytest.mark.parametrize(
    ("total_lines", "chunk_size"),
    [
        pytest.param(3, 1, id="fewer lines than chunks"),
        pytest.param(400, 25, id="four chunks a place"),
        pytest.param(10_000_000, LARGEST_CHUNK, id="bounded by what travels well"),
    ],
)
def test_chunks_are_small_enough_for_every_place(total_lines: int, chunk_size: int) -> None:
    assert Shares(4, 4, total_lines).chunk_size == chunk_size


def test_a_chunk_has_at_least_the_lines_that_run_at_once() -> None:
    assert Shares(64, 4, 20).chunk_size == 16
