"""Where data lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_batchflow.inputs.places import fixed_folder, is_local_path, locate


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("/data/*.jsonl", "/data/"),
        ("/data/2024-??/rows.csv", "/data/"),
        ("bucket/a/b[12]/**", "bucket/a/"),
        ("*.jsonl", ""),
        ("/data/rows.jsonl", None),
    ],
)
def test_the_fixed_part_of_a_pattern_ends_before_its_first_wildcard(pattern: str, folder: str | None) -> None:
    assert fixed_folder(pattern) == folder


@pytest.mark.parametrize(
    ("location", "is_path"),
    [("rows.jsonl", True), ("~/x", True), ("-", False), ("s3://b/x", False), ("file:///x", False)],
)
def test_urls_and_standard_input_are_no_paths(location: str, is_path: bool) -> None:
    assert is_local_path(location) is is_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rows.jsonl", "/base/rows.jsonl"),
        ("/x/rows.jsonl", "/x/rows.jsonl"),
        ("~/rows.jsonl", "/home/of-test/rows.jsonl"),
        ("$ROWS_OF_TEST/rows.jsonl", "/somewhere/else/rows.jsonl"),
        ("in/${DAY_OF_TEST}/*.csv", "/base/in/monday/*.csv"),
        ("$HOME_OF_TEST/rows.jsonl", "/home/of-test/x/rows.jsonl"),
        ("cost-5$.csv", "/base/cost-5$.csv"),
        ("s3://bucket/$ROWS_OF_TEST/x.csv", "s3://bucket/$ROWS_OF_TEST/x.csv"),
        ("-", "-"),
    ],
)
def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, path: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/of-test")
    monkeypatch.setenv("ROWS_OF_TEST", "/somewhere/else")
    monkeypatch.setenv("DAY_OF_TEST", "monday")
    monkeypatch.setenv("HOME_OF_TEST", "~/x")

    assert locate(path, Path("/base")) == expected
