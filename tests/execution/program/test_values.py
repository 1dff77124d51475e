"""What becomes what in JSON: the table of docs/outputs.md."""

from __future__ import annotations

import array
import json
import sys
import uuid
from collections import Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque, namedtuple
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel
from pydantic.dataclasses import dataclass as checked_dataclass

from prefect_batchflow.execution.program.record import encode_record, lenient
from prefect_batchflow.execution.program.values import ARRAY_LIMIT, plain

NOON = datetime(2026, 1, 2, 12, 0, 0, 5)


class Colour(Enum):
    RED = "red"
    DAY = date(2026, 1, 2)


class Level(IntEnum):
    LOW = 1


class Tone(StrEnum):
    WARM = "warm"


class Flag(IntFlag):
    A = 1
    B = 2


@dataclass
class Answer:
    kind: ClassVar[str] = "answer"
    text: Any
    seed: InitVar[int] = 7
    tags: set[str] = field(default_factory=set)

    def __post_init__(self, seed: int) -> None:
        self.seeded = seed


@dataclass(frozen=True, slots=True)
class Slotted:
    at: datetime


@checked_dataclass
class Checked:
    n: int


class Inner(BaseModel):
    when: datetime
    cost: Decimal


class Model(BaseModel):
    inner: Inner
    ids: set[uuid.UUID]


class Numbers(RootModel[list[int]]):
    pass


class Arbitrary(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    raw: deque[int]
    mystery: Any


class Old:
    """As pydantic's models of version 1: no `model_dump`."""

    __fields_set__: ClassVar[set[str]] = {"a"}
    __module__ = "pydantic.v1.main"

    def __iter__(self) -> Any:
        return iter([("a", Decimal(1))])


class Attrs:
    __attrs_attrs__: ClassVar[list[Any]] = [SimpleNamespace(name="x"), SimpleNamespace(name="y")]
    x, y = 1, (2, 3)


class Struct:
    __struct_fields__ = ("a",)
    a = Tone.WARM


class FsPath:
    def __fspath__(self) -> bytes:
        return b"a/\xff"


class SpecialDecimal(Decimal):
    pass


Point = namedtuple("Point", "x y")
ID = uuid.UUID(int=5)
ID_TEXT = "00000000-0000-0000-0000-000000000005"

TABLE: list[tuple[str, Any, Any]] = [
    ("uuid", ID, ID_TEXT),
    ("decimal", Decimal("1.10"), "1.10"),
    ("decimal without a value", Decimal("NaN"), "NaN"),
    ("subclass of decimal", SpecialDecimal("2.0"), "2.0"),
    ("date", date(2026, 1, 2), "2026-01-02"),
    ("datetime without zone", NOON, "2026-01-02T12:00:00.000005Z"),
    ("datetime with zone", NOON.replace(tzinfo=UTC), "2026-01-02T12:00:00.000005+00:00"),
    ("time", time(1, 2), "01:02:00"),
    ("duration", timedelta(minutes=1, milliseconds=5), 60.005),
    ("set", {"b", "a", "c"}, ["a", "b", "c"]),
    ("set of mixed things", frozenset({1, "a"}), ["a", 1]),
    ("tuple", (1, (2,)), [1, [2]]),
    ("named tuple", Point(1, 2), [1, 2]),
    ("own text", UserString("a"), "a"),
    ("deque", deque([1, ID]), [1, ID_TEXT]),
    ("range", range(3), [0, 1, 2]),
    ("array", array.array("i", [1, 2]), [1, 2]),
    ("own list", UserList([1]), [1]),
    ("keys", {"a": 1}.keys(), ["a"]),
    ("values", {"a": 1}.values(), [1]),
    ("items", {"a": 1}.items(), [["a", 1]]),
    ("path", Path("a/b"), "a/b"),
    ("pure path", PurePosixPath("/x"), "/x"),
    ("path of bytes", FsPath(), "a/�"),
    ("enum", Colour.RED, "red"),
    ("enum of a date", Colour.DAY, "2026-01-02"),
    ("int enum", Level.LOW, 1),
    ("str enum", Tone.WARM, "warm"),
    ("flag", Flag.A | Flag.B, 3),
    ("bytes", b"\xff\x00", "/wA="),
    ("bytearray", bytearray(b"a"), "YQ=="),
    ("memoryview", memoryview(b"a"), "YQ=="),
    ("dataclass", Answer("x", tags={"t"}), {"text": "x", "tags": ["t"]}),
    ("dataclass with slots", Slotted(NOON), {"at": "2026-01-02T12:00:00.000005Z"}),
    ("dataclass of pydantic", Checked(n=1), {"n": 1}),
    (
        "model",
        Model(inner=Inner(when=NOON, cost=Decimal("1.10")), ids={ID}),
        {"inner": {"when": "2026-01-02T12:00:00.000005", "cost": "1.10"}, "ids": [ID_TEXT]},
    ),
    ("root model", Numbers([1]), [1]),
    ("model with other things", Arbitrary(raw=deque([1]), mystery=IPv4Address("1.2.3.4")), {"raw": [1], "mystery": "1.2.3.4"}),
    ("model of old pydantic", Old(), {"a": "1"}),
    ("attrs", Attrs(), {"x": 1, "y": [2, 3]}),
    ("msgspec", Struct(), {"a": "warm"}),
    ("address", IPv4Address("1.2.3.4"), "1.2.3.4"),
    ("mapping", MappingProxyType({"a": {1}}), {"a": [1]}),
    ("own dict", UserDict({"a": 1}), {"a": 1}),
    ("default dict", defaultdict(list, {"a": [1]}), {"a": [1]}),
    ("ordered dict", OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    ("counter", Counter("aab"), {"a": 2, "b": 1}),
    ("whole number beyond floats", 10**400, 10**400),
    ("keys of numbers", {1: "a", 2.5: "b", None: "c"}, {"1": "a", "2.5": "b", "null": "c"}),
    ("key true", {True: 1}, {"true": 1}),
    ("key tuple", {(1, "a"): 2}, {'[1, "a"]': 2}),
    ("key date", {date(2026, 1, 2): 1}, {"2026-01-02": 1}),
    ("key uuid", {ID: 1}, {ID_TEXT: 1}),
    ("key enum", {Colour.RED: 1, Tone.WARM: 2, Level.LOW: 3}, {"red": 1, "warm": 2, "1": 3}),
    ("key path", {Path("a"): 1}, {"a": 1}),
    ("key deep inside", {"a": [Answer({(1,): Decimal(2)})]}, {"a": [{"text": {"[1]": "2"}, "tags": []}]}),
]  # fmt: skip


def record(**parts: Any) -> Any:
    empty = {"line_number": 3, "status": "Completed", "inputs": {}, "output": {}, "aggregation_inputs": {}}
    return {**empty, "error": None, "metrics": {}, "nodes": [], **parts}


@pytest.mark.parametrize(("value", "written"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_becomes_what_everywhere_alike(value: Any, written: Any) -> None:
    node = {"node": "n", "inputs": {"v": value}, "output": value}
    given_record = record(output={"v": value, "w": [value]}, aggregation_inputs={"${n.output}": value}, nodes=[node])
    given_record["metrics"] = {"v": value}

    stored = json.loads(encode_record(given_record))

    assert stored["error"] is None
    assert stored["output"] == {"v": written, "w": [written]}
    assert stored["aggregation_inputs"] == {"${n.output}": written}
    assert stored["nodes"] == [{"node": "n", "inputs": {"v": written}, "output": written}]
    assert stored["metrics"] == {"v": written}
    assert json.loads(lenient({"metrics": {"v": value}, "output": {}})) == {"metrics": {"v": written}, "output": {}}


class Numpy:
    """As values of numpy are: known by their module's name, and numpy itself is not imported."""

    __module__ = "numpy"

    def __init__(self, kind: str, value: Any, ndim: int = 0, size: int = 1) -> None:
        self.dtype = SimpleNamespace(kind=kind)
        self.ndim, self.size, self._value = ndim, size, value

    def item(self) -> Any:
        return self._value

    def tolist(self) -> Any:
        return self._value

    def __float__(self) -> float:
        return float(self._value)


class Pandas:
    __module__ = "pandas.core"

    def __init__(self, value: Any, ndim: int, size: int = 1) -> None:
        self._value, self.ndim, self.size, self.dtype = value, ndim, size, "int64"

    def tolist(self) -> Any:
        return self._value

    def to_dict(self, orient: str) -> Any:
        return self._value if orient == "records" else None


class NAType:
    __module__ = "pandas._libs.missing"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Numpy("f", 0.5), 0.5),
        (Numpy("i", 3), 3),
        (Numpy("b", True), True),
        (Numpy("f", [[0.5, 1.0]], ndim=2, size=2), [[0.5, 1.0]]),
        (Numpy("O", [Decimal(1)], ndim=1), ["1"]),
        (Pandas([1, 2], ndim=1), [1, 2]),
        (Pandas([{"a": 1}], ndim=2), [{"a": 1}]),
        (NAType(), None),
        ({Numpy("i", 3): 1}, {"3": 1}),
    ],
    ids=["float", "int", "bool", "array", "array of objects", "series", "frame", "NA", "key"],
)
def test_values_of_numpy_and_pandas(value: Any, written: Any) -> None:
    assert json.loads(encode_record(record(output={"v": value})))["output"] == {"v": written}
    assert "numpy" not in sys.modules


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Numpy("f", [], ndim=1, size=ARRAY_LIMIT + 1), "a Numpy of 100,001 values is too large"),
        (Numpy("c", 1j), "is not JSON"),
        (1j, "a complex is not JSON"),
        (object(), "a object is not JSON"),
        (Answer, "the class Answer is not JSON"),
        (Colour, "the class Colour is not JSON"),
        (len, "is not JSON"),
        ((n for n in [1]), "a generator is not JSON"),
        ({1: "a", Numpy("i", 1): "b"}, "two keys of a dict would both be written as '1'"),
        ({1: "a", "1": "b"}, "two keys of a dict would both be written as '1'"),
        ([{"deep": ({"null": "a", None: "b"},)}], "two keys of a dict would both be written as 'null'"),
        (10**5000, "Exceeds the limit"),
        ({(1,): object()}, "a object is not JSON"),
    ],
    ids=[
        "array",
        "complex array",
        "complex",
        "object",
        "class",
        "enum",
        "function",
        "generator",
        "keys",
        "a number and its text",
        "None and null",
        "int",
        "deep",
    ],
)
def test_a_value_without_a_form_fails_its_line_by_name(value: Any, why: str) -> None:
    stored = json.loads(encode_record(record(output={"good": 1, "bad": value})))

    assert stored["status"] == "Failed"
    assert stored["error"]["message"].startswith("'bad' of the output is not JSON: (")
    assert why in stored["error"]["message"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.uuids() | st.decimals(allow_nan=False) | st.dates()
        | st.binary() | st.datetimes() | st.timedeltas() | st.sampled_from(Level),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    )
)  # fmt: skip
def test_the_encoder_and_plain_write_the_same(value: Any) -> None:
    stored = json.loads(encode_record(record(output={"v": value})))["output"]["v"]

    assert stored == json.loads(json.dumps(plain(value)))


def test_two_outputs_that_have_the_same_name_as_text_fail_the_line() -> None:
    stored = json.loads(encode_record(record(output={1: "a", "1": "b"})))

    assert stored["error"]["message"].startswith(
        "The output is not JSON: (ValueError) two keys of a dict would both be written"
    )
    assert json.loads(encode_record(record(output={1: "a", "2": "b"})))["output"] == {"1": "a", "2": "b"}
