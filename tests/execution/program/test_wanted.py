"""Annotations of functions, classes, nodes and constructors: in every spelling they give the same, built from the row."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import InvalidOptionError, innermost_code
from prefect_batchflow.execution.program.loader import load_program
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import check, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Outcome = tuple[list[Any], list[str]]
    Run = Callable[..., Outcome]

pytestmark = pytest.mark.usefixtures("fresh_imports")

HEADER = """
import dataclasses, datetime, decimal, enum, functools, inspect, typing, uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import *
from uuid import UUID
import pydantic
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

class Mode(Enum):
    FAST = "fast"
    NONE = ""

class Tone(StrEnum):
    WARM = "warm"

class Level(IntEnum):
    LOW = 1

@dataclass
class Address:
    zip: int

@dataclass
class User:
    name: str
    age: int = 3
    home: Optional[Address] = None

    def __post_init__(self):
        if self.age > 150: raise ValueError("too old")

class Answer(BaseModel):
    score: float
    tags: list[str] = []

class Row(TypedDict):
    n: int
    note: NotRequired[str]

class Strange:
    pass

Count = NewType("Count", int)
Alias = Optional[int]
Named = TypeAliasType("Named", int)

def told(v):
    if dataclasses.is_dataclass(v): return [type(v).__name__, *map(told, (getattr(v, f.name) for f in dataclasses.fields(v)))]
    if isinstance(v, BaseModel): return [type(v).__name__, v.model_dump()]
    if isinstance(v, (list, tuple, set, deque)): return [type(v).__name__, *map(told, v)]
    if isinstance(v, dict): return {k: told(x) for k, x in v.items()}
    return [type(v).__name__, v.name if isinstance(v, Enum) else v if isinstance(v, (int, float, str, type(None))) else str(v)]
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the rows through a flow as a run does, without a worker process; give outputs and messages of errors."""

    def lines_of(program: Any, rows: Any, mapping: Any) -> Outcome:
        data = tmp_path / f"rows.{'csv' if isinstance(rows, str) else 'jsonl'}"
        data.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        source, description = open_source(data, name="data"), program.description
        more = {"takes_any": description.takes_any}
        inventory = check([source], description.inputs, mapping, **more)
        outputs, errors = [], []
        for line in read_lines([source], description.inputs, mapping, inventory, **more):
            ran = program.run_line(line.line_number, line.inputs) if line.error is None else None
            error = line.error if ran is None else ran["error"]
            outputs.append(None if ran is None or ran["output"] is None else ran["output"])
            if error is not None:
                errors.append(f"{innermost_code(error)}: {error['message']}")
        errors += [f"note: {note}" for note in inventory.notes]
        return outputs, errors

    def run(code: str, rows: Any, entry: str = "main", mapping: Any = None, init: Any = None, **files: str) -> Outcome:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(dedent(text))
        file = tmp_path / "flow.py"
        file.write_text(code)
        return lines_of(load_program(load_flow(f"{file}:{entry}"), init), rows, mapping or {})

    return run


def cells(*texts: str) -> str:
    """A csv with a column `v`."""
    out = io.StringIO()
    csv.writer(out).writerows([["v", "w"], *([text, "w"] for text in texts)])
    return out.getvalue()


def main(annotation: str, default: str = "") -> str:
    return f"{HEADER}\ndef main(v: {annotation}{f' = {default}' if default else ''}): return [told(v)]\n"


def values(outcome: Outcome) -> list[Any]:
    assert outcome[1] == []
    return [output["output"] for output in outcome[0]]


CELLS: list[tuple[str, str, Any]] = [
    ("int", "5", ["int", 5]),
    ("Optional[int]", "5", ["int", 5]),
    ("int | None", "5", ["int", 5]),
    ("None | int", "5", ["int", 5]),
    ("Union[int, None]", "5", ["int", 5]),
    ("typing.Optional['int']", "5", ["int", 5]),
    ("'int | None'", "5", ["int", 5]),
    ("Annotated[int, 'a number']", "5", ["int", 5]),
    ("Annotated[Optional[int], 'a number']", "5", ["int", 5]),
    ("Optional[Annotated[int, 'a number']]", "5", ["int", 5]),
    ("Annotated[int, Field(gt=3)]", "5", ["int", 5]),
    ("Count", "5", ["int", 5]),
    ("Alias", "5", ["int", 5]),
    ("Named", "5", ["int", 5]),
    ("Optional[Named]", "5", ["int", 5]),
    ("int", " 5", ["int", 5]),
    ("float | None", "5", ["float", 5.0]),
    ("bool | None", "false", ["bool", False]),
    ("Optional[bool]", "True", ["bool", True]),
    ("Optional[str]", "5", ["str", "5"]),
    ("Union[int, str]", "5", ["str", "5"]),
    ("int | float", "5.5", ["float", 5.5]),
    ("Any", "5", ["str", "5"]),
    ("object", "5", ["str", "5"]),
    ("Strange", "5", ["str", "5"]),
    ("Optional[Strange]", "5", ["str", "5"]),
    ("Callable", "5", ["str", "5"]),
    ("Iterable[str]", "5", ["str", "5"]),
    ("Iterable[str]", '["a"]', ["list", ["str", "a"]]),
    ("Optional[Iterable[int]]", '["1"]', ["list", ["int", 1]]),
    ("Collection[int]", '["1"]', ["list", ["int", 1]]),
    ("TypeVar('N', bound=int)", "5", ["int", 5]),
    ("TypeVar('N', bool, date)", "2026-01-02", ["date", "2026-01-02"]),
    ("TypeVar('T')", "5", ["str", "5"]),
    ("list[str]", '["a"]', ["list", ["str", "a"]]),
    ("List[int]", '["1", 2]', ["list", ["int", 1], ["int", 2]]),
    ("List", '["1"]', ["list", ["str", "1"]]),
    ("Optional[list[str]]", '["a"]', ["list", ["str", "a"]]),
    ("list[str] | None", '["a"]', ["list", ["str", "a"]]),
    ("Annotated[list[str], 'x']", '["a"]', ["list", ["str", "a"]]),
    ("Sequence[str]", '["a"]', ["list", ["str", "a"]]),
    ("list[list[int]]", '[["1"]]', ["list", ["list", ["int", 1]]]),
    ("dict[str, Any]", '{"a": 1}', {"a": ["int", 1]}),
    ("Dict[str, int]", '{"a": "1"}', {"a": ["int", 1]}),
    ("Mapping[str, float]", '{"a": "1"}', {"a": ["float", 1.0]}),
    ("Optional[dict]", '{"a": "1"}', {"a": ["str", "1"]}),
    ("tuple[int, str]", '[1, "a"]', ["tuple", ["int", 1], ["str", "a"]]),
    ("tuple[int, ...]", "[1, 2]", ["tuple", ["int", 1], ["int", 2]]),
    ("set[int]", "[1, 1]", ["set", ["int", 1]]),
    ("deque[int]", "[1]", ["deque", ["int", 1]]),
    ("Literal['a', 'b']", "a", ["str", "a"]),
    ("Optional[Literal['a', 'b']]", "a", ["str", "a"]),
    ("Literal[1, 2]", "1", ["int", 1]),
    ("Literal['', 'a'] | None", "", ["str", ""]),
    ("Mode", "fast", ["Mode", "FAST"]),
    ("Optional[Mode]", "", ["Mode", "NONE"]),
    ("Tone", "warm", ["Tone", "WARM"]),
    ("Optional[Tone]", "", ["NoneType", None]),
    ("Level", "1", ["Level", "LOW"]),
    ("list[Mode]", '["fast"]', ["list", ["Mode", "FAST"]]),
    ("datetime.datetime", "2026-01-02T03:04:05", ["datetime", "2026-01-02 03:04:05"]),
    ("Optional[datetime.datetime]", "2026-01-02", ["datetime", "2026-01-02 00:00:00"]),
    ("date", "2026-01-02", ["date", "2026-01-02"]),
    ("datetime.time", "03:04", ["time", "03:04:00"]),
    ("timedelta", "PT90S", ["timedelta", "0:01:30"]),
    ("Path", "a/b", ["PosixPath", "a/b"]),
    ("Optional[Path]", "", ["NoneType", None]),
    ("UUID", "00000000-0000-0000-0000-000000000005", ["UUID", "00000000-0000-0000-0000-000000000005"]),
    ("Decimal", "1.10", ["Decimal", "1.10"]),
    ("User", '{"name": "a", "age": "5", "home": {"zip": "7"}}', ["User", ["str", "a"], ["int", 5], ["Address", ["int", 7]]]),
    ("Optional[User]", "", ["NoneType", None]),
    ("Answer", '{"score": "0.5"}', ["Answer", {"score": 0.5, "tags": []}]),
    ("list[Answer]", '[{"score": 1}]', ["list", ["Answer", {"score": 1.0, "tags": []}]]),
    ("Row", '{"n": "1", "note": "x"}', {"n": ["int", 1], "note": ["str", "x"]}),
    ("list[Row]", '[{"n": "1"}]', ["list", {"n": ["int", 1]}]),
    ("Optional[Row]", '{"n": "1"}', {"n": ["int", 1]}),
    ("dict[str, Row] | None", '{"a": {"n": "1"}}', {"a": {"n": ["int", 1]}}),
    ("Optional[int]", "", ["NoneType", None]),
    ("float | None", "", ["NoneType", None]),
    ("Optional[bool]", "", ["NoneType", None]),
    ("Optional[list[str]]", "", ["NoneType", None]),
    ("Optional[str]", "", ["str", ""]),
    ("int | str | None", "", ["str", ""]),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "cell", "found"), CELLS, ids=[f"{row[0]} of {row[1]!r}" for row in CELLS])
@pytest.mark.parametrize("future", [False, True], ids=["evaluated", "text"])
def test_a_cell_of_a_csv_becomes_what_the_annotation_says(
    run: Run, annotation: str, cell: str, found: Any, future: bool
) -> None:
    code = "from __future__ import annotations\n" * future + main(annotation)

    assert values(run(code, cells(cell))) == [[found]]


JSON: list[tuple[str, Any, Any]] = [
    ("Optional[int]", None, ["NoneType", None]),
    ("Optional[int]", 5.0, ["int", 5]),
    ("int", None, ["NoneType", None]),
    ("list[str]", None, ["NoneType", None]),
    ("list[str]", ["a"], ["list", ["str", "a"]]),
    ("Optional[str]", 5, ["str", "5"]),
    ("Union[int, str]", 5, ["int", 5]),
    ("dict[str, int]", {"a": 1}, {"a": ["int", 1]}),
    ("User", {"name": "a"}, ["User", ["str", "a"], ["int", 3], ["NoneType", None]]),
    ("User | None", None, ["NoneType", None]),
    ("Answer", {"score": 1, "more": 2}, ["Answer", {"score": 1.0, "tags": []}]),
    ("datetime.datetime", 0, ["datetime", "1970-01-01 00:00:00+00:00"]),
    ("Decimal", 2, ["Decimal", "2"]),
    ("Decimal", "2.50", ["Decimal", "2.50"]),
    ("Literal[1]", 1, ["int", 1]),
    ("Level", 1, ["Level", "LOW"]),
    ("timedelta", 90, ["timedelta", "0:01:30"]),
    ("User | str", "plain", ["str", "plain"]),
    ("User | str", {"name": "a"}, ["User", ["str", "a"], ["int", 3], ["NoneType", None]]),
]


@pytest.mark.parametrize(("annotation", "value", "found"), JSON, ids=[f"{row[0]} of {row[1]!r}" for row in JSON])
def test_a_value_of_json_becomes_what_the_annotation_says(run: Run, annotation: str, value: Any, found: Any) -> None:
    code = main(annotation)

    assert values(run(code, [{"v": value}])) == [[found]]


MISFITS: list[tuple[str, Any, str]] = [
    ("Optional[int]", "x", "InputTypeError: Line 0 (.*): input 'v' is of type int, found str 'x'"),
    ("bool | None", "yes", "InputTypeError: Line 0 (.*): input 'v' is of type bool, found str 'yes'"),
    ("list[int]", '["x"]', r"InputTypeError: Line 0: input 'v' is annotated list\[int\], found list \['x'\] \(0: Input"),
    ("list[str]", "{}", "InputTypeError: Line 0 .*: input 'v' is of type list, found str '{}'"),
    ("list[str]", "[", "InputParseError: .*input 'v' is of type list, found text that is not JSON"),
    ("dict[str, Any]", "x", r"InputTypeError: Line 0: input 'v' is annotated dict\[str, .*Any\], found str 'x' \(Input"),
    ("Literal['a']", "b", r"annotated .*Literal\['a'\], found str 'b' \(Input should be 'a'\)"),
    ("Mode", "slow", r"annotated Mode, found str 'slow' \(Input should be 'fast' or ''\)"),
    ("datetime.datetime", "soon", "input 'v' is annotated datetime, found str 'soon'"),
    ("datetime.datetime", "", "input 'v' is annotated datetime, found str ''"),
    ("User", '{"name": 1, "age": "x"}', r"found str .*\(name: Input should be a valid string; age: Input should be"),
    ("User", '{"name": "a", "age": 200}', "too old"),
    ("User", "{}", "name: Field required"),
    ("User", "text", "annotated User, found str 'text'"),
    ("Answer", '{"score": "x"}', "score: Input should be a valid number"),
    ("Row", "{}", "n: Field required"),
    ("Annotated[int, Field(gt=3)]", "1", "Input should be greater than 3"),
    ("Optional[User]", '{"name": {}}', "name: Input should be a valid string"),
    ("Decimal", "x", "Input should be a valid decimal"),
    ("UUID", "x", "Input should be a valid UUID"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "cell", "said"), MISFITS, ids=[f"{row[0]} of {row[1]!r}" for row in MISFITS])
def test_a_value_that_does_not_fit_fails_its_line_by_name(run: Run, annotation: str, cell: str, said: str) -> None:
    outputs, errors = run(main(annotation), cells(cell))

    assert outputs == [None]
    [error] = errors
    assert re.search(said, error), error
    assert error.startswith("Input")
    assert "'v'" in error
    assert "Change" in error


@pytest.mark.parametrize(
    ("annotation", "value"), [("User", None), ("datetime.datetime", None), ("Mode", None), ("User", 5), ("Answer", [])]
)
def test_null_and_other_things_fit_only_where_the_annotation_says_so(run: Run, annotation: str, value: Any) -> None:
    outputs, [error] = run(main(annotation), [{"v": value}])

    assert outputs == [None]
    assert error.startswith(
        f"InputTypeError: Line 0: input 'v' is annotated {annotation.removeprefix('datetime.')}, found"
    )


DEFAULTS: list[tuple[str, str, str, Any]] = [
    ("int", "None", "", ["NoneType", None]),
    ("User", "None", "", ["NoneType", None]),
    ("Mode", "Mode.FAST", "", ["Mode", "NONE"]),
    ("date", "date(2026, 1, 1)", "2026-01-02", ["date", "2026-01-02"]),
    ("date", "'soon'", "soon", ["str", "soon"]),
    ("list[str]", "None", '["a"]', ["list", ["str", "a"]]),
]


@pytest.mark.parametrize(("annotation", "default", "cell", "found"), DEFAULTS)
def test_a_default_widens_what_fits(run: Run, annotation: str, default: str, cell: str, found: Any) -> None:
    assert values(run(main(annotation, default), cells(cell), mapping={"v": "${data.v}"})) == [[found]]


@pytest.mark.parametrize(
    ("annotation", "default", "found"),
    [
        ("int", "5", ["int", 5]),
        ("bool", "True", ["bool", True]),
        ("list", "[1]", ["list", ["int", 1]]),
        ("date", "date(2026, 1, 1)", ["date", "2026-01-01"]),
        ("date", "'2026-01-01'", ["date", "2026-01-01"]),
        ("Level", "Level.LOW", ["Level", "LOW"]),
        ("Optional[int]", "5", ["NoneType", None]),
        ("Optional[date]", "date(2026, 1, 1)", ["NoneType", None]),
        ("str", "'x'", ["str", ""]),
    ],
)
def test_an_empty_cell_that_nobody_mapped_is_no_value(run: Run, annotation: str, default: str, found: Any) -> None:
    assert values(run(main(annotation, default), cells(""))) == [[found]]


@pytest.mark.parametrize(
    ("annotation", "default", "found"),
    [
        ("date", "date(2026, 1, 1)", ["date", "2026-01-01"]),
        ("Mode", "Mode.FAST", ["Mode", "FAST"]),
        ("Strange", "len", ["builtin_function_or_method", "<built-in function len>"]),
        ("date", "'soon'", ["str", "soon"]),
        ("User", "None", ["NoneType", None]),
        ("int", "5", ["int", 5]),
    ],
)
def test_without_a_column_the_code_s_default_applies(run: Run, annotation: str, default: str, found: Any) -> None:
    assert values(run(main(annotation, default), [{"q": 1}])) == [[found]]


class TestPlaces:
    """Where annotations can be: each callable here takes an `int | None` and a `date`, or the like."""

    ROWS = cells("5")
    FOUND = (["int", 5],)

    @pytest.mark.parametrize(
        ("code", "entry"),
        [
            ("async def main(v: Optional[int]): return told(v)", "main"),
            ("def main(v: Optional[int]):\n    yield str(told(v))", "main"),
            ("class Main:\n    def __call__(self, v: 'Optional[int]'): return told(v)", "Main"),
            ("class Main:\n    async def __call__(self, v: Optional[int]): return told(v)", "Main"),
            ("class Base:\n    def __call__(self, v: int | None): return told(v)\nclass Main(Base): pass", "Main"),
            ("class Main:\n    @staticmethod\n    def go(v: Optional[int]): return told(v)", "Main.go"),
            ("class Main:\n    @classmethod\n    def go(cls, v: Optional[int]): return told(v)", "Main.go"),
            ("class Main:\n    def go(self, v: Optional[int]): return told(v)\nmain = Main().go", "main"),
            ("class Main:\n    def __call__(self, v: Optional[int]): return told(v)\nmain = Main()", "main"),
            ("def f(w, v: Optional[int]): return told(v)\nmain = functools.partial(f, 'w')", "main"),
            ("def f(v: Optional[int], k): return told(v)\nmain = functools.partial(f, k=len)", "main"),
            (
                "def deco(f):\n    @functools.wraps(f)\n    def inner(*a, **k): return f(*a, **k)\n    return inner\n"
                "@deco\ndef main(v: Optional[int]): return told(v)",
                "main",
            ),
            ("from promptflow.core import tool\n@tool\ndef main(v: Optional[int]): return told(v)", "main"),
            ("from promptflow.tracing import trace\n@trace\ndef main(v: 'Optional[int]'): return told(v)", "main"),
            ("def main(v: Optional[int], /): return told(v)", "main"),
            ("def main(*, v: Optional[int]): return told(v)", "main"),
            ("def main(q='x', /, v: Optional[int] = None): return told(v)", "main"),
            ("def main(*args, v: Optional[int]): return told(v)", "main"),
            ("main = lambda v: told(int(v))", "main"),
            ("def main(**row: int): return told(row['v'])", "main"),
            (
                "class Keys(TypedDict):\n    v: Optional[int]\n    k: NotRequired[int]\n"
                "def main(**row: Unpack[Keys]): return told(row['v'])",
                "main",
            ),
        ],
        ids=[
            "async", "generator", "class", "async class", "inherited", "static", "class method", "bound method", "object",
            "partial by position", "partial by name", "wraps", "tool", "trace", "positional only", "keyword only",
            "after positional only", "after args", "no annotation", "others", "unpacked",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("future", [False, True], ids=["evaluated", "text"])
    def test_every_kind_of_callable(self, run: Run, code: str, entry: str, future: bool) -> None:
        whole = "from __future__ import annotations\n" * future + HEADER + code
        rows = "v\n5\n" if "row" in code else self.ROWS

        outputs = values(run(whole, rows, entry, {"v": "${data.v}"}))

        assert outputs in ([["int", 5]], ["['int', 5]"])

    def test_names_of_type_checkers_are_no_type_and_the_others_stay(self, run: Run) -> None:
        code = f"""from __future__ import annotations
{HEADER}
if TYPE_CHECKING:
    from elsewhere import Thing
def main(v: Optional[int], w: Thing, x: list[Thing] = None): return [told(v), told(w), told(x)]
"""
        assert values(run(code, cells("5"))) == [[["int", 5], ["str", "w"], ["NoneType", None]]]

    def test_typing_itself_can_be_for_type_checkers_only(self, run: Run) -> None:
        code = """from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from typing import Optional, Any
    from collections.abc import Sequence
def main(v: Optional[int], w: Sequence[str]): return [v, w]
"""
        assert values(run(code, 'v,w\n5,"[""a""]"\n')) == [[5, ["a"]]]

    def test_names_of_enclosing_functions_and_classes_are_known(self, run: Run) -> None:
        code = f"""from __future__ import annotations
{HEADER}
def make():
    @dataclass
    class Local:
        n: int
    def main(v: Local): return [told(v), Local.__name__]
    return main
main = make()

class Flow:
    @dataclass
    class Inner:
        n: int
    def __call__(self, v: Inner): return told(v)
"""
        rows = [{"v": {"n": "1"}}]
        assert values(run(code, rows)) == [[["Local", ["int", 1]], "Local"]]
        assert values(run(code, rows, "Flow")) == [["Inner", ["int", 1]]]

    def test_yaml_types_stay_and_classes_are_built_from_what_they_give(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "code.py").write_text(
            f"{HEADER}\ndef main(v: int, u: User, d: Decimal): return [told(v), told(u), told(d)]\n"
        )
        types = "{v: {type: string}, u: {type: object}, d: {type: object}}"
        (tmp_path / "flow.flex.yaml").write_text(f"entry: code:main\ninputs: {types}\n")
        program = load_program(load_flow(tmp_path))
        data = tmp_path / "rows.csv"
        data.write_text('v,u,d\n5,"{""name"": ""a""}",1.10\n')
        source = open_source(data, name="data")
        inventory = check([source], program.description.inputs, {})
        [line] = read_lines([source], program.description.inputs, {}, inventory)

        ran = program.run_line(0, line.inputs)

        user = ["User", ["str", "a"], ["int", 3], ["NoneType", None]]
        assert ran["output"] == {"output": [["str", "5"], user, ["Decimal", "1.10"]]}
        assert ran["inputs"]["d"] == "1.10"


NODE = """
from promptflow.core import tool, ToolProvider
{header}
{code}
"""


class TestNodes:
    def load(self, tmp_path: Path, code: str, inputs: str, types: str = "{v: {type: string}}") -> Any:
        (tmp_path / "tool.py").write_text(NODE.format(header=HEADER, code=code))
        (tmp_path / "flow.dag.yaml").write_text(
            f"inputs: {types}\noutputs: {{out: {{type: object, reference: '${{a.output}}'}}}}\n"
            f"nodes: [{{name: a, type: python, source: {{type: code, path: tool.py}}, inputs: {inputs}}}]\n"
        )
        return load_program(load_flow(tmp_path))

    @pytest.mark.parametrize(
        ("annotation", "value", "found"),
        [
            ("datetime.datetime", "2026-01-02", ["datetime", "2026-01-02 00:00:00"]),
            ("'Optional[Path]'", "a/b", ["PosixPath", "a/b"]),
            ("Mode", "fast", ["Mode", "FAST"]),
            ("User", {"name": "a"}, ["User", ["str", "a"], ["int", 3], ["NoneType", None]]),
            ("Answer", '{"score": 1}', ["Answer", {"score": 1.0, "tags": []}]),
            ("list[Row]", [{"n": "1"}], ["list", {"n": ["int", 1]}]),
            ("Literal['a']", "a", ["str", "a"]),
            ("int", "5", ["str", "5"]),
            ("Optional[int]", "5", ["str", "5"]),
            ("list[int]", ["1"], ["list", ["str", "1"]]),
            ("Union[str, dict]", [1], ["list", ["int", 1]]),
        ],
        ids=str,
    )
    def test_rows_are_built_for_types_without_a_rule_of_promptflow(
        self, tmp_path: Path, annotation: str, value: Any, found: Any
    ) -> None:
        program = self.load(tmp_path, f"@tool\ndef f(v: {annotation}): return told(v)", "{v: '${inputs.v}'}")

        assert program.run_line(0, {"v": value})["output"] == {"out": found}

    @pytest.mark.parametrize(
        ("annotation", "value", "found"),
        [
            ("Optional[int]", "'5'", ["int", 5]),
            ("int | None", "'5'", ["int", 5]),
            ("'Annotated[int, 1]'", "'5'", ["int", 5]),
            ("Count", "'5'", ["int", 5]),
            ("list[str]", "'[\"a\"]'", ["list", ["str", "a"]]),
            ("Optional[List[int]]", "'[1]'", ["list", ["int", 1]]),
            ("Path", "a/b", ["str", "a/b"]),
            ("User", "{name: a}", {"name": ["str", "a"]}),
            ("Mode", "fast", ["str", "fast"]),
            ("Optional[Tone]", "warm", ["str", "warm"]),
        ],
        ids=str,
    )
    def test_constants_in_every_spelling_go_by_promptflow(
        self, tmp_path: Path, annotation: str, value: str, found: Any
    ) -> None:
        program = self.load(tmp_path, f"@tool\ndef f(v: {annotation}): return told(v)", f"{{v: {value}}}")

        assert program.run_line(0, {"v": ""})["output"] == {"out": found}

    def test_a_row_that_does_not_fit_fails_its_line(self, tmp_path: Path) -> None:
        program = self.load(tmp_path, "@tool\ndef f(v: date): return told(v)", "{v: '${inputs.v}'}")

        error = program.run_line(0, {"v": "soon"})["error"]

        assert innermost_code(error) == "InputTypeError"
        assert error["message"].startswith("Node 'a', input 'v' is annotated date, found str 'soon' (Input should be")


class TestInit:
    CODE = """
class Main:
    def __init__(self, {parameters}): self.all = told([{names}])
    def __call__(self, v): return self.all
"""

    @pytest.mark.parametrize(
        ("annotation", "given", "found"),
        [
            ("int", "5", ["int", 5]),
            ("int", 2.5, ["float", 2.5]),
            ("Optional[int]", "5", ["int", 5]),
            ("Optional[int]", "", ["NoneType", None]),
            ("int | None", None, ["NoneType", None]),
            ("bool", "false", ["bool", False]),
            ("str", 5, ["str", "5"]),
            ("str", True, ["str", "true"]),
            ("list[str]", '["a"]', ["list", ["str", "a"]]),
            ("dict", '{"a": 1}', {"a": ["int", 1]}),
            ("Path", "a/b", ["PosixPath", "a/b"]),
            ("date", "2026-01-02", ["date", "2026-01-02"]),
            ("User", {"name": "a"}, ["User", ["str", "a"], ["int", 3], ["NoneType", None]]),
            ("Mode", "fast", ["Mode", "FAST"]),
            ("Any", "5", ["str", "5"]),
            ("Strange", "5", ["str", "5"]),
        ],
        ids=str,
    )
    def test_arguments_of_a_constructor(self, run: Run, annotation: str, given: Any, found: Any) -> None:
        code = HEADER + self.CODE.format(parameters=f"a: {annotation}", names="a")

        assert values(run(code, cells("x"), "Main", init={"a": given})) == [["list", found]]

    @pytest.mark.parametrize(
        ("annotation", "given"), [("int", "s3cret"), ("date", "s3cret"), ("User", {"age": "s3cret"})]
    )
    def test_an_argument_that_does_not_fit_is_refused_and_not_shown(
        self, run: Run, annotation: str, given: Any
    ) -> None:
        code = HEADER + self.CODE.format(parameters=f"a: {annotation}", names="a")

        with pytest.raises(
            InvalidOptionError, match=f"init 'a' of the flow 'Main' is annotated {annotation}, found a"
        ) as caught:
            run(code, cells("x"), "Main", init={"a": given})

        assert "s3cret" not in str(caught.value)

    def test_objects_given_in_python_stay_the_same(self, run: Run) -> None:
        methods = "def __init__(self, a: Callable, b: deque): self.b = b\n    def __call__(self, v): return len(self.b)"

        assert values(run(f"{HEADER}class Main:\n    {methods}", cells("x"), "Main", init={"a": len, "b": [1, 2]})) == [
            2
        ]


class TestAnyRow:
    """`**row`: without a mapping it is the row; with one, what the mapping names, and no warning."""

    CODE = "def main(**row): return row\n"

    def test_with_a_mapping_it_gets_what_the_mapping_names(self, run: Run) -> None:
        outputs, told = run(self.CODE, [{"q": 1, "a": 2}], mapping={"x": "${data.q}", "k": "${data.a}"})

        assert (outputs, told) == ([{"x": 1, "k": 2}], [])

    def test_without_a_mapping_it_gets_the_row(self, run: Run) -> None:
        rows = [{"q": 1, "a": {"b": [None]}}, {"q": 2, "a": "x"}]

        assert run(self.CODE, rows) == (rows, [])

    def test_beside_named_parameters_it_gets_only_what_the_mapping_names(self, run: Run) -> None:
        code = "def main(q: int, *, k=5, **row): return [q, k, row]\n"

        assert values(run(code, cells_of({"q": "1", "a": "2"}))) == [[1, 5, {}]]
        assert values(run(code, cells_of({"q": "1", "a": "2"}), mapping={"a": "${data.a}"})) == [[1, 5, {"a": "2"}]]

    def test_the_columns_of_failed_lines_are_no_inputs(self, run: Run) -> None:
        row = {"q": 1, "line_number": 3, "_error": {}, "_error_class": "x", "_attempts": 1}

        assert run(self.CODE, [row])[0] == [{"q": 1}]

    def test_a_function_without_such_a_parameter_is_warned(self, run: Run) -> None:
        _, told = run("def main(q): return q\n", [{"q": 1}], mapping={"x": "${data.q}"})

        assert told == ["note: inputs_mapping: 'x' is not an input of the flow; its inputs are 'q'."]

    def test_a_positional_only_parameter_between_gets_its_default(self, run: Run) -> None:
        code = "def main(a, b=len, c=3, /): return [a, b is len, c]\n"

        assert values(run(code, [{"a": 1, "c": 4}], mapping={"c": "${data.c}"})) == [[1, True, 4]]


def cells_of(row: dict[str, str]) -> str:
    return f"{','.join(row)}\n{','.join(row.values())}\n"


SCRIPT = """
import pickle, sys
source = '''
{future}
from dataclasses import dataclass, field
from datetime import date
from typing import Optional, TypedDict
from pydantic import BaseModel
class Item(BaseModel):
    n: int
class Row(TypedDict):
    item: Item
@dataclass
class User:
    row: Row
    since: Optional[date] = None
    items: list[Item] = field(default_factory=list)
def f(n: Optional[int], user: User): return [type(n).__name__, repr(user)]
class C:
    def __init__(self, since: Optional[date]): self.since = since
    def __call__(self, n: Optional[int], user: User): return [type(n).__name__, repr(user), repr(self.since)]
'''
exec(compile(source, "<cell>", "exec"), sys.modules["__main__"].__dict__)
from prefect_batchflow.definition.load import load_flow
sys.stdout.buffer.write(pickle.dumps([load_flow(f), load_flow(C)]))
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations"], ids=["evaluated", "text"])
def test_a_notebook_s_annotations_travel(future: str, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{future}", future)], capture_output=True, check=True, cwd=tmp_path
    )
    function, kind = pickle.loads(made.stdout)  # noqa: S301 - made here
    user = {"row": {"item": {"n": "1"}}, "since": "2026-01-02", "items": [{"n": 2}]}
    shown = "User(row={'item': Item(n=1)}, since=datetime.date(2026, 1, 2), items=[Item(n=2)])"

    program = load_program(function)
    ran = program.run_line(0, {"n": 5, "user": user})
    built = load_program(kind, {"since": "2026-01-02"}).run_line(0, {"n": 5, "user": user})

    assert program.description.inputs["n"].type == "int"
    assert (ran["error"], ran["output"]) == (None, {"output": ["int", shown]})
    assert (built["error"], built["output"]) == (None, {"output": ["int", shown, "datetime.date(2026, 1, 2)"]})
