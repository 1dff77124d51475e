"""The words of promptflow's command `pf`: each is taken for the word here, or answered with it. One table says which.

`batchflow run create --flow my_flow --data rows.jsonl --column-mapping q='${data.q}' --stream` is a run, so that a script
moves by its first word.
Source: promptflow-devkit `_cli/_params.py` and `_cli/_pf/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.settings import MAX_FAILURES_INSTEAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Old(NamedTuple):
    """What an old option becomes."""

    new: str = ""
    """The option here; `FIRST` for the argument without an option; empty if it is left out."""
    takes: str = "one"
    """`one` value, `none`, or `many`: each further word with an equals sign is one more."""
    note: str = ""
    """Said when it is left out."""
    answer: str = ""
    """What to do instead, for an option that has no like here."""


FIRST: Final = "FIRST"
_IDLE = Old(takes="none")
_DISPLAY: Final = ("display_name", "description", "tags", "properties")
"""What `--set` changes for people only."""
_SILENT: Final = {"--verbose": _IDLE, "-d": Old("--debug", "none")}
_MANY: Final = {
    "--init": Old("--init", "many"),
    "--environment-variables": Old("--environment-variables", "many"),
}
_PAGES: Final = {
    "-r": Old(),
    "--max-results": Old(),
    "--all-results": _IDLE,
}
_RUN_BY_NAME: Final = {
    "--name": Old(FIRST),
    "-n": Old(FIRST),
    "--names": Old(FIRST),
    "--stream": _IDLE,
    "-s": _IDLE,
    **_PAGES,
    **_SILENT,
}
_OUTPUT: Final = Old("--output")

OPTIONS: Final[Mapping[str, Mapping[str, Old]]] = {
    "run": {
        "--flow": Old(FIRST),
        "--name": Old("--run-id"),
        "-n": Old("--run-id"),
        "-f": Old("--file"),
        "--column-mapping": Old("--map", "many"),
        "--map": Old("--map", "many"),
        "--connections": Old("--node-connections", "many"),
        "--node-connections": Old("--node-connections", "many"),
        "--stream": Old(takes="none"),
        "-s": Old(takes="none"),
        "--source": Old(
            answer="Give the flow and its data, and --resume-from FOLDER, which takes over the lines that promptflow completed."
        ),
        "--set": Old("--set", "many"),
        **_MANY,
        **_SILENT,
    },
    "resume": {**_RUN_BY_NAME, **_MANY},
    "show": _RUN_BY_NAME,
    "list": {
        "-r": Old("--limit"),
        "--max-results": Old("--limit"),
        "--all-results": Old("--limit=0", "none"),
        "--archived-only": Old(answer="Runs are folders here, and none is archived."),
        "--include-archived": _IDLE,
        "--output": _OUTPUT,
        "-o": _OUTPUT,
        **_SILENT,
    },
    "test": {
        "--flow": Old(FIRST),
        "--node": Old(answer="`batchflow test` runs the whole flow; its output shows each node."),
        "--interactive": Old(takes="none", answer="Give one turn: --input question=… --input chat_history='[…]'."),
        "--ui": Old(takes="none", answer="The output, the prompts and the time are printed."),
        "--collection": Old(note="--collection has no effect: there are no traces."),
        "--map": Old("--map", "many"),
        **_MANY,
        **_SILENT,
    },
    "check": {"--source": Old(FIRST), "--flow": Old(FIRST), **_SILENT},
    "connection create": _SILENT,
    "connection update": {"--name": Old(FIRST), "-n": Old(FIRST), **_SILENT},
    "connection show": {"--name": Old(FIRST), "-n": Old(FIRST), **_SILENT},
    "connection delete": {"--name": Old(FIRST), "-n": Old(FIRST), **_SILENT},
    "connection list": {**_PAGES, **_SILENT},
    "delete": {"--name": Old(FIRST), "-n": Old(FIRST), **_SILENT},
}
"""Command to the options that `pf` has for it."""

COMMANDS: Final[Mapping[str, str]] = {
    "run create": "run",
    "run list": "list",
    "run show": "show",
    "run show-metrics": "show",
    "run show-details": "show",
    "run visualize": "show",
    "run stream": "show",
    "run delete": "delete",
    "flow test": "test",
    "flow validate": "check",
}
"""The commands of `pf` that have a like here."""

_FOLDER = "A run is a folder, which `batchflow show` names: move it away, or run `batchflow delete RUN`."
ANSWERS: Final[Mapping[str, str]] = {
    "run archive": _FOLDER,
    "run restore": _FOLDER,
    "run update": "A run has no display name, description or tags. Give it a name at its start: --run-id NAME.",
    "run build": "Building images is not part of this package.",
    "flow init": "Write the flow's folder by hand; docs/moving-from-promptflow.md has what it can hold.",
    "flow serve": "Serving a flow is not part of this package.",
    "flow build": "Building images is not part of this package.",
    "flow save": "Write the flow.flex.yaml by hand: `entry: module:function`.",
    "config set": "Use `prefect config set`, or the variables on docs/options.md.",
    "config show": "Use `prefect config view`.",
    "tool list": "`batchflow check FLOW` names the packages of a flow's tools.",
    "tool init": "Write the tool's package by hand.",
    "tool validate": "`batchflow check FLOW` says what is wrong with a tool.",
    "trace delete": "There are no traces. Each line's record has its prompts' tokens and logs.",
    "service start": "No service is needed. `prefect server start` keeps Prefect's UI running.",
    "service stop": "No service is needed.",
    "service status": "No service is needed.",
}
"""The commands of `pf` that have no like here, and what to do instead."""


def translated(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give the words as this package has them, and notes on what was left out.

    Raises:
        InvalidOptionError: A word has no like here; the message says what to do instead.
    """
    left = list(words[1:] if words[:1] == ["pf"] else words)
    two = " ".join(left[:2])
    # A folder of that name is a flow.
    is_flow = len(left) > 1 and left[0] == "run" and Path(left[1]).exists()
    if answer := ANSWERS.get(two) if not is_flow else None:
        raise InvalidOptionError(f"There is no `batchflow {two}`. {answer}")
    if two in COMMANDS and not is_flow:
        command, left = COMMANDS[two], left[2:]
        head = [command]
    elif two in OPTIONS:
        command, head, left = two, left[:2], left[2:]
    else:
        command = left[0] if left else ""
        head, left = left[:1], left[1:]
    return _Translation(command, OPTIONS.get(command, {})).of(head, left)


class _Translation:
    def __init__(self, command: str, options: Mapping[str, Old]) -> None:
        self._command, self._options = command, options
        self._first: list[str] = []
        self._words: list[str] = []
        self._notes: list[str] = []

    def of(self, head: list[str], left: list[str]) -> tuple[list[str], list[str]]:
        while left:
            word = left.pop(0)
            if word == "--":
                self._words += [word, *left]
                break
            option, equals, value = word.partition("=")
            if self._command in ("run", "resume") and (
                instead := MAX_FAILURES_INSTEAD.get(option.removeprefix("--").replace("-", "_"))
            ):
                raise InvalidOptionError(f"There is no option {option}. Use --max-failures {instead}.")
            if (old := self._options.get(option)) is None:
                self._words.append(word)
            else:
                self._take(option, old, self._values(old, [value] if equals else [], left))
        if len(self._first) > 1:
            raise InvalidOptionError(f"Found {' and '.join(self._first)}. `batchflow {self._command}` takes one.")
        return [*head, *self._first, *self._words], self._notes

    def _values(self, old: Old, values: list[str], left: list[str]) -> list[str]:
        if old.takes != "none" and not values and left:
            values = [left.pop(0)]
        while old.takes == "many" and left and _is_pair(left[0]):
            values.append(left.pop(0))
        return values

    def _take(self, option: str, old: Old, values: list[str]) -> None:
        if old.answer:
            raise InvalidOptionError(f"There is no option {option}. {old.answer}")
        if old.note:
            self._notes.append(old.note)
        if old.new == FIRST:
            self._first += values
        elif old.new == "--set":
            self._set(values)
        elif old.new == "--output":
            if values != ["table"]:
                self._words.append("--json" if values == ["json"] else f"--output={' '.join(values)}")
        elif old.takes == "none":
            self._words += [old.new] if old.new else []
        elif old.new:
            if option == "--connections":
                _check_node_connections(values)
            self._words += [f"{old.new}={value}" for value in values] or [old.new]

    def _set(self, values: list[str]) -> None:
        names = [value.partition("=")[0] for value in values]
        others = [name for name in names if name.partition(".")[0] not in _DISPLAY]
        if others or not names:
            raise InvalidOptionError(
                f"There is no option --set for {', '.join(others) or 'nothing'}. Use the option of that name, such as --data, "
                "--map or --variant; see `batchflow run --help`."
            )
        self._notes.append(f"--set {', '.join(names)} has no effect: a run has a name (--run-id) and no other texts.")


def _is_pair(word: str) -> bool:
    """Whether a word is one more `name=value`, and not an option or a path."""
    return "=" in word and not word.startswith("-") and not Path(word).exists()


def _check_node_connections(values: Sequence[str]) -> None:
    if not values or any("." not in value.partition("=")[0] for value in values):
        raise InvalidOptionError(
            "There is no option --connections. Use --node-connections NODE.INPUT=NAME to give a node another connection, or "
            "--connection NAME=BLOCK or NAME=FILE to say where a connection is."
        )
