"""The sandbox for templates: no private attributes, no changes to values, no huge results.

A row can set a width, and a loop that doubles a text makes gigabytes in thirty rounds. The length of a rendered template is
counted piece by piece. The sandbox refuses a single value that would be huge before it is made, as far as the arguments show
its size, and counts what one rendering makes in all. This module, and jinja2 with it, is imported for the first template.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jinja2 import nodes
    from jinja2.compiler import Frame
    from jinja2.runtime import Context

_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
"""String methods with a width as an argument."""
_SIZED = frozenset({"batch", "center", "round", "slice", "tojson"})
"""Filters with a size as an argument."""
_WRITING = frozenset({"e", "escape", "forceescape", "pprint", "string", "tojson", "urlencode", "xmlattr"})
"""Filters that write a list or dictionary as text."""
_MOST_COUNTED = 1 << 30
_DEEPEST = 20
_LARGE = 1 << 16
"""Smaller values are not counted."""
_RENDERINGS = 8
"""The values that one rendering makes can be so many times as large, all together, as one of them."""
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\d*)\.?(\d*)")
_BRACES = re.compile(r"\{[^{}]*:[^{}]*?(\d+)(?:\.(\d+))?")
"""Widths and precisions in formats, without leading zeros."""


@functools.cache
def sandbox(most: int, finalize: Callable[[Any], Any] | None = None) -> ImmutableSandboxedEnvironment:
    """An environment whose results have at most so many characters, items or digits each.

    `finalize` changes each value that a template shows.
    """

    def shown(value: Any) -> Any:
        if isinstance(value, list | tuple | dict):
            environment.check_length(value)
        return value if finalize is None else finalize(value)

    environment = _Sandbox(trim_blocks=True, keep_trailing_newline=True, finalize=shown)
    environment.most = most
    for name, found in environment.filters.items():
        environment.filters[name] = environment.limited(name, found)
    lipsum: Any = environment.globals["lipsum"]
    environment.globals["lipsum"] = environment.limited("lipsum", lipsum)
    return environment


def begin_rendering(environment: object) -> None:
    """Count anew what a template makes."""
    if isinstance(environment, _Sandbox):
        environment.made.size = 0


class _Generator(CodeGenerator):
    """Lets the sandbox join the parts of `a ~ b`."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        self.write("environment.joined(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Generator
    most: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made = threading.local()
        """What the thread's rendering has made, in large values."""

    def concat(self, parts: Iterable[str]) -> str:
        """Join what a block, a macro or a loop wrote."""
        pieces = list(parts)
        self._check(sum(map(len, pieces)), "a block")
        text: str = self._counted("".join(pieces))
        return text

    def joined(self, context: Context, parts: tuple[Any, ...]) -> str:
        """Join the parts of `a ~ b`."""
        self._check(sum(map(_length, parts)), "joining")
        text: str = self._counted((markup_join if context.eval_ctx.autoescape else str_join)(parts))
        return text

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if isinstance(left, str):
                self._check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | bytes | list | tuple) and isinstance(times, int):
                    self._check(len(text) * times, "a repetition")
        elif operator == "+":
            if isinstance(left, str | bytes | list | tuple) and isinstance(right, str | bytes | list | tuple):
                self._check(len(left) + len(right), "a sum")
        elif isinstance(left, int) and isinstance(right, int):
            self._check(left.bit_length() * right, "a power")
        return self._counted(super().call_binop(context, operator, left, right))

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        text, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(text, str | bytes):
            if name in _PADDING:
                self._check_numbers(args, name)
            elif name == "replace" or (name == "join" and args):
                self._check_growth(name, text, args)
            elif name == "translate" and args and isinstance(args[0], Mapping):
                self._check(len(text) * max(map(_length, args[0].values()), default=0), name)
        elif isinstance(text, int) and name == "to_bytes":
            self._check_numbers(args, name)
        return self._counted(super().call(context, called, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def limited(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, (*args, *kwargs.values()))
            text: str = self._counted(wrapped(*args, **kwargs))
            return text

        return limited

    def limited(self, name: str, filtered: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that checks its arguments first; functools keeps the marks that jinja2 set."""
        skipped = 1 if hasattr(filtered, "jinja_pass_arg") else 0

        @functools.wraps(filtered)
        def looks_first(*args: Any, **kwargs: Any) -> Any:
            value, *given = args[skipped:] or [None]
            if name in _WRITING and isinstance(value, list | tuple | dict):
                self.check_length(value)
            if name == "lipsum":
                self._check_numbers((1000 * n for n in (value, *given, *kwargs.values()) if isinstance(n, int)), name)
            elif name == "format":
                self._check_format(str(value), (*given, *kwargs.values()))
            elif name == "indent":
                lines = str(value).count("\n") + 1
                self._check_numbers((n * lines for n in (*given, *kwargs.values()) if isinstance(n, int)), name)
            elif name in _SIZED:
                self._check_numbers((*given, *kwargs.values()), name)
            elif name == "join":
                separator = str(kwargs.get("d", given[0] if given else ""))
                self._check_joined(separator, value, kwargs.get("attribute", given[1] if len(given) > 1 else None))
            elif name == "replace":
                self._check_growth(name, value, (*given, *kwargs.values()))
            elif name == "wordwrap":
                width = kwargs.get("width", given[0] if given else 79)
                wrap = kwargs.get("wrapstring", given[2] if len(given) > 2 else "\n")
                if isinstance(width, int):
                    self._check(len(str(value)) // max(width, 1) * _length(wrap), name)
            elif name == "sum":
                items = value if isinstance(value, list | tuple) else ()
                self._check(sum(len(item) for item in items if isinstance(item, list | tuple)), name)
            return self._counted(filtered(*args, **kwargs))

        return looks_first

    def _check_format(self, text: str, values: Iterable[Any]) -> None:
        """Refuse a large width, also one that is among the values."""
        found = [digits[:12] for form in (_PERCENT, _BRACES) for widths in form.findall(text) for digits in widths]
        self._check_numbers((int(digits) for digits in found if digits), "a format")
        values = [part for value in values for part in (value.values() if isinstance(value, Mapping) else [value])]
        places = text.count("%") + text.count("{")
        if places * len(text) + sum(map(_length, values)) > self.most:
            self._check(len(text) + places * max(map(_length, values), default=0), "a format")
        if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{", text):
            self._check_numbers(values, "a format")

    def _check_growth(self, name: str, value: Any, given: Iterable[Any]) -> None:
        """Refuse a large result of `replace` or `join`."""
        given = list(given)
        if name == "replace" and len(given) > 1:
            text, old, new = str(value), str(given[0]), str(given[1])
            self._check(len(text) + text.count(old) * max(len(new) - len(old), 0), "a replacement")
        elif name == "join" and given:
            self._check_joined(str(value), given[0])

    def _check_joined(self, separator: str, items: Any, attribute: Any = None) -> None:
        if isinstance(items, str):
            self._check((len(separator) + 1) * len(items), "joining")
        elif isinstance(items, list | tuple | dict | set | frozenset):
            parts = items if attribute is None else map(make_attrgetter(self, attribute), items)
            self._check(len(separator) * len(items) + sum(_length(part) for part in parts), "joining")

    def check_length(self, value: Any) -> None:
        """Refuse a list or dictionary that would be huge as text."""
        self._check(_length(value, self.most), "a list as text")

    def _counted(self, value: Any) -> Any:
        """Give a value that was made, if it and all others are not too large."""
        if isinstance(value, str | bytes | list | tuple | dict) and len(value) >= _LARGE:
            self._check(len(value), "an expression")
            self.made.size = getattr(self.made, "size", 0) + len(value)
            if self.made.size > _RENDERINGS * self.most:
                raise SecurityError("the values that the template makes are too large, all together")
        return value

    def _check_numbers(self, values: Iterable[Any], what: str) -> None:
        for value in values:
            if isinstance(value, int):
                self._check(value, what)

    def _check(self, size: int, what: str) -> None:
        if size > self.most:
            raise SecurityError(f"the result of {what} is too large")


def _length(value: Any, most: int = _MOST_COUNTED, depth: int = 0) -> int:
    """About how long a value is as text, as far as `most`."""
    if isinstance(value, str | bytes):
        return len(value)
    if depth > _DEEPEST or not isinstance(value, list | tuple | dict):
        return 20
    length = 2 * len(value)
    for part in (*value, *value.values()) if isinstance(value, dict) else value:
        if length > most:
            break
        length += _length(part, most, depth + 1)
    return length
