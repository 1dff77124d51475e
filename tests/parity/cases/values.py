"""Values: what becomes of what user code returns, and of values for annotated parameters."""

from __future__ import annotations

from declared import FLEX, cases_of, dag, flex, node

case = cases_of("values")

ONE = [{"text": "one"}]
RETURNS = """
    import dataclasses, datetime, decimal, enum, pathlib, uuid
    from typing import ClassVar
    import pydantic

    class Mode(enum.Enum):
        FAST = "fast"

    @dataclasses.dataclass
    class Inner:
        n: int = 1

    @dataclasses.dataclass
    class Answer:
        text: str
        inner: Inner
        mode: Mode = Mode.FAST
        kind: ClassVar[str] = "answer"

    class Model(pydantic.BaseModel):
        a: int
        mode: Mode = Mode.FAST

    def main(text): return {value}
    """


def returns(value: str) -> dict[str, str | bytes]:
    """A flow that returns an expression."""
    return flex(RETURNS.replace("{value}", value))


case("returned_dataclass_with_a_class_variable", returns("Answer(text, Inner())"), ONE, **FLEX)
case("returned_dataclasses_in_a_list", returns("[Inner(1), Inner(2)]"), ONE, **FLEX)
case("returned_model", returns("Model(a=1)"), ONE, **FLEX)
case("returned_models_in_a_dict", returns("{'all': [Model(a=1)]}"), ONE, **FLEX)
case("returned_enum_member", returns("{'mode': Mode.FAST, 'many': [Mode.FAST]}"), ONE, **FLEX)
case("returned_datetime", returns("{'at': datetime.datetime(2026, 1, 2, 3, 4)}"), ONE, **FLEX)
case("returned_tuple", returns("{'t': (1, (2, 3))}"), ONE, **FLEX)
case("returned_number_keys", returns("{'d': {1: 'a', 2.5: 'b', None: 'c'}}"), ONE, **FLEX)
case("returned_infinity", returns("{'x': float('inf'), 'deep': [float('nan')]}"), ONE, **FLEX)
case("returned_decimal", returns("{'d': decimal.Decimal('1.10')}"), ONE, **FLEX)
case("returned_uuid", returns("{'u': uuid.UUID(int=5)}"), ONE, **FLEX)
case("returned_date", returns("{'d': datetime.date(2026, 1, 2)}"), ONE, **FLEX)
case("returned_path", returns("{'p': pathlib.Path('a/b')}"), ONE, **FLEX)
case("returned_bytes", returns("{'b': b'abc'}"), ONE, **FLEX)
case("returned_tuple_keys", returns("{'d': {(1, 2): 3}}"), ONE, **FLEX)
case(
    "a_dataclass_from_node_to_output",
    dag(
        {"text": "string"},
        {"out": "${use.output}", "whole": "${make.output}"},
        make=node(
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    text: str\n\n"
            "def make(text): return {'a': A(text), 'n': 1}",
            {"text": "${inputs.text}"},
        ),
        use=node("def use(a): return type(a).__name__ + a.text", {"a": "${make.output.a}"}),
    ),
    ONE,
)
case(
    "a_dataclass_for_an_aggregation",
    dag(
        {"text": "string"},
        {"out": "${make.output.text}"},
        make=node(
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    text: str\n\ndef make(text): return A(text)",
            {"text": "${inputs.text}"},
        ),
        count=node("def count(all): log_metric('n', len(all))", {"all": "${make.output}"}, aggregation=True),
    ),
    ONE,
)

# --- what annotated parameters get ----------------------------------------------------------------------------------

KINDS = """
from __future__ import annotations
import dataclasses, datetime, enum
from typing import Annotated, Dict, List, NewType, Optional, Union

class Mode(enum.Enum):
    FAST = "fast"

class Tone(str, enum.Enum):
    WARM = "warm"

@dataclasses.dataclass
class User:
    name: str

"""
TEXT = {"text": "string"}
OUT = {"out": "${f.output}"}
SHOWN = "return [type(v).__name__, str(v)]"


def constant(annotation: str, value: object) -> dict[str, str | bytes]:
    """A node that gets a constant."""
    return dag(
        TEXT,
        OUT,
        f=node(KINDS.split("\n", 2)[2] + f"def f(v: {annotation}, w): {SHOWN}", {"v": value, "w": "${inputs.text}"}),
    )


def of_row(annotation: str, kind: str) -> dict[str, str | bytes]:
    """A node that gets an input of the flow."""
    return dag(
        {"v": kind}, OUT, f=node(KINDS.split("\n", 2)[2] + f"def f(v: {annotation}): {SHOWN}", {"v": "${inputs.v}"})
    )


def function(parameters: str, value: str = "[type(v).__name__, str(v)]") -> dict[str, str | bytes]:
    """A function, its annotations as text."""
    return flex(KINDS + f"def main({parameters}): return {value}")


case("constant_for_an_optional", constant("Optional[int]", "5"), ONE)
case("constant_for_a_union_with_none", constant("int | None", "5"), ONE)
case("constant_for_an_annotated", constant("Annotated[int, 'n']", "5"), ONE)
case("constant_for_an_enum", constant("Mode", "fast"), ONE)
case("constant_for_an_optional_enum_of_text", constant("Optional[Tone]", "warm"), ONE)
case("constant_for_a_dataclass", constant("User", {"name": "a"}), ONE)
case("constant_for_a_list_of_text", constant("List[str]", '["a"]'), ONE)
case("constant_for_a_union", constant("Union[int, str]", "5"), ONE)
case("row_for_a_number_of_a_node", of_row("int", "string"), [{"v": "5"}])
case("row_for_an_optional_of_a_node", of_row("Optional[int]", "string"), [{"v": "5"}])
case("row_for_a_list_of_numbers_of_a_node", of_row("List[int]", "list"), [{"v": '["1"]'}])
case("row_for_a_dict_of_a_node", of_row("Dict[str, int]", "object"), [{"v": '{"a": "1"}'}])
case("row_for_an_enum_of_a_node", of_row("Mode", "string"), [{"v": "fast"}])
case("row_for_a_date_of_a_node", of_row("datetime.date", "string"), [{"v": "2026-01-02"}])
case("row_for_a_dataclass_of_a_node", of_row("User", "object"), [{"v": {"name": "a"}}])
case("row_for_an_optional", function("v: Optional[int]"), [{"v": "5"}, {"v": None}], **FLEX)
case("row_for_a_list_of_numbers", function("v: List[int]"), [{"v": ["1"]}, {"v": [1]}], **FLEX)
case("row_for_an_enum", function("v: Mode"), [{"v": "fast"}], **FLEX)
case("row_for_a_dataclass", function("v: User"), [{"v": {"name": "a"}}], **FLEX)
case("row_for_a_number_or_text", function("v: Union[int, str]"), [{"v": "5"}, {"v": 5}], **FLEX)
case("row_for_any_keywords", function("**row", "sorted(row)"), [{"a": 1, "b": 2}], **FLEX)
case("row_for_keywords_beside_others", function("a, **row", "sorted(row)"), [{"a": 1, "b": 2}], **FLEX)
case("row_for_a_keyword_only", function("*, v: int = 3"), [{"v": 5}], {"v": "${data.v}"}, **FLEX)
