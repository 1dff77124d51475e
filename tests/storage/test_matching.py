"""Records are matched with the lines of changed data by content, equal lines by their occurrence."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import outcome_of
from stored_run import manifest_of

from prefect_batchflow.lines import Line
from prefect_batchflow.storage.index import Stored
from prefect_batchflow.storage.manifest import Session
from prefect_batchflow.storage.matching import History, KnownLines, LineChanges, Matches, copy_matches, known_lines
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.storage.keys import RunKeys

NO_HISTORY = History(since=0, renumbered=(), unfinished=frozenset())


def stored(number: int, content: str, session: int = 1, error: str | None = None) -> Stored:
    """A record of a line with this content."""
    outcome = outcome_of(number, inputs={"q": content}, error=error)
    return Stored(outcome.receipt, session, outcome.input_hash)


def lines_of(contents: str) -> list[Line]:
    return [Line(number, {"q": content}) for number, content in enumerate(contents)]


def matched(before: str, now: str, *, total_before: int | None = None, own_numbers: bool = False) -> Matches:
    """Each letter is a line; a dot before is a line without a record."""
    known = KnownLines(NO_HISTORY)
    for number, content in enumerate(before):
        if content != ".":
            known.add(stored(number, content))
    total = len(before) if total_before is None else total_before
    return known.match(lines_of(now), total, own_numbers=own_numbers)


def places(matches: Matches) -> dict[int, int]:
    """The number of now to the number of the record."""
    return {number: known.number for known, number in matches.numbers.items()}


@pytest.mark.parametrize(
    ("before", "now", "found", "said"),
    [
        ("abc", "abc", {0: 0, 1: 1, 2: 2}, "the same lines"),
        ("abc", "xabc", {1: 0, 2: 1, 3: 2}, "1 line new, 3 moved"),
        ("abc", "cba", {0: 2, 1: 1, 2: 0}, "2 lines moved"),
        ("abc", "abcxy", {0: 0, 1: 1, 2: 2}, "2 lines new"),
        ("abc", "ayc", {0: 0, 2: 2}, "1 line changed"),
        ("abc", "ac", {0: 0, 1: 2}, "1 line gone, 1 moved"),
        ("abc", "xbyz", {1: 1}, "1 line new, 2 changed"),
        ("abc", "", {}, "3 lines gone"),
        ("aab", "xaab", {1: 0, 2: 1, 3: 2}, "1 line new, 3 moved"),
        ("aab", "ab", {0: 0, 1: 2}, "1 line gone, 1 moved"),
        ("ab", "aab", {0: 0, 2: 1}, "1 line new, 1 moved"),
        ("abab", "aabb", {0: 0, 1: 2, 2: 1, 3: 3}, "2 lines moved"),
        (".a", "aa", {1: 1}, "the same lines"),
        ("a..", "ab", {0: 0}, "1 line gone"),
        ("a..", "xabc", {1: 0}, "1 line new, 1 moved"),
    ],
)
def test_lines_are_found_by_content(before: str, now: str, found: dict[int, int], said: str) -> None:
    matches = matched(before, now)
    assert places(matches) == found
    assert str(matches.changes) == said
    assert matches.are_the_same == (before == now)


def test_a_number_of_the_datas_own_says_which_of_equal_lines_it_is() -> None:
    known = KnownLines(NO_HISTORY)
    for number in (7, 3):
        known.add(stored(number, "a"))
    now = [Line(3, {"q": "a"}), Line(9, {"q": "a"})]
    assert places(known.match(now, 2, own_numbers=True)) == {3: 3, 9: 7}


def test_a_bad_row_takes_no_record_of_another_line() -> None:
    known = KnownLines(NO_HISTORY)
    known.add(stored(0, "a"))
    now = [replace(line, error={"message": "bad"}) for line in lines_of("xa")]
    assert places(known.match(now, 1)) == {}


class TestHistory:
    """Session 1 had abc; session 2 numbered the lines anew, without b."""

    HISTORY = History(since=0, renumbered=(2,), unfinished=frozenset())

    def known(self) -> KnownLines:
        known = KnownLines(self.HISTORY)
        for number, content in enumerate("abc"):
            known.add(stored(number, content))
        for number, content in enumerate("ac"):
            known.add(stored(number, content, session=2))
        return known

    def test_a_line_that_comes_back_has_its_record(self) -> None:
        matches = self.known().match(lines_of("abc"), 2)
        assert {number: (known.session, known.number) for known, number in matches.numbers.items()} == {
            0: (2, 0),
            1: (1, 1),
            2: (2, 1),
        }
        assert not matches.are_in_place

    def test_a_copy_is_no_second_occurrence(self) -> None:
        assert places(self.known().match(lines_of("aac"), 2)).keys() == {0, 2}

    def test_inputs_that_are_changed_back_have_their_record(self) -> None:
        known = KnownLines(NO_HISTORY)
        known.add(stored(0, "a", session=1))
        known.add(stored(0, "x", session=2))

        matches = known.match(lines_of("a"), 1)

        assert [known.session for known in matches.numbers] == [1]
        assert not matches.are_in_place


class TestUnfinished:
    """Session 2 began to number the lines anew, wrote a part of its copies, and died."""

    @pytest.mark.parametrize(
        ("marks", "renumbered", "unfinished"),
        [
            ((None,), (), set()),
            ((None, "begun"), (), {2}),
            ((None, "done"), (2,), set()),
            ((None, "begun", "begun", "done", None, "begun"), (4,), {2, 3, 6}),
        ],
        ids=["no copies", "begun", "done", "several tries"],
    )
    def test_the_manifest_tells_which_sessions_are_unfinished(
        self, marks: tuple[Any, ...], renumbered: tuple[int, ...], unfinished: set[int]
    ) -> None:
        sessions = [Session(started_at="2", prefect_flow_run_id=None, versions={}, renumbers=mark) for mark in marks]

        history = History.of(manifest_of("r", sessions=sessions))

        assert (history.renumbered, set(history.unfinished)) == (renumbered, unfinished)

    @pytest.mark.anyio
    async def test_its_copies_are_no_records(self, remote: RunStorageBlock, keys: RunKeys) -> None:
        history = History(since=0, renumbered=(), unfinished=frozenset({2}))
        await RunRecords(remote, keys, 1).append([outcome_of(n, inputs={"q": q}) for n, q in enumerate("ab")])
        await RunRecords(remote, keys, 2).append([outcome_of(1, inputs={"q": "a"}, output={"copy": "of a"})])
        records = RunRecords(remote, keys, 0)
        copied: list[LineOutcome] = []

        matches = (await known_lines(records, history)).match(lines_of("ab"), 2)

        assert {known.session for known in matches.numbers} == {1}
        assert (places(matches), str(matches.changes), matches.are_in_place) == ({0: 0, 1: 1}, "the same lines", True)

        async def append(outcomes: Sequence[LineOutcome]) -> None:
            copied.extend(outcomes)

        assert await copy_matches(records, history, matches.numbers, append) == 2
        assert [outcome.parsed()["inputs"]["q"] for outcome in copied] == ["a", "b"]


@pytest.mark.parametrize("total_before", [None, 9], ids=["each line has a record", "some have none"])
@pytest.mark.parametrize(
    ("before", "now", "completed"),
    [("Aa", "a", 1), ("aA", "a", 1), ("AaAa", "xaa", 2), ("aAa", "aaa", 2), ("baA", "cca", 1), ("bAa", "ba", 2)],
)
def test_a_line_that_failed_takes_no_equal_one_that_completed_off_the_data(
    before: str, now: str, completed: int, total_before: int | None
) -> None:
    """Capitals are lines that failed."""
    known = KnownLines(NO_HISTORY)
    for number, letter in enumerate(before):
        known.add(stored(number, letter.lower(), error="no" if letter.isupper() else None))

    found = places(known.match(lines_of(now), len(before) if total_before is None else total_before))

    assert sum(before[record].islower() for record in found.values()) == completed
    assert len(set(found.values())) == len(found)


@given(before=st.text("abc.", max_size=12), now=st.text("abcx", max_size=12), own_numbers=st.booleans())
def test_no_line_is_paid_twice_and_no_record_used_twice(before: str, now: str, own_numbers: bool) -> None:
    matches = matched(before, now, own_numbers=own_numbers)

    assert all(before[known.number] == now[number] for known, number in matches.numbers.items())
    had, has = Counter(before.replace(".", "")), Counter(now)
    found = Counter(now[number] for number in matches.numbers.values())
    assert found == had & has
    changes = matches.changes
    assert len(before) + changes.new - changes.gone == len(now)
    assert matches.are_in_place == (changes.moved == 0)


@given(contents=st.lists(st.sampled_from("abc"), max_size=12), first=st.text("abcx", max_size=3))
def test_equal_lines_keep_their_order(contents: list[str], first: str) -> None:
    before = "".join(contents)
    found = places(matched(before, first + before))
    for content in set(before):
        numbers = [found[number] for number in sorted(found) if (first + before)[number] == content]
        assert numbers == sorted(numbers)


def test_counts_are_told_in_words() -> None:
    assert str(LineChanges(new=12, changed=3, gone=1, moved=5)) == "12 lines new, 3 changed, 1 gone, 5 moved"
