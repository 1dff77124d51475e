"""The summary says what happened, stays small, and shows the text of rows without obeying it."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_batchflow.exceptions import (
    BatchRunTimeoutError,
    LineExecutionTimeoutError,
    ToolExecutionError,
    error_dict,
)
from prefect_batchflow.report.summary import (
    MAX_MARKDOWN_BYTES,
    escaped,
    failed_table,
    inert,
    one_line,
    summary_markdown,
)
from prefect_batchflow.results.models import AggregationResult, BatchResult, RunInfo
from prefect_batchflow.results.records import Receipt, Status, Tokens
from prefect_batchflow.results.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

START = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
JOINER = "\u2060"
PLACES = {"run_id": "nightly-1", "flow_name": "judge", "storage_url": "file:///data/runs"}

HOSTILE = [
    "a | b",
    r"a \| b",
    "<script>alert(1)</script>",
    "<img src=https://evil.example/x.png>",
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "[a]: https://evil.example",
    "<https://evil.example>",
    "see https://evil.example or www.evil.example or me@evil.example",
    "`code` **bold** _it_ ~~gone~~ # no heading",
    "&lt;b&gt; &#60;b&#62; &amp;",
    "line one\n\n# Heading\n| a | b |\r\n```\u2028- list",
    "nul \x00, escape \x1b[31m, surrogate \ud800, right to left \u202e",
    "\\",
    "***",
    "x" * 10_000,
]

hostile_text = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=r"|<>&`*_[]()!\~#:/@w.-+=" + "ab1 \n\ud800", max_size=60),
    st.sampled_from(HOSTILE),
)


def tokens_of(markdown: str) -> Iterator[Token]:
    """Every token a CommonMark parser with tables finds, inner ones too."""
    for token in PARSER.parse(markdown):
        yield token
        yield from token.children or ()


def shown(markdown: str) -> str:
    return "".join(t.content for t in tokens_of(markdown) if t.type in ("text", "text_special", "code_inline"))


def examples(test: Any) -> Any:
    for text in HOSTILE:
        test = example(text)(test)
    return test


@examples
@given(hostile_text)
def test_escaped_text_is_shown_as_it_is_in_one_cell(text: str) -> None:
    cell = escaped(text)
    tokens = list(tokens_of(f"| before | after |\n| --- | --- |\n| {cell} | end |\n"))

    kinds = {token.type for token in tokens}
    assert not kinds & {
        "link_open",
        "image",
        "html_inline",
        "html_block",
        "em_open",
        "strong_open",
        "code_inline",
        "s_open",
    }
    assert [token.type for token in tokens].count("td_open") == 2
    assert shown(f"It says {cell}").replace(JOINER, "") == f"It says {one_line(text)}".strip()


@examples
@given(hostile_text)
def test_no_raw_pipe_bracket_or_address_gets_through(text: str) -> None:
    cell = escaped(text)

    assert not re.search(r"[<>]", cell)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`\[\]*_~#]", cell)
    assert not re.search(r"://|www\.|@\w", cell, re.IGNORECASE)
    assert "\n" not in cell


@examples
@given(hostile_text)
def test_inert_text_makes_nothing_active_when_it_is_rendered(text: str) -> None:
    """A table artifact's cell, which one of Prefect's user interfaces takes for a markdown document of its own."""
    cell = inert(text)

    kinds = {token.type for token in tokens_of(cell)}
    assert not kinds & {"link_open", "image", "html_inline", "html_block"}
    assert not re.search(r"://|www\.|@\w", cell, re.IGNORECASE)
    assert cell.replace(JOINER, "") == one_line(text)


@given(hostile_text, st.integers(1, 50))
def test_one_line_is_printable_short_and_can_be_encoded(text: str, limit: int) -> None:
    line = one_line(text, limit)

    assert len(line) <= limit
    assert line.isprintable()
    line.encode()


def build(tally: Tally, total: int | None = None, seconds: float = 8.0, **options: Any) -> str:
    batch_error = options.pop("batch_error", None)
    result = BatchResult.of(
        tally,
        tally.ended_lines if total is None else total,
        START,
        START + timedelta(seconds=seconds),
        batch_error=batch_error,
    )
    return summary_markdown(result, tally, **{**PLACES, **options})


def completed(count: int) -> Tally:
    tally = Tally()
    for n in range(count):
        tally.add(Receipt(n, Status.Completed, duration_sec=0.5, tokens=Tokens(1500, 1000, 500)))
    return tally


class TestSummary:
    def test_a_clean_run_says_counts_speed_durations_tokens_and_places(self) -> None:
        text = build(completed(4), outputs_url="file:///data/outputs.jsonl")

        assert text.startswith("# judge: 4 of 4 lines completed\n")
        for row in (
            "| Run | nightly-1 |",
            "| Status | Completed |",
            "| Lines | 4: 4 completed, 0 failed, 0 canceled, 0 not started |",
            "| Started | 2026-11-23 12:00:00 UTC |",
            "| Duration | 8 s |",
            "| Speed | 0.5 lines per second |",
            "| Tokens | 6,000: 4,000 prompt, 2,000 completion |",
        ):
            assert row in text
        assert re.search(r"\| Time per line \| 0\.(5|49|50)\d* s \(median\), 0\.\d+ s \(95th percentile\) \|", text)
        assert f"| Records | file:{JOINER}///data/runs |" in text
        assert f"| Outputs | file:{JOINER}///data/outputs.jsonl |" in text
        assert "## " not in text

    def test_lines_taken_over_do_not_count_for_the_speed(self) -> None:
        text = build(completed(4), reused_lines=2)

        assert "| Reused | 2 lines from an earlier run |" in text
        assert "| Speed | 0.25 lines per second |" in text

    def test_retries_are_told(self) -> None:
        tally = Tally()
        tally.add(Receipt(0, Status.Completed, attempt=3))

        assert "| Retried | 1 line took more than one attempt |" in build(tally)

    def test_errors_come_in_groups_with_what_to_do(self) -> None:
        tally = completed(2)
        for n in (12, 5, 9, 31, 7, 8):
            tally.add(Receipt(n, Status.Failed, error=error_dict(LineExecutionTimeoutError(f"line {n} took over 2 s"))))
        tally.add(Receipt(3, Status.Failed, error=error_dict(ToolExecutionError("(KeyError) 'a|b'"))))

        text = build(tally)

        assert "| 6 | LineExecutionTimeoutError | 5, 7, 8, 9, 12, … | line 5 took over 2 s |" in text
        assert (
            "- LineExecutionTimeoutError: Raise `line_timeout_sec`, or find out what these lines wait for.\n"
        ) in text
        assert r"| 1 | ToolExecutionError | 3 | (KeyError) 'a\|b' |" in text

    def test_only_the_largest_groups_are_shown_and_the_rest_is_counted(self) -> None:
        tally = Tally()
        for n in range(25):
            tally.add(Receipt(n, Status.Failed, error=error_dict(ToolExecutionError(f"kind {chr(65 + n)}"))))

        text = build(tally)

        assert text.count("| ToolExecutionError |") == 20
        assert "| 5 | other errors |" in text

    def test_what_stopped_the_run_and_the_aggregation_is_told(self) -> None:
        tally = completed(1)
        node = RunInfo(
            node="mean", run_id="r_mean_reduce", status=Status.Failed, error=error_dict(ToolExecutionError("(X) y"))
        )
        tally.add_aggregation(AggregationResult(node_run_infos={"mean": node}).counts())

        text = build(tally, total=9, batch_error=error_dict(BatchRunTimeoutError("over 10 s")))

        assert "| Status | Failed |" in text
        assert "| the run | BatchRunTimeoutError | over 10 s | Resume the run" in text
        assert "| aggregation, mean | ToolExecutionError | (X) y |" in text

    @pytest.mark.parametrize(("total", "title"), [(2, "Run it again"), (3, "Run the remaining lines")])
    def test_the_command_can_be_copied(self, total: int, title: str) -> None:
        command = "batchflow resume nightly-1 --storage 's3://bucket/runs' # `a` <b> | c"

        text = build(completed(2), total=total, next_command=command)

        assert f"## {title}\n" in text
        (fence,) = [token for token in tokens_of(text) if token.type == "fence"]
        assert fence.content == command + "\n"

    def test_a_command_cannot_end_its_block(self) -> None:
        text = build(completed(1), next_command="a ```\n```\n# b")

        (fence,) = [token for token in tokens_of(text) if token.type == "fence"]
        assert fence.content == "a ``` ``` # b\n"

    def test_metrics_and_nodes_have_their_tables(self) -> None:
        tally = Tally()
        nodes = (("fetch", Status.Completed), ("my.judge", Status.Bypassed))
        tally.add(Receipt(0, Status.Completed, nodes=nodes))
        tally.add(Receipt(1, Status.Completed, nodes=(("fetch", Status.Completed), ("my.judge", Status.Completed))))
        metrics = {"accuracy": 2 / 3, "mean": math.nan, "most": math.inf, "all": {"a": [1]}, "n_lines": 3, "who": "é"}
        tally.add_aggregation(AggregationResult(metrics=metrics).counts())

        text = build(tally)

        assert "| accuracy | 0.666667 |" in text
        assert "| mean | nan |" in text
        assert "| most | inf |" in text
        assert r'| all | {"a": \[1\]} |' in text
        assert r"| n\_lines | 3 |" in text
        assert "| who | é |" in text
        assert "| Node | completed | bypassed |" in text
        assert "| fetch | 2 | 0 |" in text
        assert "| my.judge | 1 | 1 |" in text

    def test_credentials_in_an_address_are_left_out(self) -> None:
        text = build(completed(1), storage_url="s3://key:canary@bucket/runs")

        assert "canary" not in text
        assert f"| Records | s3:{JOINER}//bucket/runs |" in text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.01234, "0.0123 s"),
            (99.94, "99.9 s"),
            (125.4, "2 min 05 s"),
            (3600, "1 h 00 min"),
            (90_061, "25 h 01 min"),
        ],
    )
    def test_durations_read_well(self, seconds: float, text: str) -> None:
        assert f"| Duration | {text} |" in build(completed(1), seconds=seconds)

    def test_a_run_of_no_lines_and_no_time_has_a_summary(self) -> None:
        assert build(Tally(), seconds=0).startswith("# judge: 0 of 0 lines completed\n")

    @settings(deadline=None)  # two summaries parsed, which a busy machine does not do in the usual 200 ms
    @given(hostile_text)
    @example("- 0")
    @example("0. 0")
    @example("1) x")
    @example("+ a")
    @example("---")
    def test_no_name_value_or_message_changes_its_form(self, text: str) -> None:
        def summary(value: str) -> str:
            tally = Tally()
            error = {"code": "UserError", "message": value, "innerError": {"code": value, "innerError": None}}
            tally.add(Receipt(0, Status.Failed, nodes=((f"n{value}", Status.Failed),), error=error))
            tally.add_aggregation(AggregationResult(metrics={f"m{value}": value}, error=error).counts())
            return build(tally, run_id=value, flow_name=value, batch_error=error)

        def form(markdown: str) -> list[str]:
            return [token.type for token in PARSER.parse(markdown)]

        assert form(summary(text)) == form(summary("plain"))
        assert not {t.type for t in tokens_of(summary(text))} & {"link_open", "image", "html_inline", "html_block"}

    def test_it_is_never_too_large(self) -> None:
        tally = Tally()
        for n in range(30):
            worst = chr(0x4E00 + n) + "&" * 400
            error = {"code": worst, "message": worst, "innerError": None}
            tally.add(Receipt(n, Status.Failed, nodes=((worst, Status.Failed),), error=error))
        tally.add_aggregation(
            AggregationResult(metrics={f"{n}{'|' * 200}": "\U0001f600" * 500 for n in range(500)}).counts()
        )

        text = build(tally, next_command="batchflow resume nightly-1", storage_url="file:///" + "é" * 5_000)

        assert MAX_MARKDOWN_BYTES - 5_000 < len(text.encode()) <= MAX_MARKDOWN_BYTES
        assert "batchflow resume nightly-1" in text
        assert text.endswith("This summary is cut off here. The records of the run are complete.\n")

    def test_long_tables_are_cut_by_rows(self) -> None:
        tally = Tally()
        tally.add(Receipt(0, Status.Completed, nodes=tuple((f"n{n}", Status.Completed) for n in range(60))))
        tally.add_aggregation(AggregationResult(metrics={f"m{n}": n for n in range(70)}).counts())

        text = build(tally)

        assert "| 20 more |" in text
        assert "| 10 more |" in text


class TestFailedTable:
    def test_a_row_names_line_error_message_and_attempts(self) -> None:
        tally = Tally()
        tally.add(Receipt(9, Status.Failed, attempt=3, error=error_dict(ToolExecutionError("see [x](http://y)"))))
        tally.add(Receipt(4, Status.Failed, error=None))

        assert failed_table(tally.failures) == [
            {"line_number": 4, "error": "", "class": "user_code", "message": "", "attempts": 1},
            {
                "line_number": 9,
                "error": "ToolExecutionError",
                "class": "user_code",
                "message": f"see [x]{JOINER}(http:{JOINER}//y)",
                "attempts": 3,
            },
        ]

    def test_it_is_cut_and_its_messages_are_short(self) -> None:
        failures = [Receipt(n, Status.Failed, error={"message": "m" * 5_000}) for n in range(300)]

        rows = failed_table(failures)

        assert [row["line_number"] for row in rows] == list(range(200))
        assert max(len(row["message"]) for row in rows) == 300
        assert len(failed_table(failures, cap=2)) == 2
