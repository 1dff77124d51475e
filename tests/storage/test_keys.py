"""Keys of the run storage: what a run may be called, and what its segments are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_batchflow.exceptions import InvalidRunIdError, RecordCorruptError
from prefect_batchflow.inputs.mapping import MAX_LINE_NUMBER
from prefect_batchflow.storage.keys import RunKeys, SegmentName, check_run_id

numbers = st.integers(0, MAX_LINE_NUMBER)


@pytest.mark.parametrize("run_id", ["a", "7", "run-1", "Nightly_2026.11.23", "x" * 128])
def test_a_safe_name_is_given_back(run_id: str) -> None:
    assert check_run_id(run_id) == run_id
    assert RunKeys(run_id).manifest == f"{run_id}/manifest.json"


@pytest.mark.parametrize(
    "run_id",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-option",
        "_x",
        "../x",
        "a/b",
        "a\\b",
        "/abs",
        "a#b",
        "a?b",
        "a b",
        "a\n",
        "a\x00",
        "\u00e9",
        "\u0663",
        "{run}",
        "a:b",
        "a*",
        "x" * 129,
    ],
    ids=repr,
)
def test_a_hostile_name_is_refused_with_what_is_allowed(run_id: str) -> None:
    with pytest.raises(InvalidRunIdError, match="1 to 128 letters, digits") as caught:
        RunKeys(run_id)

    assert repr(run_id) in str(caught.value)
    assert caught.value.run_id == run_id  # type: ignore[attr-defined]


def test_every_key_lies_in_the_runs_folder() -> None:
    keys = RunKeys("r")

    found = [keys.manifest, keys.lock, keys.lease(1), keys.records, keys.outputs, keys.failed, keys.batch_result]

    assert all(key.startswith("r/") for key in found)
    assert len(set(found)) == len(found)
    assert keys.segment("x.json") == "r/records/x.json"


@given(first=numbers, last=numbers, session=st.integers(0, 9999))
def test_a_segments_name_tells_its_lines_and_session(first: int, last: int, session: int) -> None:
    made = SegmentName.new(first, last, session)

    assert SegmentName.parse(made.name) == made
    assert (made.first, made.last, made.session) == (first, last, session)
    assert SegmentName.new(first, last, session) != made, "nothing is overwritten"


@given(st.lists(numbers, min_size=2, max_size=20))
def test_names_sort_by_their_first_line(firsts: list[int]) -> None:
    names = sorted(SegmentName.new(first, first, 1).name for first in firsts)

    assert [SegmentName.parse(name).first for name in names] == sorted(firsts)


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "000000000000-000000000000-0001-0123456789ab.json.bak",
        "000000000000-000000000000-0001-0123456789AB.json",
        "x000000000000-000000000000-0001-0123456789ab.json",
        "000000000000-000000000000-0001-0123456789ab.json\n",
        "\u0660" * 12 + "-000000000000-0001-0123456789ab.json",
    ],
    ids=repr,
)
def test_another_name_is_no_segment(name: str) -> None:
    with pytest.raises(RecordCorruptError, match="Move it away"):
        SegmentName.parse(name)
