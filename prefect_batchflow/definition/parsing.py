"""Parses Python, in a process with other threads that parse."""

from __future__ import annotations

import ast
from typing import Final

_TRIES: Final = 10


def parsed(source: str | bytes, filename: str = "<unknown>") -> ast.Module:
    """As `ast.parse`.

    CPython 3.11 keeps the depth of the tree for all threads together. If another thread parses meanwhile, which needs the
    collection of garbage to come between, it raises `SystemError` ("AST constructor recursion depth mismatch") for a source
    that has no fault. Source: python/cpython, issue 106905.
    """
    for _ in range(_TRIES - 1):
        try:
            return ast.parse(source, filename)
        except SystemError:
            continue
    return ast.parse(source, filename)
