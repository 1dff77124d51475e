"""The sandbox for templates: no private attributes, no changes to values, no huge results.

A row can set a width. The length of a rendered template is counted piece by piece; the sandbox refuses a single piece that
would be huge before it is made. This module, and jinja2 with it, is imported for the first template.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
"""String methods with a width as an argument."""
_SIZED = frozenset({"batch", "center", "round", "slice", "tojson"})
"""Filters with a size as an argument."""
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\d*)\.?(\d*)")
_BRACES = re.compile(r"\{[^{}]*:[^{}]*?(\d+)(?:\.(\d+))?")
"""Widths and precisions in formats, without leading zeros."""


@functools.cache
def sandbox(most: int, finalize: Callable[[Any], Any] | None = None) -> ImmutableSandboxedEnvironment:
    """An environment whose results have at most so many characters, items or digits each.

    `finalize` changes each value that a template shows.
    """
    environment = _Sandbox(trim_blocks=True, keep_trailing_newline=True, finalize=finalize)
    environment.most = most
    for name in ("format", "indent", "join", "replace", *_SIZED):
        environment.filters[name] = environment.limited(name, environment.filters[name])
    lipsum: Any = environment.globals["lipsum"]
    environment.globals["lipsum"] = environment.limited("lipsum", lipsum)
    return environment


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})
    most: int

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if isinstance(left, str):
                self._check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | bytes | list | tuple) and isinstance(times, int):
                    self._check(len(text) * times, "a repetition")
        elif isinstance(left, int) and isinstance(right, int):
            self._check(left.bit_length() * right, "a power")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        text, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(text, str | bytes):
            if name in _PADDING:
                self._check_numbers(args, name)
            elif name == "replace" or (name == "join" and args):
                self._check_growth(name, text, args)
        elif isinstance(text, int) and name == "to_bytes":
            self._check_numbers(args, name)
        return super().call(context, called, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def limited(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return limited

    def limited(self, name: str, filtered: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that checks its arguments first; functools keeps the marks that jinja2 set."""
        skipped = 1 if hasattr(filtered, "jinja_pass_arg") else 0

        @functools.wraps(filtered)
        def looks_first(*args: Any, **kwargs: Any) -> Any:
            value, *given = args[skipped:] or [None]
            if name == "lipsum":
                self._check_numbers((1000 * n for n in (value, *given, *kwargs.values()) if isinstance(n, int)), name)
            elif name == "format":
                self._check_format(str(value), (*given, *kwargs.values()))
            elif name == "indent":
                lines = str(value).count("\n") + 1
                self._check_numbers((n * lines for n in (*given, *kwargs.values()) if isinstance(n, int)), name)
            elif name in _SIZED:
                self._check_numbers((*given, *kwargs.values()), name)
            else:
                self._check_growth(name, value, (*given, *kwargs.values()))
            return filtered(*args, **kwargs)

        return looks_first

    def _check_format(self, text: str, values: Iterable[Any]) -> None:
        """Refuse a large width, also one that is among the values."""
        found = [digits[:12] for form in (_PERCENT, _BRACES) for widths in form.findall(text) for digits in widths]
        self._check_numbers((int(digits) for digits in found if digits), "a format")
        if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{", text):
            self._check_numbers(values, "a format")

    def _check_growth(self, name: str, value: Any, given: Iterable[Any]) -> None:
        """Refuse a large result of `replace` or `join`."""
        given = list(given)
        if name == "replace" and len(given) > 1:
            text, old, new = str(value), str(given[0]), str(given[1])
            self._check(len(text) + text.count(old) * max(len(new) - len(old), 0), "a replacement")
        elif name == "join" and given:
            separator, items = (value, given[0]) if isinstance(value, str) else (given[0], value)
            if hasattr(items, "__len__"):
                self._check(len(str(separator)) * len(items), "joining")

    def _check_numbers(self, values: Iterable[Any], what: str) -> None:
        for value in values:
            if isinstance(value, int):
                self._check(value, what)

    def _check(self, size: int, what: str) -> None:
        if size > self.most:
            raise SecurityError(f"the result of {what} is too large")
