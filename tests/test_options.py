"""The options of a run: declared once in `settings`, the same behind every door."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import pytest
from prefect.exceptions import ParameterBindError, ParameterTypeError
from prefect.utilities.schema_tools import validate
from pydantic import TypeAdapter, ValidationError

from prefect_batchflow import BatchEngine, LinePolicy, batch_run
from prefect_batchflow.cli.commands import app, main
from prefect_batchflow.engine import OPTIONS
from prefect_batchflow.errors.classes import ErrorClass
from prefect_batchflow.exceptions import InvalidOptionError, InvalidUserData
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.settings import OPTION_NAMES, PARAMETERS, RUN_FILE_KEYS, Option, RunOptions

OPTIONS_PAGE = (Path(__file__).parent.parent / "docs" / "options.md").read_text()
FORM = batch_run.parameters.model_dump_for_openapi()
ENGINE_ARGUMENTS = {"batch_timeout_sec", "line_timeout_sec", "worker_count", "max_lines_count"}
"""Options that promptflow's signature names, where 0 and `None` mean that nothing was given."""

WORDS: dict[str, list[Any]] = {
    "max_failures": ["0", "-1", "five", "120%", "100.5%", "5 %", "0%", "1.5", "01", " 1", "%", 0, -1, 1.5, True, False],
    "retry_on": ["ratelimit", "rate_limit,time_out", "rate_limit timeout", ","],
    "rerun": ["faild", "failed,timed_out", "timed_out crash", " , "],
    "rerun_lines": ["x", "3-1", "1,,2", "-1", "1-2-3", "1.5", "1234567890123", ","],
    "line_number_column": [""],
}
"""Texts and other values that cannot be."""
RIGHT_WORDS = {
    "max_failures": ["", "1", "50", "5%", "0.5%", "2.5%", "100%"],
    "retry_on": ["", "rate_limit,KeyError", "RateLimitError"],
    "rerun": ["", "failed", "timed_out,ProcessCrashError"],
    "rerun_lines": ["", "3", "3,7,20-30", " 0 - 5 "],
    "line_number_column": ["none", "id", "the id"],
}


def out_of_bounds(option: Option) -> list[Any]:
    """Values just outside of what an option allows."""
    step = 1 if option.kind is int else 0.5
    wrong: list[Any] = list(WORDS.get(option.name, []))
    if option.at_least is not None:
        wrong += [option.kind(option.at_least - step), option.kind(-1)] if option.at_least else [option.kind(-step)]
    if option.above is not None:
        wrong += [option.kind(option.above), option.kind(-1)]
    if option.at_most is not None:
        wrong += [option.kind(option.at_most + step)]
    if "Literal" in str(option.kind):
        wrong += ["", "lines"]
    if option.kind is float:
        wrong += [math.inf, -math.inf, math.nan]
    return [value for value in wrong if not (option.empty and option.kind in (int, float) and value == 0)]


def within_bounds(option: Option) -> list[Any]:
    right: list[Any] = [option.default, *RIGHT_WORDS.get(option.name, [])]
    right += [option.kind(edge) for edge in (option.at_least, option.at_most) if edge is not None]
    return [*right, *(get_args(option.kind) if "Literal" in str(option.kind) else ())]


WRONG = [(name, value) for name in OPTION_NAMES for value in out_of_bounds(PARAMETERS[name])]
RIGHT = [(name, value) for name in OPTION_NAMES for value in within_bounds(PARAMETERS[name])]


def test_every_option_but_addresses_has_a_bound_that_is_tried() -> None:
    assert set(OPTION_NAMES) - {name for name, _ in WRONG} == {"task_runner_address"}


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
class TestAValueOutOfBounds:
    def test_starts_no_run_from_the_form(self, name: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            with pytest.raises(ValueError, match="not JSON compliant"):
                json.dumps(value, allow_nan=False)  # so no form sends it
            return
        is_read_later = PARAMETERS[name].errors is not None
        """A list of errors is read when the run starts."""

        assert bool(validate({"flow": "f", name: value}, FORM)) is not is_read_later

    def test_fails_a_run_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(ParameterTypeError, match=name) as caught:
            batch_run.validate_parameters({"flow": "f", name: value})

        assert PARAMETERS[name].problem(value) in str(caught.value)

    def test_is_refused_in_python(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidOptionError) as caught:
            run_batch({"flow": "f", name: value}, LiveRun())

        assert str(caught.value) == f"{name} is {value!r}. {PARAMETERS[name].problem(value)}"

    def test_is_refused_by_the_engine(self, name: str, value: Any, tmp_path: Path) -> None:
        def run() -> None:
            arguments = {} if name == "max_lines_count" else {name: value}
            rows = value if name == "max_lines_count" else None
            BatchEngine(answer, tmp_path, **arguments).run({"data": "rows.jsonl"}, max_lines_count=rows)

        if name in ENGINE_ARGUMENTS and not value:
            with pytest.raises(InvalidUserData, match="not found"):
                run()
            return
        with pytest.raises(InvalidOptionError) as caught:
            run()

        assert str(caught.value) == f"{name} is {value!r}. {PARAMETERS[name].problem(value)}"

    def test_is_refused_on_the_command_line(
        self, name: str, value: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        status = main(["run", str(tmp_path), "--data", "rows.jsonl", f"{PARAMETERS[name].flags[0]}={value}"])

        said = " ".join(capsys.readouterr().err.split())
        assert status == 2
        assert PARAMETERS[name].flags[0] in said
        if "Literal" in str(PARAMETERS[name].kind):
            assert all(choice in said for choice in get_args(PARAMETERS[name].kind))
        else:
            assert PARAMETERS[name].problem(value) in said

    def test_is_no_options_model(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidOptionError, match=name):
            RunOptions(**{name: value})

    def test_is_no_manifests(self, name: str, value: Any) -> None:
        with pytest.raises(ValidationError, match=name):
            TypeAdapter(RunOptions).validate_python({name: value})


@pytest.mark.parametrize(("name", "value"), RIGHT, ids=str)
def test_a_value_within_bounds_is_taken(name: str, value: Any) -> None:
    parameters = {"flow": "f", name: value}

    assert validate(parameters, FORM) == []
    assert batch_run.validate_parameters(parameters)[name] == value
    assert getattr(TypeAdapter(RunOptions).validate_python({name: value}), name) == value
    words = ["run", "f", f"{PARAMETERS[name].flags[0]}={value}"]
    assert app.parse_args(words, exit_on_error=False, print_error=False)


def test_a_number_of_lines_is_a_text_or_an_integer() -> None:
    assert batch_run.validate_parameters({"flow": "f", "max_failures": 1})["max_failures"] == "1"
    assert TypeAdapter(RunOptions).validate_python({"max_failures": 50}).max_failures == "50"
    assert FORM["properties"]["max_failures"]["type"] == "string", "one text field"


@pytest.mark.parametrize("value", [0, "auto"], ids=str)
class TestAutoIsANumberOfWorkers:
    def test_in_a_run(self, value: int | str) -> None:
        assert batch_run.validate_parameters({"flow": "f", "worker_count": value})["worker_count"] == 0

    def test_in_its_options(self, value: Any) -> None:
        assert RunOptions(worker_count=value).worker_count == RunOptions().worker_count == 0
        assert TypeAdapter(RunOptions).validate_python({"worker_count": value}).worker_count == 0

    def test_on_the_command_line(self, value: int | str) -> None:
        _, bound, _ = app.parse_args(["run", "f", "--workers", str(value)], exit_on_error=False, print_error=False)
        assert bound.arguments["flags"].worker_count == 0

    def test_in_the_engine_whatever_promptflows_variable_says(
        self, value: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, storage: Path
    ) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
        monkeypatch.setenv("PF_WORKER_COUNT", "3")
        BatchEngine(answer, tmp_path, worker_count=value, run_storage_url=str(storage)).run(
            {"data": "rows.jsonl"}, run_id="r"
        )

        options = json.loads((storage / "r" / "manifest.json").read_text())["options"]
        assert options["worker_count"] == (0 if value == "auto" else 3), (
            "0 means that nothing was given, as in promptflow"
        )


def test_other_numbers_have_no_word() -> None:
    for name in ("max_concurrency", "retries", "line_timeout_sec", "max_lines_count"):
        with pytest.raises(InvalidOptionError, match=name):
            run_batch({"flow": "f", name: "auto"}, LiveRun())


NOT_PLAIN = ["1_0", "0x4", "٣", "+3", " 4", "inf", "nan", True, b"4"]


@pytest.mark.parametrize("text", NOT_PLAIN, ids=lambda text: ascii(text)[:10])
@pytest.mark.parametrize("name", ["worker_count", "line_timeout_sec"])
def test_a_number_is_written_in_plain_digits(name: str, text: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        run_batch({"flow": "f", name: text}, LiveRun())
    assert str(caught.value) == f"{name} is {text!r}. {PARAMETERS[name].rule}"

    if isinstance(text, str):
        assert main(["run", "f", "--data", "rows.jsonl", f"{PARAMETERS[name].flags[0]}={text}"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"found {text!r}. {PARAMETERS[name].rule}" in said


@pytest.mark.parametrize("text", ["0.4", "1e0", "9" * 30], ids=lambda text: text[:4])
@pytest.mark.parametrize("name", [name for name in OPTION_NAMES if PARAMETERS[name].kind is int])
def test_the_command_line_rounds_no_decimals(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "f", "--data", "rows.jsonl", f"{PARAMETERS[name].flags[0]}={text}"]) == 2
    assert f"found '{text}'. {PARAMETERS[name].rule}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", [name for name in PARAMETERS if PARAMETERS[name].kind is str])
def test_bytes_are_no_text(name: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"{name} is b'5'. It must be "):
        run_batch({"flow": "f", name: b"5"}, LiveRun())


def test_an_unknown_parameter_is_refused_in_a_readable_message() -> None:
    with pytest.raises(ParameterBindError, match="unexpected keyword argument 'nonsense'") as caught:
        _ = batch_run(flow="f", nonsense=1)
    assert len(str(caught.value)) < 4_000


def answer(text: str) -> str:
    return text


def test_a_bound_is_told_with_the_option_what_was_found_and_what_is_allowed() -> None:
    with pytest.raises(InvalidOptionError) as caught:
        run_batch({"flow": "f", "line_memory_mb": 5, "worker_count": "many", "max_failures": "five"}, LiveRun())

    assert str(caught.value).split(". ") == [
        "worker_count is 'many'",
        "It must be auto, or a whole number from 1 to 1024",
        "line_memory_mb is 5",
        "It must be 0 for no limit, or a whole number of at least 16",
        "max_failures is 'five'",
        "It must be a number of lines, such as 1 or 50, a share, such as 5%, or empty for no limit.",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PF_WORKER_COUNT", "5000", "worker_count is 5000. It must be auto, or a whole number from 1 to 1024."),
        ("PF_WORKER_COUNT", "inf", "worker_count is inf. It must be auto, or a whole number from 1 to 1024."),
        ("PF_LINE_TIMEOUT_SEC", "inf", "line_timeout_sec is inf. It must be a finite number above 0."),
    ],
)
def test_promptflows_variables_are_held_to_the_same_bounds(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidOptionError, match=f"^{re.escape(said)}$"):
        BatchEngine(answer, tmp_path).run({"data": "rows.jsonl"})


def test_a_line_policy_has_the_bounds_of_the_options() -> None:
    with pytest.raises(InvalidOptionError, match=r"retry_jitter is 2\. It must be a finite number from 0 to 1\."):
        LinePolicy(retry_jitter=2)
    assert asdict(RunOptions().policy) == asdict(LinePolicy())


# --- the same names, defaults, bounds and help everywhere ------------------------------------------------------------


def test_the_form_is_the_declaration() -> None:
    shown = {name: (field.get("description"), field.get("default", ...)) for name, field in FORM["properties"].items()}

    assert list(shown) == list(inspect.signature(batch_run.fn).parameters) == list(PARAMETERS)
    assert shown == {name: (option.description, option.default) for name, option in PARAMETERS.items()}
    assert FORM["required"] == ["flow"]
    assert FORM["properties"]["line_memory_mb"]["minimum"] == 0
    assert FORM["properties"]["worker_count"]["maximum"] == 1024


def test_the_engine_takes_every_option() -> None:
    assert set(OPTION_NAMES) == (OPTIONS & set(OPTION_NAMES)) | ENGINE_ARGUMENTS
    assert OPTIONS - set(OPTION_NAMES) == {
        "batch_use_async",
        "environment_variables",
        "image_roots",
        "listener",
        "node_connections",
        "run_storage_url",
        "variant",
    }


@pytest.mark.parametrize("command", ["run", "resume"])
def test_the_commands_help_is_the_declaration(command: str) -> None:
    words = [sys.executable, "-m", "prefect_batchflow.cli", command, "--help"]
    wide = {**os.environ, "COLUMNS": "1000"}
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env=wide).stdout
    flags = {part.partition("=")[0] for part in re.findall(r"(?<![\w-])--[\w-]+", shown)}

    names = [n for n in PARAMETERS if n not in ("flow", "more_data")] if command == "run" else OPTION_NAMES
    for name in names:
        option = PARAMETERS[name]
        assert set(option.flags) <= flags
        assert f" {option.help}" in shown
        assert option.typed in shown
        if command == "resume" and option.is_kept:
            assert f"{option.help} {option.meaning_of_empty}".strip() + " [default: kept from the run]" in shown
        else:
            default = option.word or (f"{option.default:g}" if option.kind in (int, float) else "")
            assert not default or f"[default: {default}" in shown


def test_a_run_file_gives_parameters() -> None:
    assert RUN_FILE_KEYS == {
        "flow": "flow",
        "data": "data",
        "column_mapping": "inputs_mapping",
        "name": "run_id",
        "run": "run",
        "init": "init_kwargs",
        "variant": "variant",
        "connections": "node_connections",
        "environment_variables": "environment_variables",
    }


def test_the_manifest_keeps_every_option() -> None:
    assert [item.name for item in fields(RunOptions)] == list(OPTION_NAMES)
    assert TypeAdapter(RunOptions).dump_python(RunOptions(), mode="json") == {
        name: PARAMETERS[name].default for name in OPTION_NAMES
    }


def test_the_help_names_every_class_of_errors() -> None:
    named = re.search(r"\bclasses \(([a-z_, ]+)\)", PARAMETERS["retry_on"].help)

    assert named is not None
    assert set(named[1].split(", ")) == set(ErrorClass)


def row(option: Option) -> str:
    """An option's row of the table in docs/options.md."""
    flag = {"flow": "`FLOW`", "more_data": "`--data NAME=URL`"}.get(option.name, f"`{option.flags[0]}`")
    default = option.word or (f"{option.default:g}" if option.kind in (int, float) else option.default)
    shown = f"`{default}`" if default and isinstance(default, str) else ""
    text = re.sub(r"(\$\{[\w.]+\}|\{\".*\"\}\}|[\w./-]*\*\.\w+)", r"`\1`", option.description)
    return f"| {flag} | `{option.name}` | {shown} | {text} |"


def test_the_options_page_has_the_declaration() -> None:
    missing = [expected for option in PARAMETERS.values() if (expected := row(option)) not in OPTIONS_PAGE]

    assert not missing, "put these rows into docs/options.md:\n" + "\n".join(missing)


def test_every_option_of_the_options_page_exists(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    there_are = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out))

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", OPTIONS_PAGE)) - there_are == set()
    assert set(re.findall(r"^\| `[^|]*\| `(\w+)` \|", OPTIONS_PAGE, flags=re.M)) == set(PARAMETERS)
