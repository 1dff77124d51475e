"""Parquet and Arrow: rows of plain JSON values, a few at a time, and errors that name the row."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import math
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs import columnar
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.inputs.survey import Survey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect_batchflow.inputs.formats import Row


def write_parquet(path: Path, table: Any, rows_a_batch: int = 1000) -> None:
    pq.write_table(table, path, row_group_size=rows_a_batch)


def write_file(path: Path, table: Any, rows_a_batch: int = 1000) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, rows_a_batch)


def write_stream(path: Path, table: Any, rows_a_batch: int = 1000) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, rows_a_batch)


WRITERS: dict[str, tuple[str, Callable[..., None]]] = {
    "parquet": ("d.parquet", write_parquet),
    "file": ("d.feather", write_file),
    "stream": ("d.arrow", write_stream),
}
FORMATS = pytest.mark.parametrize("form", WRITERS)


def written(folder: Path, form: str, table: Any, rows_a_batch: int = 1000) -> Path:
    name, write = WRITERS[form]
    write(folder / name, table, rows_a_batch)
    return folder / name


def rows_of(path: Path | str) -> list[Row]:
    return list(open_source(path, name="data").rows())


def values_of(path: Path | str) -> list[dict[str, Any]]:
    rows = rows_of(path)
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.values for row in rows]


def nested(kind: Any, depth: int) -> Any:
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


MOMENT = 1_700_000_000  # 2023-11-14T22:13:20Z
COLUMNS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "null": (pa.null(), [None], [None]),
    "bool": (pa.bool_(), [True, None], [True, None]),
    "int": (pa.int8(), [-3], [-3]),
    "uint64": (pa.uint64(), [2**64 - 1], [2**64 - 1]),
    "float32": (pa.float32(), [0.5, math.inf], [0.5, math.inf]),
    "string": (pa.string(), ["é\u2028", "", None], ["é\u2028", "", None]),
    "large_string": (pa.large_string(), ["x"], ["x"]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["x", None, "x"], ["x", None, "x"]),
    "binary": (pa.binary(), [b"\xff\x00", b"text", None], ["/wA=", "dGV4dA==", None]),
    "fixed_binary": (pa.binary(2), [b"ab"], ["YWI="]),
    "decimal": (pa.decimal128(9, 2), [Decimal("1.10"), None], ["1.10", None]),
    "decimal256": (pa.decimal256(40, 0), [Decimal(10**39)], ["1" + "0" * 39]),
    "date": (pa.date32(), [dt.date(2024, 2, 29), dt.date(1, 1, 1)], ["2024-02-29", "0001-01-01"]),
    "time": (pa.time64("us"), [dt.time(1, 2, 3, 400), dt.time(23, 59)], ["01:02:03.000400", "23:59:00"]),
    "time_ms": (pa.time32("ms"), [1], ["00:00:00.001"]),
    "timestamp": (pa.timestamp("ms"), [MOMENT * 1000, -1], ["2023-11-14T22:13:20", "1969-12-31T23:59:59.999"]),
    "timestamp_ns": (pa.timestamp("ns"), [MOMENT * 10**9 + 1], ["2023-11-14T22:13:20.000000001"]),
    "timestamp_utc": (pa.timestamp("us", "UTC"), [MOMENT * 10**6 + 5], ["2023-11-14T22:13:20.000005+00:00"]),
    "timestamp_zone": (pa.timestamp("ms", "Asia/Kolkata"), [MOMENT * 1000], ["2023-11-15T03:43:20+05:30"]),
    "duration": (pa.duration("ms"), [1500, None], [1.5, None]),
    "list": (pa.list_(pa.date32()), [[dt.date(2024, 1, 1), None], [], None], [["2024-01-01", None], [], None]),
    "large_list": (pa.large_list(pa.int8()), [[1], None, [2, 3]], [[1], None, [2, 3]]),
    "fixed_list": (pa.list_(pa.int8(), 2), [[1, 2], None, [3, 4]], [[1, 2], None, [3, 4]]),
    "struct": (
        pa.struct([("a", pa.binary()), ("b", pa.list_(pa.int8()))]),
        [{"a": b"x", "b": [1]}, None, {"a": None, "b": None}],
        [{"a": "eA==", "b": [1]}, None, {"a": None, "b": None}],
    ),
    "map": (
        pa.map_(pa.string(), pa.date32()),
        [[("k", dt.date(2024, 1, 1))], None, []],
        [{"k": "2024-01-01"}, None, {}],
    ),
    "map_of_ints": (pa.map_(pa.int8(), pa.bool_()), [[(1, True), (2, None)]], [{"1": True, "2": None}]),
    "deep": (nested(pa.timestamp("ns"), 5), [[[[[[1]]]]]], [[[[[["1970-01-01T00:00:00.000000001"]]]]]]),
    "uuid": (pa.uuid(), [UUID(int=1).bytes, None], [str(UUID(int=1)), None]),
}
ARROW_ONLY: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "float16": (pa.float16(), [1.5], [1.5]),
    "string_view": (pa.string_view(), ["x" * 20], ["x" * 20]),
    "binary_view": (pa.binary_view(), [b"x"], ["eA=="]),
    "list_view": (pa.list_view(pa.int8()), [[1], None, [2, 3]], [[1], None, [2, 3]]),
    "date64": (pa.date64(), [dt.date(2024, 1, 1)], ["2024-01-01"]),
    "duration_ns": (pa.duration("ns"), [1], [1e-9]),
    "run_end": (pa.run_end_encoded(pa.int32(), pa.string()), ["x", "x", None], ["x", "x", None]),
    "no_fields": (pa.struct([]), [{}, None], [{}, None]),
}


class TestValues:
    @FORMATS
    @pytest.mark.parametrize("name", COLUMNS)
    def test_every_type_becomes_plain_json(self, tmp_path: Path, form: str, name: str) -> None:
        kind, given_values, expected = COLUMNS[name]
        path = written(tmp_path, form, pa.table({"x": pa.array(given_values, kind)}))

        values = [row["x"] for row in values_of(path)]

        assert values == expected
        assert json.loads(json.dumps(values)) == expected

    @pytest.mark.parametrize("name", ARROW_ONLY)
    def test_types_that_only_arrow_has_become_plain_json(self, tmp_path: Path, name: str) -> None:
        kind, given_values, expected = ARROW_ONLY[name]
        path = written(tmp_path, "stream", pa.table({"x": pa.array(given_values, kind)}))

        assert [row["x"] for row in values_of(path)] == expected

    def test_parts_of_a_batch_are_converted_as_the_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arrays = {name: pa.array((given_values * 5)[:5], kind) for name, (kind, given_values, _) in COLUMNS.items()}
        path = written(tmp_path, "file", pa.table(arrays))
        whole = values_of(path)

        monkeypatch.setattr(columnar, "_MAX_STEP_ROWS", 2)

        assert values_of(path) == whole
        assert [row["decimal256"] for row in whole] == ["1" + "0" * 39] * 5

    @pytest.mark.parametrize("form", ["file", "stream"])  # parquet has no such type
    def test_a_type_without_a_json_form_is_refused_by_its_column(self, tmp_path: Path, form: str) -> None:
        union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
        path = written(tmp_path, form, pa.table({"n": [1], "u": union}))

        with pytest.raises(InvalidUserData, match=r"column 'u' has type .*union.*, which JSON cannot hold"):
            rows_of(path)

    @FORMATS
    def test_repeated_columns_are_refused(self, tmp_path: Path, form: str) -> None:
        path = written(tmp_path, form, pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]))

        with pytest.raises(InvalidUserData, match=r"names columns more than once: \['a'\]"):
            rows_of(path)

    def test_hostile_names_are_plain_keys(self, tmp_path: Path) -> None:
        names = ["__class__", "__exc_type__", "{{x}}", "../", "#", "?", "", "a.b"]
        path = written(tmp_path, "parquet", pa.table({name: [name] for name in names}))

        assert values_of(path) == [{name: name for name in names}]

    def test_types_nested_too_deep_are_refused(self, tmp_path: Path) -> None:
        path = written(tmp_path, "stream", pa.table({"x": pa.array([None], nested(pa.int8(), 60))}))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(columnar, "MAX_DEPTH", 50)
            with pytest.raises(InvalidUserData, match="column 'x' is nested deeper than 50 levels"):
                rows_of(path)


class TestRows:
    @FORMATS
    def test_rows_are_counted_over_all_batches(self, tmp_path: Path, form: str) -> None:
        path = written(tmp_path, form, pa.table({"n": list(range(25))}), rows_a_batch=10)

        rows = rows_of(path)

        assert [row.values["n"] for row in rows] == list(range(25))
        assert [(row.line, row.offset, row.place) for row in rows[-1:]] == [(25, None, f"{path}, row 25")]

    @FORMATS
    def test_a_table_without_rows_has_none(self, tmp_path: Path, form: str) -> None:
        assert rows_of(written(tmp_path, form, pa.table({"n": pa.array([], pa.int8())}))) == []

    @FORMATS
    def test_a_value_that_cannot_be_told_is_a_broken_row_and_the_others_are_read(
        self, tmp_path: Path, form: str
    ) -> None:
        days = pa.array([1, 10**9, 2], pa.int32()).cast(pa.date32())
        path = written(tmp_path, form, pa.table({"n": [1, 2, 3], "day": days}))

        first, broken, last = rows_of(path)

        assert [row.values for row in (first, last)] == [
            {"n": 1, "day": "1970-01-02"},
            {"n": 3, "day": "1970-01-03"},
        ]
        assert broken.error is not None
        assert broken.error.message.startswith(
            f"{path}, row 2: column 'day' of type date32[day] cannot be converted to JSON: "
        )
        assert (broken.error.file, broken.error.line) == (str(path), 2)  # type: ignore[attr-defined]

    def test_bad_utf8_is_a_broken_row(self, tmp_path: Path) -> None:
        text = pa.array([b"ok", b"\xff"]).cast(pa.binary()).view(pa.string())
        path = written(tmp_path, "parquet", pa.table({"x": text}))

        good, broken = rows_of(path)

        assert good.values == {"x": "ok"}
        assert broken.error is not None
        assert (
            "row 2: column 'x' of type string cannot be converted to JSON: 'utf-8' codec can't decode byte 0xff"
            in broken.error.message
        )

    def test_only_what_is_asked_for_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table = pa.table({"x": [hashlib.sha256(str(n).encode()).hexdigest() for n in range(40_000)]})
        path = written(tmp_path, "parquet", table, rows_a_batch=2000)
        read: list[int] = []

        class Counting(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                data = super().read(size)
                read.append(len(data))
                return data

        monkeypatch.setattr(type(fsspec.filesystem("file")), "open", lambda *_: Counting(path.read_bytes()))

        rows = open_source(path, name="data").rows()
        next(rows)

        assert sum(read) < path.stat().st_size / 4

    def test_wide_rows_come_in_small_steps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(columnar, "_STEP_BYTES", 10_000)
        table = pa.table({"x": [f"{n}" * 5000 for n in range(1, 9)]})
        for form in WRITERS:
            sizes: list[int] = []
            original = columnar.Table._records

            def counted(self: columnar.Table, batch: Any, sizes: list[int] = sizes, original: Any = original) -> Any:
                sizes.append(batch.num_rows)
                return original(self, batch)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(columnar.Table, "_records", counted)
                assert len(values_of(written(tmp_path, form, table))) == 8
            assert max(sizes) <= 3, form

    @pytest.mark.parametrize(
        ("form", "kind"),
        [*((form, "dictionary") for form in WRITERS), ("file", "run end"), ("stream", "run end"), ("parquet", "plain")],
    )
    def test_a_value_that_is_stored_once_is_not_repeated_in_many_rows_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, kind: str
    ) -> None:
        """1 kB of parquet can mean gigabytes: a text of 20 MB in its dictionary, and 2,000 rows that have it."""
        monkeypatch.setattr(columnar, "_MOST_DECODED_BYTES", 20_000)
        column = pa.array(["x" * 5000] * 100)
        if kind == "dictionary":
            column = column.dictionary_encode()
        elif kind == "run end":
            column = pa.compute.run_end_encode(column)
        sizes: list[int] = []
        original = columnar.Table._records

        def counted(self: columnar.Table, batch: Any) -> Any:
            sizes.append(batch.num_rows)
            return original(self, batch)

        monkeypatch.setattr(columnar.Table, "_records", counted)

        assert values_of(written(tmp_path, form, pa.table({"x": column}))) == [{"x": "x" * 5000}] * 100
        assert max(sizes) <= 4

    @FORMATS
    @pytest.mark.parametrize("is_dictionary", [False, True], ids=["plain", "dictionary"])
    def test_a_row_that_is_too_large_is_a_bad_row_and_the_others_are_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, is_dictionary: bool
    ) -> None:
        monkeypatch.setattr(columnar, "MAX_ROW_BYTES", 4000)
        column = pa.array([*("ab" * 10), "x" * 5000, *("cd" * 10)])
        table = pa.table({"x": column.dictionary_encode() if is_dictionary else column})

        rows = list(open_source(written(tmp_path, form, table), name="data").rows())

        assert [row.values.get("x") for row in rows] == [*("ab" * 10), None, *("cd" * 10)]
        assert [row.line for row in rows if row.error] == [21]
        assert "row 21: larger than" in str(rows[20].error)

    def test_any_file_system_is_read(self, tmp_path: Path) -> None:
        path = written(tmp_path, "parquet", pa.table({"n": [1]}))
        file_system = fsspec.filesystem("memory")
        file_system.pipe("/columnar-test/a.parquet", path.read_bytes())
        try:
            assert values_of("memory://columnar-test/*.parquet") == [{"n": 1}]
        finally:
            file_system.rm("/columnar-test", recursive=True)


class TestDamage:
    @pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.feather"])
    @pytest.mark.parametrize("content", [b"", b'{"a": 1}\n', b"PAR1" * 9, b"ARROW1\0\0" * 9, b"FEA1    "])
    def test_what_is_no_such_file_is_refused(self, tmp_path: Path, name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)

        with pytest.raises(InvalidUserData, match=rf"{name}: (not a complete|this is Feather version 1)"):
            rows_of(path)

    @pytest.mark.parametrize("form", ["parquet", "file"])
    def test_a_file_cut_off_is_refused_since_its_end_says_what_it_holds(self, tmp_path: Path, form: str) -> None:
        path = written(tmp_path, form, pa.table({"n": list(range(100))}), rows_a_batch=10)
        path.write_bytes(path.read_bytes()[:-30])

        with pytest.raises(InvalidUserData, match=r"not a complete .* Copy it again"):
            rows_of(path)

    def test_a_stream_cut_off_gives_its_whole_batches_and_then_the_break(self, tmp_path: Path) -> None:
        path = written(tmp_path, "stream", pa.table({"n": list(range(100))}), rows_a_batch=10)
        path.write_bytes(path.read_bytes()[:-40])

        *good, broken = rows_of(path)

        assert [row.values["n"] for row in good] == list(range(90))
        assert broken.error is not None
        assert f"{path}, row 91: the Arrow data is damaged" in broken.error.message

    def test_a_damaged_page_breaks_off_the_rows(self, tmp_path: Path) -> None:
        table = pa.table({"x": [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4000)]})
        path = tmp_path / "d.parquet"
        pq.write_table(table, path, row_group_size=1000, write_page_checksum=True)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 5000] = bytes(5000)
        path.write_bytes(data)

        *good, broken = rows_of(path)

        assert [row.values for row in good] == table.slice(0, len(good)).to_pylist()
        assert len(good) >= 1000
        assert broken.error is not None
        assert "the parquet data is damaged" in broken.error.message

    @FORMATS
    def test_flipped_bytes_raise_nothing_but_our_error(self, tmp_path: Path, form: str) -> None:
        arrays = {name: pa.array((given_values * 5)[:5], kind) for name, (kind, given_values, _) in COLUMNS.items()}
        path = written(tmp_path, form, pa.table({name: arrays[name] for name in ("string", "list", "map", "struct")}))
        data = path.read_bytes()
        for at in range(8, len(data), 61):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                rows = rows_of(path)
            except InvalidUserData:
                continue
            assert all(row.error or isinstance(row.values, dict) for row in rows)

    def test_a_read_that_fails_is_told_as_such(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(tmp_path, "parquet", pa.table({"n": list(range(100_000))}), rows_a_batch=10_000)

        class Failing(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if 100_000 < self.tell() < 200_000:
                    raise OSError("connection reset")
                return super().read(size)

        monkeypatch.setattr(type(fsspec.filesystem("file")), "open", lambda *_: Failing(path.read_bytes()))

        with pytest.raises(InvalidUserData, match=r"d\.parquet cannot be read: OSError: connection reset\.$"):
            rows_of(path)

    def test_a_missing_package_is_told_with_its_install_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = written(tmp_path, "parquet", pa.table({"n": [1]}))
        monkeypatch.setitem(sys.modules, "pyarrow", None)

        with pytest.raises(InvalidUserData, match=r"d\.parquet needs .* pip install 'prefect-batchflow\[parquet\]'"):
            rows_of(path)


class TestFingerprint:
    def fingerprint(self, path: Path, max_rows: int | None = None) -> str:
        return Survey(open_source(path, name="data"), []).read(max_rows).summary.sha256

    @FORMATS
    def test_it_is_of_the_rows_and_not_of_how_they_are_packed(self, tmp_path: Path, form: str) -> None:
        table = pa.table({"n": [1, 2, 3], "x": ["a", None, "c"]})
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())

        for rows_a_batch in (1, 1000):
            path = written(tmp_path, form, table, rows_a_batch)
            assert self.fingerprint(path) == hashlib.sha256(lines).hexdigest()

    @FORMATS
    @pytest.mark.parametrize(
        "other",
        [
            {"n": [1, 2, 4], "x": ["a", None, "c"]},
            {"n": [1, 3, 2], "x": ["a", None, "c"]},
            {"n": [1, 2], "x": ["a", None]},
            {"n": [1.0, 2.0, 3.0], "x": ["a", None, "c"]},
            {"n": [1, 2, 3], "y": ["a", None, "c"]},
        ],
        ids=["value", "order", "fewer", "type", "name"],
    )
    def test_other_rows_have_another(self, tmp_path: Path, form: str, other: dict[str, Any]) -> None:
        before = self.fingerprint(written(tmp_path, form, pa.table({"n": [1, 2, 3], "x": ["a", None, "c"]})))

        assert self.fingerprint(written(tmp_path, form, pa.table(other))) != before

    @FORMATS
    def test_rows_behind_the_limit_do_not_count(self, tmp_path: Path, form: str) -> None:
        one = self.fingerprint(written(tmp_path, form, pa.table({"n": [1, 2, 3]})), 2)
        other = self.fingerprint(written(tmp_path, form, pa.table({"n": [1, 2, 4, 5]})), 2)

        assert one == other


VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1),
    lambda inner: st.none() | st.lists(inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.none()
        | st.fixed_dictionaries(
            {
                "numbers": st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
                "texts": st.none() | st.lists(st.none() | st.text(max_size=5), max_size=3),
                "deep": st.none() | st.lists(st.none() | st.lists(st.none() | st.booleans(), max_size=2), max_size=2),
                "map": st.none()
                | st.dictionaries(st.text(max_size=3), st.none() | st.floats(allow_nan=False), max_size=3),
            }
        ),
        min_size=1,
        max_size=8,
    ),
    form=st.sampled_from(list(WRITERS)),
    step=st.integers(1, 4),
)
def test_nested_rows_are_read_as_they_were_written(
    tmp_path: Path, rows: list[dict[str, Any] | None], form: str, step: int
) -> None:
    kind = pa.struct(
        [
            ("numbers", pa.list_(pa.int64())),
            ("texts", pa.large_list(pa.string())),
            ("deep", pa.list_(pa.list_(pa.bool_()))),
            ("map", pa.map_(pa.string(), pa.float64())),
        ]
    )
    table = pa.table({"x": pa.array(rows, kind)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "_MAX_STEP_ROWS", step)
        read = [row["x"] for row in values_of(written(tmp_path, form, table, rows_a_batch=3))]

    assert read == rows
