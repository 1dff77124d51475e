"""What is typed at the command line becomes the values a person would expect."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.cli.arguments import (
    OptionFlags,
    assignments,
    environment_of,
    node_connections_of,
    parameters_of,
    parameters_of_resume,
    sources,
    value_of,
    words_of,
)
from prefect_batchflow.cli.commands import app
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.settings import RunOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2.5", -2.5),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ('"3"', "3"),
        ("three", "three"),
        ("", ""),
        ("007", "007"),
        ("True", "True"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("[" * 100_000, "[" * 100_000),
        ("${data.q}", "${data.q}"),
    ],
    ids=lambda value: str(value)[:12] or "empty",
)
def test_a_value_is_json_if_it_is_json_and_else_text(text: str, value: Any) -> None:
    found = value_of(text)

    assert found == value
    assert type(found) is type(value)


def test_assignments_split_at_the_first_equals_sign() -> None:
    found = assignments("--map", ["question=${data.q}", "n=3", "url=https://host/?a=b", "empty="])

    assert found == {"question": "${data.q}", "n": 3, "url": "https://host/?a=b", "empty": ""}


@pytest.mark.parametrize(
    ("texts", "part"),
    [(["question"], "found 'question'"), (["=3"], "found '=3'"), (["n=1", "n=2"], "gives 'n' twice")],
    ids=["no equals", "no name", "twice"],
)
def test_an_assignment_that_cannot_be_is_refused(texts: list[str], part: str) -> None:
    with pytest.raises(InvalidOptionError, match=part):
        assignments("--map", texts)


@pytest.mark.parametrize(
    ("texts", "urls"),
    [
        (["rows.jsonl"], {"data": "rows.jsonl"}),
        (["-"], {"data": "-"}),
        (["data=rows.jsonl"], {"data": "rows.jsonl"}),
        (["rows.jsonl", "run.outputs=s3://b/year=2024/o.jsonl"], {"data": "rows.jsonl", "run.outputs": "s3://b/year=2024/o.jsonl"}),
        (["s3://b/year=2024/rows.jsonl"], {"data": "s3://b/year=2024/rows.jsonl"}),
        (["https://host/rows.jsonl?key=1"], {"data": "https://host/rows.jsonl?key=1"}),
        (["./year=2024/rows.jsonl"], {"data": "./year=2024/rows.jsonl"}),
    ],
    ids=["plain", "stdin", "named", "two", "equals in a URL", "query", "equals in a path"],
)  # fmt: skip
def test_a_source_is_a_url_or_a_named_url(texts: list[str], urls: dict[str, str]) -> None:
    assert sources(texts) == urls


def test_an_existing_path_is_no_named_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "year=2024").mkdir()
    monkeypatch.chdir(tmp_path)

    (tmp_path / "year=2024" / "rows.jsonl").touch()
    assert sources(["year=2024"]) == {"data": "year=2024"}
    assert sources(["year=*/*.jsonl"]) == {"data": "year=*/*.jsonl"}
    assert sources(["year=x*"]) == {"year": "x*"}


@pytest.mark.parametrize(
    ("texts", "part"),
    [([], "No data was given"), (["a.jsonl", "b.jsonl"], "'data' twice"), (["data="], "empty"), ([""], "empty")],
    ids=["none", "two without a name", "named nothing", "nothing"],
)
def test_sources_that_cannot_be_are_refused(texts: list[str], part: str) -> None:
    with pytest.raises(InvalidOptionError, match=part):
        sources(texts)


OTHER = RunOptions(
    line_timeout_sec=5.0,
    retries=2,
    retry_delay_sec=0.5,
    retry_backoff=3.0,
    retry_jitter=0.25,
    retry_on="ProcessCrashError,X",
    max_failures="2.5%",
    max_same_errors=4,
    batch_timeout_sec=60.0,
    worker_count=2,
    max_concurrency=7,
    line_memory_mb=512,
    granularity="chunk",
    task_runner="dask",
    task_runner_address="tcp://127.0.0.1:8786",
    max_lines_count=9,
    bad_rows="fail",
    line_number_column="id",
    inputs_with_default="default",
    on_change="rerun",
)
"""Options none of which is the default."""


def test_the_options_of_a_run_are_parameters_again_but_for_a_change_that_was_accepted() -> None:
    from prefect_batchflow.flows import batch_run

    parameters = parameters_of(OTHER)
    defaults = {name: p.default for name, p in inspect.signature(batch_run.fn).parameters.items()}

    assert "on_change" not in parameters
    assert {name for name in parameters if parameters[name] == defaults[name]} == set()
    assert parameters_of(RunOptions()) == {name: defaults[name] for name in parameters}


@pytest.mark.parametrize(
    ("flags", "runner", "address"),
    [
        (OptionFlags(), "dask", "tcp://127.0.0.1:8786"),
        (OptionFlags(task_runner="local"), "local", ""),
        (OptionFlags(task_runner="ray", task_runner_address="auto"), "ray", "auto"),
        (OptionFlags(task_runner_address="tcp://127.0.0.1:1"), "dask", "tcp://127.0.0.1:1"),
    ],
    ids=["as it was", "on this machine", "on another cluster", "at another address"],
)
def test_a_run_of_a_cluster_goes_on_where_it_is_told_to(flags: OptionFlags, runner: str, address: str) -> None:
    parameters = parameters_of_resume(OTHER, flags)

    assert (parameters["task_runner"], parameters["task_runner_address"]) == (runner, address)
    assert parameters["worker_count"] == OTHER.worker_count


def test_the_words_of_options_are_read_as_those_options() -> None:
    _, bound, _ = app.parse_args(["run", "flow", *words_of(OTHER)], exit_on_error=False, print_error=False)

    given = bound.arguments["flags"].given()

    of_the_data = ("max_lines_count", "line_number_column")
    assert given == {name: value for name, value in parameters_of(OTHER).items() if name not in of_the_data}
    assert words_of(RunOptions()) == []


@pytest.mark.parametrize(
    ("value", "word"),
    [(12345.678, "12345.678"), (1234567.5, "1234567.5"), (5.0, "5"), (1e-05, "1e-05"), (1e22, "1e+22")],
)
def test_a_number_in_a_command_is_the_whole_number(value: float, word: str) -> None:
    words = words_of(RunOptions(line_timeout_sec=value))

    assert words == ["--line-timeout", word]
    _, bound, _ = app.parse_args(["run", "flow", *words], exit_on_error=False, print_error=False)
    assert bound.arguments["flags"].given() == {"line_timeout_sec": value}


def test_flags_are_parameters_of_the_flow_and_only_the_given_ones() -> None:
    from prefect_batchflow.flows import batch_run

    assert OptionFlags().given() == {}
    assert OptionFlags(worker_count=2, retry_on=["A,B", "C"], max_lines_count=0).given() == {
        "worker_count": 2,
        "retry_on": "A,B,C",
        "max_lines_count": 0,
    }
    assert set(vars(OptionFlags())) < set(inspect.signature(batch_run.fn).parameters)


def test_a_misspelt_class_of_errors_is_refused_before_anything_starts() -> None:
    assert OptionFlags(retry_on=["rate-limit,Own", "crash"]).given() == {"retry_on": "rate_limit,Own,crash"}
    with pytest.raises(InvalidOptionError, match="Did you mean 'rate_limit'"):
        OptionFlags(retry_on=["ratelimit"]).given()


def test_environment_variables_are_text_whatever_they_look_like() -> None:
    assert environment_of(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}


@pytest.mark.parametrize(("text", "lacks"), [("s3cret", "equals sign"), ("=s3cret", "name")])
def test_an_environment_variable_without_a_part_is_refused_without_its_text(text: str, lacks: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"number 2 has no {lacks}") as caught:
        environment_of(["A=1", text])

    assert "s3cret" not in str(caught.value)


def test_connections_of_nodes_are_read_node_by_node() -> None:
    texts = ["a.connection=my_ai", "a.deployment_name=gpt-4=x", "b.search=s"]

    assert node_connections_of(texts) == {
        "a": {"connection": "my_ai", "deployment_name": "gpt-4=x"},
        "b": {"search": "s"},
    }


@pytest.mark.parametrize(
    ("texts", "part"),
    [
        (
            ["my_ai=block"],
            "takes NODE.INPUT=NAME, such as answer.connection=other or answer.model=gpt-4o, found 'my_ai=block'",
        ),
        (["a.connection"], "found 'a.connection'"),
        (["a.=x"], "found 'a.=x'"),
        ([".c=x"], "found '.c=x'"),
        (["a.c="], "found 'a.c='"),
        (["a.c=x", "a.c=y"], "gives 'a.c' twice"),
    ],
)
def test_a_connection_of_a_node_that_lacks_a_part_is_refused(texts: list[str], part: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        node_connections_of(texts)

    assert part in str(caught.value)
