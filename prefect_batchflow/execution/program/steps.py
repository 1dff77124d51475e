"""The steps of a program, which is a generator of calls, the same for sync and async code.

It yields `(function, args, kwargs)` and receives the result, or `Raised`. To run parts at once, it yields `Begin` with
branches, which are such generators too, and receives the results of those that are done; `END` gives it the rest.
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

    __slots__ = ("function", "is_async", "name", "needs_loop")

    def __init__(self, function: Callable[..., Any], name: str, *, is_async: bool = False) -> None:
        self.function = function
        self.name = name
        """For messages: `Execution failure in 'name'`."""
        self.is_async = is_async
        """Whether to call it on the event loop: its result is awaitable, or it never blocks.

        A call can show that it is: of a function whose decorator hides an `async def`, for example.
        """
        self.needs_loop = False
        """Whether a call showed that it works on a running event loop only, as one that creates a task does."""


class Raised:
    """The result of a call if user code raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Canceled(BaseException):
    """Thrown into a branch that is ended during a call."""


class Branch:
    """A part of a program that can run beside other parts."""

    __slots__ = ("context", "is_async", "name", "steps")

    def __init__(self, name: str, steps: Steps, context: Context, *, is_async: bool) -> None:
        self.name = name
        self.steps = steps
        self.context = context
        """Its own, to run in."""
        self.is_async = is_async
        """Whether it runs on the event loop, where it can be cancelled."""


class Begin:
    """Begin branches and wait until at least one of all begun ones is done; gives names and results."""

    __slots__ = ("branches",)

    def __init__(self, branches: Sequence[Branch]) -> None:
        self.branches = branches


END = Begin(())
"""End the running branches; gives names and results of all that had begun."""


class Handover:
    """What is left of a program that needs an event loop: its steps, and how to get the result of the current one."""

    __slots__ = ("branches", "call", "steps", "value")

    def __init__(self, steps: Steps, *, call: Call | None = None, value: Any = None, branches: Any = None) -> None:
        self.steps = steps
        self.call = call
        """The call to make on the loop."""
        self.value = value
        """If the call was made, what it gave: something to await."""
        self.branches = branches
        """If branches run and one of them needs the loop: `branches.Begun`."""


class Stream:
    """The values of a generator, read to its end at once, so that several readers each get all of them."""

    __slots__ = ("_chunks", "_is_async", "text")

    def __init__(self, chunks: list[Any], *, is_async: bool) -> None:
        self._chunks = chunks
        self._is_async = is_async
        self.text = "".join(map(str, chunks))
        """All values as one text, for an output."""

    def replay(self) -> Iterator[Any] | AsyncIterator[Any]:
        """Give a generator of the values, async if it was."""
        return _replay_async(self._chunks) if self._is_async else (chunk for chunk in self._chunks)


async def _replay_async(chunks: list[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


def _join_text(chunks: Iterator[Any]) -> str:
    """Read a library's own stream as one text."""
    return "".join(map(str, chunks))


async def _join_text_async(chunks: AsyncIterator[Any]) -> str:
    """Read a library's own async stream as one text."""
    return "".join([str(chunk) async for chunk in chunks])


def joined(value: Any) -> Generator[Step, Any, Any]:
    """Give an output's value, a stream read to its end; `Raised` if reading raised."""
    if isinstance(value, Stream):
        return value.text
    kind = type(value)
    if hasattr(kind, "__next__"):
        value = yield _JOIN, (value,), {}
    elif hasattr(kind, "__anext__"):
        value = yield _JOIN_ASYNC, (value,), {}
    return value


def plain_stream(value: Any) -> Any:
    """A value as a record shows it: a stream becomes its text."""
    return value.text if isinstance(value, Stream) else value


_JOIN = UserFunction(_join_text, "output")
_JOIN_ASYNC = UserFunction(_join_text_async, "output", is_async=True)
