"""What a program is made of: a generator of calls, the same for sync and async code.

It yields `(function, args, kwargs)` and is sent the result, or `Raised`. A program whose parts may run at once yields
`Begin`, with branches that are such generators themselves, and is sent what those returned that are done by then; `END`
gives it the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
    from contextvars import Context

    Call = tuple["UserFunction", tuple[Any, ...], dict[str, Any]]
    Step: TypeAlias = Call | "Begin"
    Steps = Generator[Step, Any, Any]


class UserFunction:
    """A function of user code, ready to be called."""

    __slots__ = ("function", "is_async", "name")

    def __init__(self, function: Callable[..., Any], name: str, *, is_async: bool = False) -> None:
        self.function = function
        self.name = name
        """As in `Execution failure in 'name'`."""
        self.is_async = is_async
        """Belongs on the event loop, because its result does, or because it never blocks."""


class Raised:
    """What a call gives instead of a result when user code raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Canceled(BaseException):
    """Thrown into a branch that was ended while its call ran."""


class Branch:
    """A part of a program that may run beside others of it."""

    __slots__ = ("context", "is_async", "name", "steps")

    def __init__(self, name: str, steps: Steps, context: Context, *, is_async: bool) -> None:
        self.name = name
        self.steps = steps
        self.context = context
        """What it runs in, its own."""
        self.is_async = is_async
        """Whether it runs on the event loop, and can be cancelled."""


class Begin:
    """Begin branches, and wait until at least one of all that were begun is done: its name and what it returned."""

    __slots__ = ("branches",)

    def __init__(self, branches: Sequence[Branch]) -> None:
        self.branches = branches


END = Begin(())
"""End the branches that run: names and returned values of all that had begun."""


class Stream:
    """What a generator gave, read to its end where it was made, so that several readers each get the whole."""

    __slots__ = ("_chunks", "_is_async", "text")

    def __init__(self, chunks: list[Any], *, is_async: bool) -> None:
        self._chunks = chunks
        self._is_async = is_async
        self.text = "".join(map(str, chunks))
        """All of it as one text, as an output has it."""

    def replay(self) -> Iterator[Any] | AsyncIterator[Any]:
        """A generator again, of the kind it was."""
        return _replay_async(self._chunks) if self._is_async else (chunk for chunk in self._chunks)


async def _replay_async(chunks: list[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


def _join_text(chunks: Iterator[Any]) -> str:
    """Read what a stream of a library's own gives, as one text."""
    return "".join(map(str, chunks))


async def _join_text_async(chunks: AsyncIterator[Any]) -> str:
    """Read what an async stream of a library's own gives, as one text."""
    return "".join([str(chunk) async for chunk in chunks])


def joined(value: Any) -> Generator[Step, Any, Any]:
    """A value of an output, with a stream read to its end; `Raised` if that raised."""
    if isinstance(value, Stream):
        return value.text
    kind = type(value)
    if hasattr(kind, "__next__"):
        value = yield _JOIN, (value,), {}
    elif hasattr(kind, "__anext__"):
        value = yield _JOIN_ASYNC, (value,), {}
    return value


def plain_stream(value: Any) -> Any:
    """A value as a record shows it: a stream is its text."""
    return value.text if isinstance(value, Stream) else value


_JOIN = UserFunction(_join_text, "output")
_JOIN_ASYNC = UserFunction(_join_text_async, "output", is_async=True)
