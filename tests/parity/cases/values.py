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
