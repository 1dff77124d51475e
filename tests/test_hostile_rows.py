"""Odd and hostile rows: a run gives what a plain loop over the lines gives, and says where a bad line is."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from backports import zstd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from line_functions import count, echo

from prefect_batchflow import BatchEngine, Status
from prefect_batchflow.definition.flow import FlowInput
from prefect_batchflow.exceptions import InvalidUserData, RunChangedError
from prefect_batchflow.inputs.formats import MAX_DEPTH
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import check, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


class Bad(NamedTuple):
    """A line that is no row: where it is."""

    line: int
    offset: int
    end: int


def loop_over(data: bytes) -> Iterator[dict[str, Any] | Bad]:
    """What anybody would write: a row a line that is not blank."""
    offset = len(codecs.BOM_UTF8) * data.startswith(codecs.BOM_UTF8)
    for number, line in enumerate(data[offset:].split(b"\n"), 1):
        if line.strip():
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError):
                row = None
            is_row = isinstance(row, dict) and depth(row) <= MAX_DEPTH
            yield row if is_row else Bad(number, offset, offset + len(line))
        offset += len(line) + 1


def depth(value: Any) -> int:
    """How many lists and dictionaries lie in one another."""
    level, levels = [value], 0
    while level := [v for v in level if isinstance(v, (dict, list))]:
        levels += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return levels


def dumped(value: Any) -> str:
    """JSON that tells NaN from null and 1 from 1.0, and is equal to itself."""
    return json.dumps(value, sort_keys=True)


def for_any_parser(value: Any, *, halves: bool = True) -> Any:
    """The value as output files have it: null for NaN and infinity, and the text of its escape for half a pair."""
    text = json.dumps(value, ensure_ascii=False)
    if halves:
        text = re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):04x}", text)
    return json.loads(text, parse_constant=lambda _: None)


# --- readers and mapping ----------------------------------------------------------------------------------------------

KEYS = ["x", "__class__", "__exc_type__", "../x", "#", "?", "a b", "line-number", "a.b.c", "\u2028", "\x00"]

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20) | st.sampled_from(
    [
        "{{ 7 * 7 }}",
        "${data.x}",
        "{% for x in y %}",
        "../../etc/passwd",
        "=1+1",
        "<script>",
        "\ud800",
        "\u2028",
        "\x00",
        "NaN",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(min_value=10**300) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4).map(lambda row: {"x": None, **row})


def encoded(row: dict[str, Any], ascii_only: bool) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # lone surrogates travel as escapes only
        return json.dumps(row).encode()


GOOD_LINES = st.builds(encoded, ROWS, st.booleans())
ODD = [
    b"",
    b"  \t ",
    b"\r",
    b"[1]",
    b"null",
    b'{"x": 1',
    b'{"x": 1}}',
    b'{"x": "\xff"}',
    b'{"x": "\x00"}',
    b'{"x": "\xed\xa0\x80"}',
    b"\xef\xbb\xbf" + b'{"x": 1}',
    b'{"x": Infinity, "y": -NaN}',
    b'{"x": 1, "x": 2}',
    b'{"x": ' + b"[" * 300 + b"]" * 300 + b"}",
    b'{"x": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"x": ' + b"9" * 5000 + b"}",
    b'{"x": ' + b"[" * 50_000,
    json.dumps({"x": 1, **{f"c{n}": n for n in range(10_000)}}).encode(),
]
ODD_LINES = st.sampled_from(ODD)
FILES = st.builds(
    lambda lines, end, bom, whole: (codecs.BOM_UTF8 * bom + b"".join(line + end for line in lines))[
        : None if whole else -3
    ],
    st.lists(GOOD_LINES | ODD_LINES | st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"")), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n"]),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=FILES, zipped=st.sampled_from(list(COMPRESS)))
@example(data=b'{"x": 1}\r\n{"x": 2}\x85\n\x0b\n{"x": "\xe2\x80\xa8"}', zipped="")
def test_readers_and_mapping_give_what_a_loop_over_the_lines_gives(tmp_path: Path, data: bytes, zipped: str) -> None:
    expected = list(loop_over(data))
    path = tmp_path / f"d.jsonl{zipped}"
    path.write_bytes(COMPRESS[zipped](data))
    sources = [open_source(path, name="data")]
    # A mapping to a column that no row has is refused, as are data without rows.
    mapped = [key for key in KEYS if any(isinstance(row, dict) and key in row for row in expected)]
    if not mapped:
        return
    mapping = {f"input of {key}": f"${{data.{key}}}" for key in mapped}
    inputs = {name: FlowInput(name, "any", default=0) for name in mapping}

    inventory = check(sources, inputs, mapping, bad_rows="fail")
    lines = list(read_lines(sources, inputs, mapping, inventory))

    assert [line.line_number for line in lines] == list(range(len(expected)))
    for line, row in zip(lines, expected, strict=True):
        if isinstance(row, Bad):
            assert line.error is not None
            place = re.search(rf"{re.escape(str(path))}, line {row.line} \(byte (\d+)\)", line.error["message"])
            assert place is not None
            assert row.offset <= int(place[1]) <= row.end
        else:
            assert line.error is None
            assert dumped(line.inputs) == dumped({f"input of {key}": row.get(key, 0) for key in mapped})


# --- whole runs -------------------------------------------------------------------------------------------------------

CORPUS: dict[str, Any] = {
    "ten megabytes": "é" * 5_000_000,
    "nan": float("nan"),
    "infinities": [float("inf"), -float("inf")],
    "lone surrogate": "\ud800 and \udfff",
    "nul": "a\x00b",
    "line breaks": "a\r\nb\rc\u2028d\u2029e\x85f\x0bg\x0ch\x1ei",
    "byte order mark": "\ufeffx",
    "big number": 10**300,
    "hooks": {"__class__": {"data": 1}, "__exc_type__": "ValueError", "__reduce__": [], "line_number": 99},
    "template": "{{ 7 * 7 }}{% for x in y %} ${data.x} {0} %s",
    "paths": ["../../etc/passwd", "a#b?c", "C:\\x", "$HOME", "~"],
    "markup": "<script>alert(1)</script> ![x](http://127.0.0.1/x) | `` ``` \x1b[31m",
    "formula": "=1+1",
    "columns": {f"column {n}": n for n in range(10_000)},
    "hostile keys": {key: key for key in ["", "\x00", "\ud800", "\u2028", "{{x}}", "../", "#", "?", "__proto__"]},
    "deep": json.loads("[" * 380 + "]" * 380),
    "empty": "",
    "null": None,
}


def corpus(*, fail: bool = False) -> bytes:
    """The corpus as jsonl of every kind: BOM, CRLF, blank lines, escaped or not, no end of line at the end."""
    rows = [{"x": value, "fail": fail, "__class__": name} for name, value in CORPUS.items()]
    lines = [encoded(row, ascii_only=bool(number % 2)) for number, row in enumerate(rows)]
    return codecs.BOM_UTF8 + b"\r\n\n  \n".join(lines)


def outputs_of(folder: Path, name: str = "output.jsonl") -> list[dict[str, Any]]:
    lines = (folder / name).read_bytes().split(b"\n")[:-1]
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def records_of(run: Path) -> dict[int, Any]:
    lines = [line for file in (run / "records").glob("*.jsonl") for line in file.read_bytes().splitlines()]
    return {record["line_number"]: record for record in map(json.loads, lines) if "inputs" in record}


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.programs
class TestRuns:
    @pytest.mark.parametrize(("zipped", "granularity"), [("", "line"), (".zst", "chunk")])
    def test_a_run_gives_what_a_loop_over_the_lines_gives(
        self, tmp_path: Path, storage: Path, zipped: str, granularity: str
    ) -> None:
        (tmp_path / f"d.jsonl{zipped}").write_bytes(COMPRESS[zipped](corpus()))
        engine = BatchEngine(echo, tmp_path, run_storage_url=str(storage), granularity=granularity)

        result = engine.run({"data": "d.json*"}, output_dir=tmp_path / "out")

        expected = [
            {"x": row["x"], "of type": type(row["x"]).__name__} for row in loop_over(corpus()) if isinstance(row, dict)
        ]
        assert (result.status, result.total_lines, result.failed_lines) == (Status.Completed, len(CORPUS), 0)
        outputs = outputs_of(tmp_path / "out")
        assert [row.pop("line_number") for row in outputs] == list(range(len(CORPUS)))
        for name, output, value in zip(CORPUS, outputs, expected, strict=True):
            assert dumped(output) == dumped(for_any_parser(value)), name

    def test_lines_that_fail_over_hostile_values_keep_them(self, tmp_path: Path, storage: Path) -> None:
        (tmp_path / "d.jsonl").write_bytes(corpus(fail=True))
        engine = BatchEngine(echo, tmp_path, run_storage_url=str(storage))

        result = engine.run({"data": "d.jsonl"}, run_id="hostile", output_dir=tmp_path / "out")

        assert (result.status, result.total_lines, result.failed_lines) == (Status.Completed, len(CORPUS), len(CORPUS))
        failed = outputs_of(tmp_path / "out", "failed.jsonl")
        assert [row["line_number"] for row in failed] == list(range(len(CORPUS)))
        for row, (name, value) in zip(failed, CORPUS.items(), strict=True):
            assert dumped(row["x"]) == dumped(for_any_parser(value, halves=False)), name
        records = records_of(storage / "hostile")
        assert dumped({n: r["inputs"]["x"] for n, r in records.items()}) == dumped(dict(enumerate(CORPUS.values())))
        rows = open_source(tmp_path / "out" / "failed.jsonl", name="data").rows()
        assert [row.error for row in rows] == [None] * len(CORPUS)

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b'{"n": "\xff"}', "line 3 (byte 25): not UTF-8"),
            (b'{"n": 1', "line 3 (byte 25): not JSON"),
            (b'{"n": ' + b"[" * 500 + b"]" * 500 + b"}", "line 3 (byte 18): nested deeper"),
        ],
        ids=["utf8", "truncated", "deep"],
    )
    def test_a_bad_line_is_refused_by_its_line_and_byte_before_anything_runs(
        self, tmp_path: Path, storage: Path, line: bytes, said: str
    ) -> None:
        (tmp_path / "d.jsonl").write_bytes(b'{"n": 0}\n{"n": 1}\n' + line)

        with pytest.raises(InvalidUserData) as caught:
            BatchEngine(count, tmp_path, run_storage_url=str(storage)).run({"data": "d.jsonl"}, run_id="bad")

        assert said in str(caught.value)
        assert str(caught.value).endswith("Or set bad_rows='fail' to turn such rows into failed lines.")
        assert not (tmp_path / "witness").exists()

    def test_a_row_of_another_type_is_a_failed_line_with_its_place_and_the_run_lives(
        self, tmp_path: Path, storage: Path
    ) -> None:
        (tmp_path / "d.jsonl").write_bytes(b'{"n": 0}\n\n{"n": "{{x}}"}\n{"n": 2}\n')

        result = BatchEngine(count, tmp_path, run_storage_url=str(storage)).run({"data": "d.jsonl"})

        assert (result.status, result.completed_lines, result.failed_lines) == (Status.Completed, 2, 1)
        [error] = result.error_summary.error_list
        assert error.line_number == 1
        assert "line 3 (byte 10)" in error.error["message"]

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=FILES, zipped=st.sampled_from(list(COMPRESS)), granularity=st.sampled_from(["line", "chunk"]))
    @example(data=b"\n".join([encoded({"x": 1}, True), *ODD]), zipped=".gz", granularity="line")
    def test_a_run_of_any_file_gives_what_a_loop_gives_and_a_bad_line_fails_alone(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes, zipped: str, granularity: str
    ) -> None:
        expected = list(loop_over(data))
        if not any(isinstance(row, dict) and "x" in row for row in expected):
            return  # without a column, or without rows, the run is refused
        folder = tmp_path_factory.mktemp("run")
        path = folder / f"d.jsonl{zipped}"
        path.write_bytes(COMPRESS[zipped](data))
        options: dict[str, Any] = {
            "run_storage_url": str(folder / "runs"),
            "granularity": granularity,
            "worker_count": 1,
        }

        result = BatchEngine(echo, folder, bad_rows="fail", **options).run(
            {"data": path.name}, {"x": "${data.x}", "fail": False}, folder / "out"
        )

        good = {n: row["x"] for n, row in enumerate(expected) if isinstance(row, dict) and "x" in row}
        assert (result.status, result.total_lines) == (Status.Completed, len(expected))
        assert (result.completed_lines, result.failed_lines) == (len(good), len(expected) - len(good))
        outputs = {row.pop("line_number"): row for row in outputs_of(folder / "out")}
        meant = {n: {"x": for_any_parser(x), "of type": type(x).__name__} for n, x in good.items()}
        assert dumped(outputs) == dumped(meant)
        errors = {e.line_number: e.error["message"] for e in result.error_summary.error_list}
        assert errors.keys() == set(range(len(expected))) - good.keys()
        for number, row in enumerate(expected):
            if isinstance(row, Bad):
                place = re.search(rf"{re.escape(str(path))}, line {row.line} \(byte (\d+)\)", errors[number])
                assert place is not None
                assert row.offset <= int(place[1]) <= row.end

    @pytest.mark.parametrize("zipped", [".gz", ".zst"])
    def test_of_a_file_cut_in_half_the_whole_rows_run_and_the_break_fails(
        self, tmp_path: Path, storage: Path, zipped: str
    ) -> None:
        whole = COMPRESS[zipped](
            b"".join(b'{"n": %d, "noise": "%s"}\n' % (n, os.urandom(64).hex().encode()) for n in range(99))
        )
        (tmp_path / f"d.jsonl{zipped}").write_bytes(whole[: len(whole) // 2])

        result = BatchEngine(count, tmp_path, run_storage_url=str(storage), bad_rows="fail").run(
            {"data": f"d.jsonl{zipped}"}
        )

        assert (result.status, result.failed_lines) == (Status.Completed, 1)
        [error] = result.error_summary.error_list
        assert error.line_number == result.completed_lines
        assert re.search(rf"line {error.line_number + 1} \(byte \d+\).*the file is cut off", error.error["message"])

    @pytest.mark.parametrize("zipped", [".gz", ".zst"])
    def test_a_file_cut_off_is_refused(self, tmp_path: Path, storage: Path, zipped: str) -> None:
        (tmp_path / f"d.jsonl{zipped}").write_bytes(COMPRESS[zipped](b'{"n": 0}\n{"n": 1}\n')[:-4])

        with pytest.raises(InvalidUserData, match="the file is cut off"):
            BatchEngine(count, tmp_path, run_storage_url=str(storage)).run({"data": f"d.jsonl{zipped}"})


@pytest.mark.usefixtures("prefect_server")
def test_a_resume_sees_that_a_table_has_changed_and_a_pattern_fits_more(tmp_path: Path, storage: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def run(**options: Any) -> Any:
        engine = BatchEngine(count, tmp_path, run_storage_url=str(storage), **options)
        return engine.run({"data": "rows-*.parquet"}, run_id="table")

    pq.write_table(pa.table({"n": [0, 1]}), tmp_path / "rows-1.parquet")
    assert run().completed_lines == 2
    pq.write_table(pa.table({"n": [0, 1]}), tmp_path / "rows-1.parquet", compression="zstd")
    assert run().completed_lines == 2

    pq.write_table(pa.table({"n": [2]}), tmp_path / "rows-2.parquet")
    with pytest.raises(RunChangedError, match="the data of source 'data' changed"):
        run()
    assert run(on_change="reuse").completed_lines == 3

    pq.write_table(pa.table({"n": [0, 7]}), tmp_path / "rows-1.parquet")
    with pytest.raises(RunChangedError, match="the data of source 'data' changed"):
        run()
    assert run(on_change="reuse").completed_lines == 3
    assert (tmp_path / "witness").read_text().split() == ["0", "1", "2", "7"]
