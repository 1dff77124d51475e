"""Readers: rows of every format from every place, and errors that name file, line and byte."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from backports import zstd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.formats import MAX_DEPTH, PhysicalLines, Row, read_jsonl
from prefect_batchflow.inputs.readers import RowsSource, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}


def rows_of(path: Path | str, **options: Any) -> list[Row]:
    return list(open_source(path, name="data", **options).rows())


def values_of(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    rows = rows_of(path, **options)
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.values for row in rows]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


@pytest.fixture
def memory_url() -> Iterator[str]:
    file_system = fsspec.filesystem("memory")
    yield "memory://readers-test"
    if file_system.exists("/readers-test"):
        file_system.rm("/readers-test", recursive=True)


FORMATS = {
    **dict.fromkeys(
        ("rows.jsonl", "rows.ndjson", "rows.jsonlines", "rows.ldjson", "ROWS.NDJSON"),
        '{"a": "1", "b": "x"}\n{"a": "2", "b": "y"}\n',
    ),
    "rows.csv": "a,b\n1,x\n2,y\n",
    "rows.tsv": "a\tb\n1\tx\n2\ty\n",
    "rows.json": '[{"a": "1", "b": "x"},\n {"a": "2", "b": "y"}]',
    "columns.json": '{"a": ["1", "2"], "b": ["x", "y"]}',
}


class TestFormats:
    @pytest.mark.parametrize("zipped", ["", ".gz", ".zst"])
    @pytest.mark.parametrize("name", FORMATS)
    def test_every_format_gives_the_same_rows(self, tmp_path: Path, name: str, zipped: str) -> None:
        path = write(tmp_path / f"{name}{zipped}", FORMATS[name])

        assert values_of(path) == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]

    @pytest.mark.parametrize("name", FORMATS)
    def test_a_source_is_read_again_from_its_start(self, tmp_path: Path, name: str) -> None:
        source = open_source(write(tmp_path / name, FORMATS[name]), name="data")

        next(source.rows())

        assert list(source.rows()) == list(source.rows())

    def test_suffixes_are_known_in_any_case(self, tmp_path: Path) -> None:
        assert values_of(write(tmp_path / "DATA.JSONL", '{"a": 1}')) == [{"a": 1}]

    @pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "e.tsv", "e.json", "e.jsonl.gz", "e.csv.zst"])
    @pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n", codecs.BOM_UTF8], ids=["zero", "lf", "blank", "bom"])
    def test_an_empty_or_blank_file_has_no_rows(self, tmp_path: Path, name: str, content: bytes) -> None:
        assert rows_of(write(tmp_path / name, content)) == []

    def test_blank_lines_are_skipped_and_places_stay_physical(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d.jsonl", '\n{"a": 1}\r\n  \r\n{"a": 2}')

        rows = rows_of(path)

        assert [(row.values["a"], row.line, row.offset) for row in rows] == [(1, 2, 1), (2, 4, 15)]
        assert rows[1].place == f"{path}, line 4 (byte 15)"

    @pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.tsv", "d.json"])
    def test_a_byte_order_mark_is_no_data(self, tmp_path: Path, name: str) -> None:
        content = {"d.jsonl": '{"a": "1"}', "d.json": '[{"a": "1"}]'}.get(name, "a\n1\n")

        assert values_of(write(tmp_path / name, codecs.BOM_UTF8 + content.encode())) == [{"a": "1"}]

    def test_only_a_line_feed_ends_a_line(self, tmp_path: Path) -> None:
        text = "one\u2028two\u2029three\x85four\x0bfive\x0csix"
        path = write(tmp_path / "d.jsonl", json.dumps({"a": text}, ensure_ascii=False).replace("\\u000b", "\v"))

        assert len(rows_of(path)) == 1
        assert values_of(write(tmp_path / "u.jsonl", '{"a": "x\u2028y"}\n')) == [{"a": "x\u2028y"}]
        assert values_of(write(tmp_path / "u.csv", "a\nx\u2028y\x85z\n")) == [{"a": "x\u2028y\x85z"}]

    def test_python_numbers_beyond_json_are_kept(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d.jsonl", '{"a": NaN, "b": -Infinity, "c": 10000000000000001, "d": 1, "e": 2.5}')

        [values] = values_of(path)

        assert math.isnan(values.pop("a"))
        assert values == {"b": -math.inf, "c": 10000000000000001, "d": 1, "e": 2.5}

    def test_hostile_keys_are_plain_keys_and_the_last_duplicate_wins(self, tmp_path: Path) -> None:
        line = r'{"__class__": {"data": 1}, "__exc_type__": "x", "": 0, "a": 1, "a": 2, "s": "\ud800", "n": "\u0000"}'

        assert values_of(write(tmp_path / "d.jsonl", line)) == [
            {"__class__": {"data": 1}, "__exc_type__": "x", "": 0, "a": 2, "s": "\ud800", "n": "\x00"}
        ]

    def test_a_row_lacks_what_its_line_lacks(self, tmp_path: Path) -> None:
        assert values_of(write(tmp_path / "d.jsonl", '{"a": 1}\n{"b": null}\n')) == [{"a": 1}, {"b": None}]

    def test_a_line_of_ten_megabytes_is_one_row(self, tmp_path: Path) -> None:
        text = "é" * 5_000_000

        assert values_of(write(tmp_path / "d.jsonl", f'{{"a": "{text}"}}\n{{"a": 1}}\n')) == [{"a": text}, {"a": 1}]
        assert values_of(write(tmp_path / "d.csv", f"a,b\n{text},1\n")) == [{"a": text, "b": "1"}]

    def test_lines_do_not_depend_on_how_the_bytes_arrive(self) -> None:
        data = '{"a": "é"}\r\n\n{"a": 2}\n{"a": "ü"}'.encode()
        whole = list(read_jsonl(PhysicalLines("f", [data])))

        for size in range(1, 12):
            blocks = [data[at : at + size] for at in range(0, len(data), size)]
            assert list(read_jsonl(PhysicalLines("f", blocks))) == whole


class TestCsv:
    def test_cells_are_text_and_empty_cells_are_empty_text(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d.csv", 'a,b,c\n007,,NA\nnull,"",1.50\n')

        assert values_of(path) == [{"a": "007", "b": "", "c": "NA"}, {"a": "null", "b": "", "c": "1.50"}]

    def test_quoted_cells_hold_separators_quotes_and_line_breaks(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d.csv", 'a,b\r\n"x, ""y""\r\nz\n",1\r\nlast,2\r\n')

        rows = rows_of(path)

        assert [row.values for row in rows] == [{"a": 'x, "y"\r\nz\n', "b": "1"}, {"a": "last", "b": "2"}]
        assert [(row.line, row.offset) for row in rows] == [(2, 5), (5, 23)]

    def test_blank_lines_are_no_rows_but_empty_cells_are(self, tmp_path: Path) -> None:
        assert values_of(write(tmp_path / "d.csv", '\na\n\n  \n""\nx\n')) == [{"a": ""}, {"a": "x"}]
        assert values_of(write(tmp_path / "d.tsv", "a\tb\n\t\n\nx\ty\n")) == [{"a": "", "b": ""}, {"a": "x", "b": "y"}]

    def test_a_header_alone_has_no_rows(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path / "d.csv", "a,b\n")) == []

    @pytest.mark.parametrize(("cells", "count"), [("1", 1), ("1,2,3", 3)], ids=["shorter", "longer"])
    def test_a_row_of_another_length_is_broken_and_the_next_is_read(
        self, tmp_path: Path, cells: str, count: int
    ) -> None:
        path = write(tmp_path / "d.csv", f'a,b\n"x\ny",2\n{cells}\n3,4\n')

        good, broken, last = rows_of(path)

        assert (good.error, last.error, last.values) == (None, None, {"a": "3", "b": "4"})
        assert broken.error is not None
        assert (
            f"{path}, line 4 (byte 12): expected 2 cells, as in the header (['a', 'b']), found {count}: "
            in broken.error.message
        )

    def test_a_quote_that_never_ends_is_told_where_it_began(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d.csv", 'a,b\n1,2\n3,"4\n5,6\n')

        good, broken = rows_of(path)

        assert good.values == {"a": "1", "b": "2"}
        assert broken.error is not None
        assert (
            "line 3 (byte 8): a quoted cell of this record is still open at the end of the file" in broken.error.message
        )

    def test_a_repeated_column_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidUserData, match=r"line 1 .*more than once: \['a'\]"):
            rows_of(write(tmp_path / "d.csv", "a,b,a\n1,2,3\n"))

    def test_bad_utf8_inside_a_record_names_its_own_line(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d.csv", b'a,b\n"x\n\xff",2\n3,4\n')

        broken, good = rows_of(path)

        assert broken.error is not None
        assert "line 3 (byte 7): not UTF-8: byte 0xff" in broken.error.message
        assert good.values == {"a": "3", "b": "4"}

    def test_old_line_breaks_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidUserData, match=r"not csv: .*Save the file with LF or CRLF"):
            rows_of(write(tmp_path / "d.csv", "a,b\r1,2\r"))


class TestBrokenJson:
    def test_the_error_names_file_line_byte_and_text(self, tmp_path: Path) -> None:
        good = '{"a": "é"}\n'
        path = write(tmp_path / "d.jsonl", good * 6 + '{"a": 1, "b" 2}\n' + good)

        rows = rows_of(path)

        assert [bool(row.error) for row in rows] == [False] * 6 + [True, False]
        error = rows[6].error
        assert error is not None
        assert error.message.startswith(f"{path}, line 7 (byte 85): not JSON: Expecting ':' delimiter in '{{\"a\": 1,")
        assert (error.file, error.line, error.offset) == (str(path), 7, 85)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b'{"a": 1', "not JSON: Expecting ',' delimiter"),
            (b"[1, 2]", "expected an object {…}, found an array: [1, 2]."),
            (b'"text"', "found a string: 'text'"),
            (b"null", "found null: None"),
            (b'{"a": "\xc3("}', "(byte 7): not UTF-8: byte 0xc3"),
            ('{"a": 1}'.encode("utf-16"), "It looks like UTF-16"),
            (gzip.compress(b'{"a": 1}'), "It looks like gzip: add .gz"),
            (zstd.compress(b'{"a": 1}'), "It looks like Zstandard: add .zst"),
            (b'{"a": ' + b"9" * 5000 + b"}", "a number is too long"),
            (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", f"nested deeper than {MAX_DEPTH} levels"),
            (b'{"a": ' + b"[" * 600 + b"]" * 600 + b"}", f"nested deeper than {MAX_DEPTH} levels"),
        ],
        ids=["truncated", "array", "string", "null", "utf8", "utf16", "gzip", "zst", "digits", "deeper", "deep"],
    )
    def test_a_line_that_is_no_object_is_broken(self, tmp_path: Path, line: bytes, said: str) -> None:
        [first, *_] = rows_of(write(tmp_path / "d.jsonl", line))

        assert first.error is not None
        assert said in first.error.message
        assert len(first.error.message) < 500 + len(str(tmp_path))

    def test_brackets_in_text_are_no_depth(self, tmp_path: Path) -> None:
        assert values_of(write(tmp_path / "d.jsonl", json.dumps({"a": "[" * 1000}))) == [{"a": "[" * 1000}]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ('[{"a": 1},\n {"a" 2}]', "line 2 (byte 17): not JSON"),
            ('{"a": 1}', "found an object; expected an array of objects"),
            ("3", "found a number"),
            ('{"a": [1, 2], "b": [1]}', "the columns differ in length"),
            (b'[{"a": "\xff"}]', "line 1 (byte 8): not UTF-8"),
            (codecs.BOM_UTF8 + b"[}", "line 1 (byte 4): not JSON"),
        ],
        ids=["broken", "object", "scalar", "lengths", "utf8", "bom"],
    )
    def test_a_json_file_that_is_no_table_is_refused(self, tmp_path: Path, content: str | bytes, said: str) -> None:
        with pytest.raises(InvalidUserData) as caught:
            rows_of(write(tmp_path / "d.json", content))

        assert said in str(caught.value)

    def test_an_element_that_is_no_object_is_a_broken_row(self, tmp_path: Path) -> None:
        first, broken, last = rows_of(write(tmp_path / "d.json", '[{"a": 1}, 2, {"a": 3}]'))

        assert (first.values, last.values) == ({"a": 1}, {"a": 3})
        assert broken.error is not None
        assert "d.json, row 2: expected an object {…}, found a number: 2." in broken.error.message


class TestCompressed:
    @pytest.mark.parametrize(("zipped", "called"), [(".gz", "gzip"), (".zst", "Zstandard")])
    def test_a_file_cut_off_gives_its_whole_lines_and_then_the_break(
        self, tmp_path: Path, zipped: str, called: str
    ) -> None:
        lines = [json.dumps({"n": n, "text": hashlib.sha256(str(n).encode()).hexdigest()}) for n in range(5000)]
        path = tmp_path / f"d.jsonl{zipped}"
        whole = COMPRESS[zipped]("\n".join(lines).encode())
        path.write_bytes(whole[: len(whole) // 2])

        *good, broken = rows_of(path)

        assert [row.values for row in good] == [json.loads(line) for line in lines[: len(good)]]
        assert len(good) > 1000
        assert broken.error is not None
        assert f"line {len(good) + 1} (byte " in broken.error.message
        assert f"the {called} data ends early: the file is cut off" in broken.error.message

    @pytest.mark.parametrize(
        ("zipped", "said"), [(".gz", "Not a gzipped file"), (".zst", "Unable to decompress Zstandard data")]
    )
    def test_data_that_is_not_zipped_is_told(self, tmp_path: Path, zipped: str, said: str) -> None:
        path = tmp_path / f"d.jsonl{zipped}"
        path.write_bytes(b'{"a": 1}\n')

        [broken] = rows_of(path)

        assert broken.error is not None
        assert said in broken.error.message
        assert f"remove {zipped} from its name" in broken.error.message

    @pytest.mark.parametrize("zipped", COMPRESS)
    def test_a_cut_off_json_file_is_refused(self, tmp_path: Path, zipped: str) -> None:
        path = tmp_path / f"d.json{zipped}"
        path.write_bytes(COMPRESS[zipped](b'[{"a": 1}]')[:-9])

        with pytest.raises(InvalidUserData, match="ends early"):
            rows_of(path)

    def test_parts_written_one_behind_the_other_are_one_file(self, tmp_path: Path) -> None:
        for name, compress in COMPRESS.items():
            path = tmp_path / f"d.jsonl{name}"
            path.write_bytes(compress(b'{"a": 1}\n') + compress(b'{"a": 2}\n'))
            assert values_of(path) == [{"a": 1}, {"a": 2}]

    def test_a_missing_package_is_told_with_its_install_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "d.jsonl.zst", '{"a": 1}')
        monkeypatch.delattr("backports.zstd")
        monkeypatch.setitem(sys.modules, "backports.zstd", None)

        with pytest.raises(InvalidUserData, match=r"d\.jsonl\.zst needs .* pip install 'prefect-batchflow\[zstd\]'"):
            rows_of(path)


class TestPlaces:
    def test_relative_paths_start_at_the_base_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "sub" / "d.jsonl", '{"a": 1}')

        rows = rows_of("sub/d.jsonl", base_dir=tmp_path)

        assert [(row.values, row.file) for row in rows] == [({"a": 1}, "sub/d.jsonl")]

    def test_a_tilde_is_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "d.jsonl", '{"a": 1}')

        assert values_of("~/d.jsonl", base_dir="elsewhere") == [{"a": 1}]

    @pytest.mark.parametrize("url", ["$ROWS_HOME/d.jsonl", "${ROWS_HOME}/d.jsonl", "$ROWS_HOME/$ROWS_NAME*"])
    def test_variables_of_the_environment_are_filled_in_and_not_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        monkeypatch.setenv("ROWS_HOME", str(tmp_path))
        monkeypatch.setenv("ROWS_NAME", "d.json")
        write(tmp_path / "d.jsonl", '{"a": 1}')

        [row] = rows_of(url, base_dir="elsewhere")

        assert row.values == {"a": 1}

    def test_what_a_variable_holds_is_in_no_message(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOKEN", "s3cret" * 50)
        for url, said in [
            ("$TOKEN.jsonl", "not found"),
            ("$TOKEN*", "no file fits"),
            ("$TOKEN/x.jsonl", "cannot be read"),
        ]:
            with pytest.raises(InvalidUserData, match=r"\$TOKEN") as caught:
                rows_of(url, base_dir=tmp_path)
            assert "s3cret" not in str(caught.value), said

    def test_a_variable_that_is_not_set_is_refused_by_its_name(self, tmp_path: Path) -> None:
        for url in ("$NO_SUCH/d.jsonl", "x/${NO_SUCH}.jsonl"):
            with pytest.raises(InvalidUserData, match=r"the environment variable 'NO_SUCH' is not set"):
                open_source(url, name="data", base_dir=tmp_path)

    def test_dollars_in_the_name_of_a_file_are_taken_as_they_are(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a$NO_SUCH ${}.jsonl", '{"a": 1}')

        assert values_of(path) == values_of(path.name, base_dir=tmp_path) == values_of(f"file://{path}") == [{"a": 1}]

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("data/*.jsonl", ["b.jsonl", "c.jsonl"]),
            ("data/[ab].*", ["a.csv", "b.jsonl"]),
            ("data/?.jsonl", ["b.jsonl", "c.jsonl"]),
            ("data/**/*.jsonl", ["b.jsonl", "c.jsonl", "sub/a.jsonl", "sub/deep/d.jsonl"]),
            ("data/s*", ["sub/a.jsonl", "sub/deep/d.jsonl"]),
            ("data/*", ["a.csv", "b.jsonl", "c.jsonl", "sub/a.jsonl", "sub/deep/d.jsonl"]),
        ],
    )
    @pytest.mark.parametrize("place", ["path", "file", "memory"])
    def test_all_that_fits_a_pattern_is_read_in_sorted_order(
        self, tmp_path: Path, memory_url: str, place: str, pattern: str, names: list[str]
    ) -> None:
        root = {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": memory_url}[place]
        for name in ("c.jsonl", "sub/deep/d.jsonl", "b.jsonl", "sub/a.jsonl", "a.csv", "sub/notes.txt"):
            with fsspec.open(f"{root}/data/{name}", "wb", auto_mkdir=True) as file:
                file.write(b'{"n": 1}\n' if name.endswith(".jsonl") else b"n\n1\n")

        rows = rows_of(f"{root}/{pattern}")

        assert [row.file for row in rows] == [f"{root}/data/{name}" for name in names]
        if place == "path":
            assert [row.file for row in rows_of(pattern, base_dir=root)] == [f"data/{name}" for name in names]

    def test_a_pattern_follows_no_links_to_folders(self, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere" / "d.jsonl", '{"a": 1}')
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")

        for pattern in ("l*", "l*/d.jsonl", "**/d.jsonl", "*/../../elsewhere/d.jsonl"):
            with pytest.raises(InvalidUserData):
                rows_of(f"{tmp_path}/root/{pattern}")

    def test_a_file_whose_name_looks_like_a_pattern_is_that_file(self, tmp_path: Path) -> None:
        write(tmp_path / "d1.jsonl", '{"a": 1}')
        write(tmp_path / "d[1].jsonl", '{"a": 2}')

        assert values_of(tmp_path / "d[1].jsonl") == [{"a": 2}]

    def test_a_pattern_that_nothing_fits_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidUserData, match=r"no file matches the pattern data/\*\.jsonl"):
            rows_of("data/*.jsonl", base_dir=tmp_path)

    def test_a_pattern_that_an_unknown_file_fits_is_refused_by_the_file(self, tmp_path: Path) -> None:
        for name in ("a.jsonl", "b.png", "c.txt"):
            write(tmp_path / name, '{"a": 1}')

        with pytest.raises(InvalidUserData, match=r"b\.png has no known suffix \(1 more like it\)"):
            rows_of(tmp_path / "*")

    def test_file_urls_and_links_are_read(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d#1 ?.jsonl", '{"a": 1}')
        link = tmp_path / "link.jsonl"
        link.symlink_to(path)

        assert values_of(f"file://{path}") == values_of(link) == [{"a": 1}]

    def test_any_file_system_of_fsspec_is_read(self, memory_url: str) -> None:
        with fsspec.open(f"{memory_url}/d.csv.gz", "wb") as file:
            file.write(gzip.compress(b"a\n1\n"))

        assert values_of(f"{memory_url}/d.csv.gz") == [{"a": "1"}]

    def test_a_folder_is_its_known_files_in_sorted_order(self, tmp_path: Path) -> None:
        write(tmp_path / "b.jsonl", '{"n": 2}')
        write(tmp_path / "a" / "z.csv", "n\n1\n")
        write(tmp_path / "c.json.gz", '[{"n": 3}]')
        write(tmp_path / "picture.png", b"\x89PNG")
        write(tmp_path / "README", "text")

        rows = rows_of(tmp_path)

        assert [row.values["n"] for row in rows] == ["1", 2, 3]
        assert [row.file for row in rows] == [f"{tmp_path}/{name}" for name in ("a/z.csv", "b.jsonl", "c.json.gz")]

    def test_a_folder_on_another_file_system_is_read(self, memory_url: str) -> None:
        for name in ("two", "one"):
            with fsspec.open(f"{memory_url}/deep/{name}.jsonl", "wb") as file:
                file.write(json.dumps({"n": name}).encode())

        rows = rows_of(memory_url)

        assert [row.file for row in rows] == [f"{memory_url}/deep/one.jsonl", f"{memory_url}/deep/two.jsonl"]

    def test_a_folder_without_readable_files_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "notes.txt", "x")

        with pytest.raises(InvalidUserData, match=r"Source 'data': the folder .* has no file .*\.jsonl, \.csv"):
            rows_of(tmp_path)

    def test_a_missing_file_is_refused_by_its_name(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidUserData) as caught:
            rows_of("nothing.jsonl", base_dir=tmp_path)

        assert f"Source 'data': nothing.jsonl not found (looked for {tmp_path}/nothing.jsonl)" in str(caught.value)

    def test_a_missing_file_elsewhere_is_refused(self) -> None:
        with pytest.raises(InvalidUserData, match=r"memory://nowhere/x\.jsonl not found"):
            rows_of("memory://nowhere/x.jsonl")

    @pytest.mark.parametrize("name", ["data.xlsx", "data", "data.txt.gz", "data.parquet.gz"])
    def test_an_unknown_suffix_is_refused_with_the_known_ones(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidUserData) as caught:
            rows_of(write(tmp_path / name, "x"))

        assert (
            "expected one of .jsonl, .csv, .tsv, .json, each also with .gz or .zst, and .parquet, .arrow, .feather"
        ) in str(caught.value)

    def test_a_missing_relative_path_says_where_it_starts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        with pytest.raises(InvalidUserData) as caught:
            rows_of("rows/no.jsonl")
        assert (
            f"rows/no.jsonl not found (looked for {tmp_path}/rows/no.jsonl). Relative paths start at the current"
            in str(caught.value)
        )
        with pytest.raises(InvalidUserData) as caught:
            rows_of(tmp_path / "no.jsonl")
        assert f"{tmp_path}/no.jsonl not found. Check the path." in str(caught.value)

    def test_chains_are_refused(self) -> None:
        with pytest.raises(InvalidUserData, match=r"chained URLs \(::\) are not supported, found 'zip://d.jsonl::file"):
            open_source("zip://d.jsonl::file:///x.zip", name="data")

    @pytest.mark.parametrize(
        ("url", "module", "line"),
        [
            ("s3://bucket/d.jsonl", "s3fs", "pip install 'prefect-batchflow[s3]'"),
            ("gs://bucket/d.jsonl", "gcsfs", "pip install 'prefect-batchflow[gcs]'"),
            ("abfss://box@account/d.jsonl", "adlfs", "pip install 'prefect-batchflow[azure]'"),
        ],
    )
    def test_a_missing_package_is_told_with_its_install_line(
        self, monkeypatch: pytest.MonkeyPatch, url: str, module: str, line: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)

        with pytest.raises(InvalidUserData) as caught:
            rows_of(url)

        assert f"{url} needs a package that is not installed" in str(caught.value)
        assert line in str(caught.value)

    def test_an_unknown_protocol_is_refused(self) -> None:
        with pytest.raises(InvalidUserData, match=r"nope://x\.jsonl cannot be read: ValueError: Protocol not known"):
            rows_of("nope://x.jsonl")

    def test_secrets_of_a_url_are_in_no_message(self) -> None:
        source = open_source("nope://me:s3cret@host/d.jsonl", name="data")
        signed = open_source("https://me:s3cret@host/d.jsonl?sig=s3cret", name="data")

        assert source.url == "nope://host/d.jsonl"
        assert signed.url == "https://host/d.jsonl"
        with pytest.raises(InvalidUserData) as caught:
            list(source.rows())
        assert "s3cret" not in str(caught.value)

    def test_a_read_that_fails_halfway_is_raised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Failing(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell():
                    raise OSError("connection reset, https://host/x?sig=s3cret")
                return super().read(12)

        path = write(tmp_path / "d.jsonl", '{"a": 1}\n{"a": 2}\n')
        file_system = fsspec.filesystem("file")
        monkeypatch.setattr(type(file_system), "open", lambda *_: Failing(path.read_bytes()))
        rows = open_source(path, name="data").rows()

        assert next(rows).values == {"a": 1}
        with pytest.raises(InvalidUserData, match=r"cannot be read: OSError: connection reset, https://host/x\.$"):
            next(rows)


class TestReadOnce:
    def test_a_pipe_is_copied_and_read_twice(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=('{"a": 1}\n{"a": 2}\n',), daemon=True)
        writer.start()
        source = open_source(pipe, name="data")

        first = [row.values for row in source.rows()]
        writer.join(timeout=10)

        assert first == [row.values for row in source.rows()] == [{"a": 1}, {"a": 2}]
        assert {row.file for row in source.rows()} == {str(pipe)}

    def test_standard_input_is_jsonl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reading, writing = os.pipe()
        os.write(writing, b'{"a": 1}\n')
        os.close(writing)
        saved = os.dup(0)
        try:
            os.dup2(reading, 0)
            source = open_source("-", name="data")
            assert [row.values for row in source.rows()] == [{"a": 1}]
            assert [row.place for row in source.rows()] == ["-, line 1 (byte 0)"]
        finally:
            os.dup2(saved, 0)
            os.close(saved)
            os.close(reading)

    def test_copies_are_removed_with_their_source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        source = RowsSource("run.outputs", iter([{"a": 1}]))
        list(source.rows())
        assert len(list(tmp_path.iterdir())) == 1

        del source

        assert list(tmp_path.iterdir()) == []


class TestFingerprint:
    def hash_of(self, source: Any) -> str:
        digest = hashlib.sha256()
        for _ in source.rows(digest.update):
            pass
        return digest.hexdigest()

    @pytest.mark.parametrize("ending", ["", "\n", "\n\n \r\n"], ids=["open", "lf", "blank"])
    @pytest.mark.parametrize("name", FORMATS)
    def test_it_is_the_sha256_of_the_bytes(self, tmp_path: Path, name: str, ending: str) -> None:
        data = codecs.BOM_UTF8 + FORMATS[name].rstrip("\n").encode() + ending.encode()
        places = [write(tmp_path / f"{name}{zipped}", data) for zipped in ("", *COMPRESS)]

        expected = hashlib.sha256(data).hexdigest()

        assert [self.hash_of(open_source(place, name="data")) for place in places] == [expected] * 3

    def test_rows_that_move_between_files_change_it(self, tmp_path: Path) -> None:
        write(tmp_path / "one" / "a.jsonl", '{"n": 1}\n{"n": 2}\n')
        write(tmp_path / "one" / "b.jsonl", '{"n": 3}\n')
        write(tmp_path / "two" / "a.jsonl", '{"n": 1}\n')
        write(tmp_path / "two" / "b.jsonl", '{"n": 2}\n{"n": 3}\n')

        hashes = {self.hash_of(open_source(tmp_path / name, name="data")) for name in ("one", "two")}

        assert len(hashes) == 2

    def test_rows_in_memory_have_one_whatever_their_key_order(self) -> None:
        one = RowsSource("r", [{"a": 1, "b": "é"}])
        same = RowsSource("r", iter([{"b": "é", "a": 1}]))
        other = RowsSource("r", [{"a": 2, "b": "é"}])

        assert self.hash_of(one) == self.hash_of(same) != self.hash_of(other)


class TestRowsSource:
    @pytest.mark.parametrize("make", [list, iter, lambda rows: (row for row in rows)], ids=["list", "iterator", "gen"])
    def test_rows_are_read_as_often_as_asked(self, make: Any) -> None:
        given_rows = [{"line_number": 3, "x": math.inf}, {"line_number": 5, "x": "\ud800"}]
        source = RowsSource("run.outputs", make(given_rows))

        rows = list(source.rows())

        assert [row.values for row in rows] == given_rows
        assert rows == list(source.rows())
        assert rows[1].place == "run.outputs, row 2"

    def test_a_row_that_is_no_mapping_is_refused(self) -> None:
        with pytest.raises(InvalidUserData, match=r"run\.outputs, row 1: expected a mapping, found 3"):
            list(RowsSource("run.outputs", [3]).rows())  # type: ignore[list-item]

    def test_values_that_are_no_json_are_refused(self) -> None:
        with pytest.raises(InvalidUserData, match="row 1: expected a mapping of JSON values"):
            list(RowsSource("run.outputs", iter([{"a": object()}])).rows())


JSON_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
HOSTILE_KEYS = st.sampled_from(["__class__", "__exc_type__", "line_number", "../x", "{{a}}", "#", "?", "", "\x00"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(min_value=10**300) | st.floats() | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HOSTILE_KEYS | JSON_TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(HOSTILE_KEYS | JSON_TEXT, JSON_VALUES, max_size=5), max_size=5),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    bom=st.booleans(),
)
@example(rows=[{"a": "\u2028\x85\x1c"}, {"a": "\ud83d\ude00 \udead"}], ascii_only=False, end="\r\n", bom=True)
def test_what_is_written_as_jsonl_is_read_back(
    tmp_path: Path, rows: list[dict[str, Any]], ascii_only: bool, end: str, bom: bool
) -> None:
    def dump(row: Any, ensure_ascii: bool) -> str:
        return json.dumps(row, ensure_ascii=ensure_ascii)

    def line(row: Any) -> bytes:
        try:
            return dump(row, ascii_only).encode()
        except UnicodeEncodeError:  # lone surrogates are no UTF-8: they travel as escapes only
            return dump(row, True).encode()

    data = b"".join(line(row) + end.encode() for row in rows)
    path = write(tmp_path / "d.jsonl", codecs.BOM_UTF8 * bom + data)

    read = values_of(path)

    assert [dump(row, True) for row in read] == [dump(json.loads(dump(row, True)), True) for row in rows]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    name=st.sampled_from(
        ["d.jsonl", "d.csv", "d.tsv", "d.json", "d.jsonl.gz", "d.jsonl.zst", "d.parquet", "d.arrow", "d.feather"]
    ),
)
def test_no_bytes_raise_anything_but_our_error(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)

    try:
        rows = rows_of(path)
    except InvalidUserData:
        return

    assert all(row.error or isinstance(row.values, dict) for row in rows)
