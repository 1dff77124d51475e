"""The words of promptflow's command line: what is typed there is taken, or answered with the word here."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.cli.commands import app, main
from prefect_batchflow.cli.old_words import ANSWERS, COMMANDS, OPTIONS, translated
from prefect_batchflow.exceptions import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable

TAKEN = [
    # From the examples in the help of promptflow-devkit 1.18.5.
    ("run create -f run.yaml", "run --file=run.yaml"),
    ("run create -f run.yaml --data rows.jsonl", "run --file=run.yaml --data rows.jsonl"),
    (
        "run create --flow f --data d --column-mapping truth='${data.answer}' guess='${run.outputs.category}' --run r "
        "--variant '${n.v}' --stream",
        "run f --data d --map=truth='${data.answer}' --map=guess='${run.outputs.category}' --run r --variant '${n.v}'",
    ),
    (
        "run create -f run.yaml --init key1=value1 key2=value2",
        "run --file=run.yaml --init=key1=value1 --init=key2=value2",
    ),
    (
        "run create --flow f --data d --connections node1.connection=a node1.deployment_name=gpt-35-turbo",
        "run f --data d --node-connections=node1.connection=a --node-connections=node1.deployment_name=gpt-35-turbo",
    ),
    (
        "run create --flow f --data d --environment-variables key1='${c.api_key}' key2=v --name n -s -d",
        "run f --data d --environment-variables=key1='${c.api_key}' --environment-variables=key2=v --run-id=n --debug",
    ),
    ("pf run create --flow=f --data=d --name=n --verbose", "run f --data=d --run-id=n"),
    ("run f --data d --column-mapping q='${data.q}' --stream", "run f --data d --map=q='${data.q}'"),
    ("run --data d --map a=1 b=2 --flow f", "run f --data d --map=a=1 --map=b=2"),
    ("run list", "list"),
    ("run list --max-results 10", "list --limit=10"),
    ("run list --all-results --include-archived -o table", "list --limit=0"),
    ("run list -r 5 --output json", "list --limit=5 --json"),
    ("run show --name n", "show n"),
    ("run show-metrics -n n", "show n"),
    ("run show-details --name n --max-results 5 --all-results", "show n"),
    ("run visualize -n n", "show n"),
    ("run visualize --names n", "show n"),
    ("run stream --name n", "show n"),
    ("resume --name n --stream", "resume n"),
    ("flow test --flow f", "test f"),
    ("flow test --flow f --inputs key1=val1 key2=val2", "test f --inputs key1=val1 key2=val2"),
    ("flow test --flow f --variant '${n.v}'", "test f --variant '${n.v}'"),
    ("flow test --flow f --init key1=value1 key2=value2", "test f --init=key1=value1 --init=key2=value2"),
    ("flow validate --source f", "check f"),
    ("connection create -f connection.yaml --set api_key=k", "connection create -f connection.yaml --set api_key=k"),
    ("connection create -f .env --name custom", "connection create -f .env --name custom"),
    ("connection update -n c --set api_key=k", "connection update c --set api_key=k"),
    ("connection show -n c", "connection show c"),
    ("connection list --max-results 5", "connection list"),
    ("connection delete --name c -y", "connection delete c -y"),
    # And what is not promptflow's stays.
    ("run f --data d -- --flow", "run f --data d -- --flow"),
    ("list", "list"),
    ("--help", "--help"),
    ("", ""),
]


@pytest.mark.parametrize(("typed", "meant"), TAKEN, ids=[typed for typed, _ in TAKEN])
def test_a_command_of_promptflow_is_taken(typed: str, meant: str) -> None:
    words, notes = translated(shlex.split(typed))

    assert (words, notes) == (shlex.split(meant), [])
    if words and words[0] != "--help" and "--" not in words:
        app.parse_args(words, print_error=False, exit_on_error=False)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "run create --source folder",
            "There is no option --source. Give the flow and its data, and --resume-from FOLDER",
        ),
        ("run create -f r.yaml --set data=d", "There is no option --set for data. Use the option of that name"),
        ("flow test --flow f --node n", "There is no option --node. `batchflow test` runs the whole flow"),
        ("flow test --flow f --interactive", "There is no option --interactive. Give one turn"),
        ("flow test --flow f --ui", "There is no option --ui."),
        ("run list --archived-only", "There is no option --archived-only. Runs are folders here"),
        (
            "run f --data d --connections c=b",
            "There is no option --connections. Use --node-connections NODE.INPUT=NAME",
        ),
        ("run f --data d --fail-fast", "There is no option --fail-fast. Use --max-failures 1."),
        ("run f --flow g --flow h", "Found g and h. `batchflow run` takes one."),
        *((command, f"There is no `batchflow {command}`. {answer}") for command, answer in ANSWERS.items()),
    ],
)
def test_what_has_no_like_here_is_answered(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(typed)) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_texts_for_people_are_left_out_with_a_note() -> None:
    words, notes = translated(["run", "create", "--flow", "f", "--set", "display_name=A run", "tags.Type=Test"])
    assert words == ["run", "f"]
    assert notes == ["--set display_name, tags.Type has no effect: a run has a name (--run-id) and no other texts."]


def test_a_folder_with_an_old_words_name_is_a_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "create").mkdir()
    (tmp_path / "a=b").mkdir()

    assert translated(["run", "create", "--data", "d"])[0] == ["run", "create", "--data", "d"]
    assert translated(["run", "--map", "q=1", "a=b", "--data", "d"])[0] == ["run", "--map=q=1", "a=b", "--data", "d"]


def test_every_new_word_exists() -> None:
    for command, options in OPTIONS.items():
        parsed = app
        for word in command.split():
            parsed = parsed[word]
        there_are = {name for argument in parsed.assemble_argument_collection() for name in argument.names}
        for option, old in options.items():
            new = old.new.partition("=")[0]
            assert new in ("", "FIRST", "--set", "--output", *there_are), (command, option)
    assert {command.split()[0] for command in COMMANDS.values()} <= set(app)


def test_an_unknown_word_is_still_refused() -> None:
    with pytest.raises(InvalidOptionError):
        translated(["run", "update", "--name", "x"])
    assert main(["run", "f", "--data", "d", "--colum-mapping", "a=b"]) == 2


@pytest.mark.usefixtures("prefect_server")
def test_a_run_typed_as_for_promptflow_runs(
    tmp_path: Path, storage: Path, capsys: pytest.CaptureFixture[str], write_rows: Callable[..., Path]
) -> None:
    (tmp_path / "f.py").write_text("def f(a: str, b: str = 'none') -> str:\n    return a + b\n")
    words = ["run", "create", "--flow", f"{tmp_path / 'f.py'}:f", "--data", str(write_rows([{"x": "1", "y": "2"}]))]
    words += ["--column-mapping", "a=${data.x}", "b=${data.y}", "--name", "old", "--stream", "--storage", str(storage)]

    assert main([*words, "--json"]) == 0

    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["run_id"], Path(document["outputs"]).read_text()) == (
        "old",
        '{"line_number": 0, "output": "12"}\n',
    )
