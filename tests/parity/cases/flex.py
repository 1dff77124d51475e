"""Flex flows: functions, classes, callables, their inputs, init, outputs, errors and aggregation."""

from __future__ import annotations

from declared import FLEX, cases_of, flex

case = cases_of("flex")

ROWS = [{"text": "one"}, {"text": "two"}]
NUMBERS = [{"n": 1}, {"n": 2}, {"n": 3}]

case("flex_function", flex("def main(text): return {'out': text.upper()}"), ROWS, **FLEX)
case("flex_async_function", flex("async def main(text): return {'out': text}"), ROWS, **FLEX)
case("flex_text_is_wrapped", flex("def main(text): return text"), ROWS, **FLEX)
case("flex_number_is_wrapped", flex("def main(text): return len(text)"), ROWS, **FLEX)
case("flex_list_is_wrapped", flex("def main(text): return [text]"), ROWS, **FLEX)
case("flex_none", flex("def main(text): return None"), ROWS, **FLEX)
case("flex_nan", flex("def main(text): return {'x': float('nan')}"), ROWS, **FLEX)
case("flex_generator_is_joined", flex("def main(text):\n    yield text\n    yield 1"), ROWS, **FLEX)
case("flex_async_generator_is_joined", flex("async def main(text):\n    yield text\n    yield 1"), ROWS, **FLEX)
case("flex_generator_in_a_dictionary", flex("def main(text): return {'out': (c for c in text)}"), ROWS, **FLEX)
case("flex_generator_deeper", flex("def main(text): return {'out': [(c for c in text)]}"), ROWS, **FLEX)
case("flex_unserialisable", flex("def main(text): return {'out': {text}}"), ROWS, **FLEX)
case(
    "flex_dataclass",
    flex("""
        from dataclasses import dataclass

        @dataclass
        class Answer:
            text: str
            length: int

        def main(text: str) -> Answer: return Answer(text, len(text))
        """),
    ROWS,
    **FLEX,
)
case("flex_default_of_the_code", flex("def main(text, times: int = 2): return text * times"), ROWS, **FLEX)
case(
    "flex_default_of_the_yaml_beats_the_codes",
    flex(
        "def main(text, times=2): return text * times",
        inputs={"text": {"type": "string"}, "times": {"type": "int", "default": 3}},
    ),
    ROWS,
    **FLEX,
)
case(
    "flex_types_of_the_yaml",
    flex("def main(n): return [type(n).__name__, n]", inputs={"n": {"type": "int"}}),
    [{"n": "5"}, {"n": "x"}, {"n": 2.9}],
    **FLEX,
)
case(
    "flex_types_of_the_annotations",
    flex("def main(n: int): return [type(n).__name__, n]"),
    [{"n": "5"}, {"n": "x"}],
    **FLEX,
)
case(
    "flex_null_for_annotations",
    flex("def main(n: int, text: str): return [n, text]"),
    [{"n": None, "text": None}],
    **FLEX,
)
case(
    "flex_null_for_a_text_of_the_yaml",
    flex("def main(text: str): return [text]", inputs={"text": {"type": "string"}}),
    [{"text": None}],
    **FLEX,
)
case("flex_missing_argument", flex("def main(text, other): return text"), ROWS, **FLEX)
case("flex_column_of_no_argument", flex("def main(text): return text"), [{"text": "a", "other": 1}], **FLEX)
case("flex_any_keywords", flex("def main(**given): return sorted(given)"), ROWS, {"text": "${data.text}"}, **FLEX)
case("flex_mapping", flex("def main(text): return text"), [{"q": "a"}], {"text": "${data.q}"}, **FLEX)
case("flex_no_arguments", flex("def main(): return 1"), ROWS, **FLEX)
case("flex_raises", flex("def main(text):\n    if text == 'one': raise KeyError(text)\n    return text"), ROWS, **FLEX)
case(
    "flex_async_raises",
    flex("async def main(text):\n    if text == 'one': raise KeyError(text)\n    return text"),
    ROWS,
    **FLEX,
)
case("flex_generator_raises", flex("def main(text):\n    yield text\n    raise ValueError('late')"), ROWS, **FLEX)

CLASS = """
    class Main:
        def __init__(self, greeting: str, times: int = 1):
            self.greeting, self.times, self.calls = greeting, times, 0

        def __call__(self, text: str):
            self.calls += 1
            return {"out": [self.greeting] * self.times + [text], "calls": self.calls}
    """
case("flex_class", flex(CLASS, "Main"), ROWS, init={"greeting": "hi"}, **FLEX)
case(
    "flex_class_with_init_in_the_yaml",
    flex(CLASS, "Main", init={"greeting": {"type": "string"}, "times": {"type": "int", "default": 2}}),
    ROWS,
    init={"greeting": "hi"},
    **FLEX,
)
case(
    "flex_class_with_a_sample",
    flex(CLASS, "Main", sample={"init": {"greeting": "sampled"}, "inputs": {"text": "sample"}}),
    ROWS,
    **FLEX,
)
case("flex_class_without_its_init", flex(CLASS, "Main"), ROWS, **FLEX)
case("flex_class_with_another_init", flex(CLASS, "Main"), ROWS, init={"greeting": "hi", "nothing": 1}, **FLEX)
case(
    "flex_class_that_cannot_be_built",
    flex(
        "class Main:\n    def __init__(self): raise ValueError('no')\n    def __call__(self, text): return text", "Main"
    ),
    ROWS,
    **FLEX,
)
case("flex_class_without_call", flex("class Main: pass", "Main"), ROWS, **FLEX)
case("flex_async_class", flex("class Main:\n    async def __call__(self, text): return text", "Main"), ROWS, **FLEX)

AGGREGATES = """
    class Main:
        def __call__(self, n: int):
            if n == 2: raise ValueError("two")
            return {"n": n}

        def __aggregate__(self, results):
            %s
    """
case(
    "flex_aggregate",
    flex(AGGREGATES % "return {'sum': sum(r['n'] for r in results), 'lines': len(results)}", "Main"),
    NUMBERS,
    **FLEX,
)
case(
    "flex_aggregate_by_attribute",
    flex(AGGREGATES % "return {'sum': sum(r.n for r in results)}", "Main"),
    NUMBERS,
    **FLEX,
)
case("flex_aggregate_gives_no_dictionary", flex(AGGREGATES % "return len(results)", "Main"), NUMBERS, **FLEX)
case("flex_aggregate_raises", flex(AGGREGATES % "raise RuntimeError('no sum')", "Main"), NUMBERS, **FLEX)
case(
    "flex_aggregate_logs_metrics",
    flex(
        AGGREGATES % "from promptflow.core import log_metric; log_metric('logged', 1); return {'returned': 2}", "Main"
    ),
    NUMBERS,
    **FLEX,
)
case(
    "flex_aggregate_of_wrapped_outputs",
    flex(
        "class Main:\n    def __call__(self, n): return n\n    def __aggregate__(self, results): return {'all': list(results)}",
        "Main",
    ),
    NUMBERS,
    **FLEX,
)
case(
    "flex_async_aggregate",
    flex(
        (
            "class Main:\n    async def __call__(self, n): return n\n"
            "    async def __aggregate__(self, results): return {'lines': len(results)}"
        ),
        "Main",
    ),
    NUMBERS,
    **FLEX,
)
case(
    "flex_aggregate_with_two_parameters",
    flex(
        "class Main:\n    def __call__(self, n): return n\n    def __aggregate__(self, results, more): return {}",
        "Main",
    ),
    NUMBERS,
    **FLEX,
)

case("flex_entry_not_there", flex("def other(text): return text"), ROWS, **FLEX)
case(
    "flex_entry_of_the_wrong_form",
    {"flow.flex.yaml": "entry: flex_code\n", "flex_code.py": "def main(): pass\n"},
    ROWS,
    **FLEX,
)
case("flex_module_not_there", {"flow.flex.yaml": "entry: nowhere_at_all:main\n"}, ROWS, **FLEX)
case("flex_module_that_raises", flex("raise RuntimeError('at import')"), ROWS, **FLEX)
case(
    "flex_yaml_of_another_name",
    {"my.yaml": "entry: flex_code:main\n", "flex_code.py": "def main(text): return text\n"},
    ROWS,
    entry="my.yaml",
)
case(
    "flex_entry_in_a_package",
    {
        "flow.flex.yaml": "entry: parts.inner:main\n",
        "parts/__init__.py": "",
        "parts/inner.py": "def main(text): return text\n",
    },
    ROWS,
    **FLEX,
)
case(
    "a_function_itself",
    {"parity_function.py": "def ask(text: str, mark: str = '!'): return {'out': text + mark}\n"},
    ROWS,
    entry="parity_function:ask",
)
case(
    "an_object_itself",
    {
        "parity_object.py": "class Ask:\n    def __init__(self, mark): self.mark = mark\n"
        "    def __call__(self, text): return text + self.mark\n\nask = Ask('?')\n"
    },
    ROWS,
    entry="parity_object:ask",
)
case(
    "the_annotations_of_a_function_itself",
    {"parity_typed.py": "def ask(n: int, text: str): return [n, text]\n"},
    [{"n": "5", "text": 7}, {"n": 6.0, "text": "x"}],
    entry="parity_typed:ask",
)
