"""promptflow's tracing functions, so that a flow's code runs; nothing is traced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

_operation: ContextVar[OperationContext | None] = ContextVar("operation_context", default=None)

Function = TypeVar("Function", bound="Callable[..., Any]")


@overload
def trace(func: Function) -> Function: ...
@overload
def trace(func: None = None) -> Callable[[Function], Function]: ...
def trace(func: Any = None) -> Any:
    """Return the function (plain, async or a generator) unchanged; `@trace` and `@trace()` both work.

    Source: promptflow `tracing/_trace.py`, `trace`.
    """
    return func if func is not None else lambda function: function


def start_trace(**described: Any) -> None:
    """Do nothing: promptflow's viewer is not supported, and results are in the run's records."""


class ThreadPoolExecutorWithContext(ThreadPoolExecutor):
    """A pool whose threads count metrics and tokens for the line that submits the work.

    Source: promptflow `tracing/_context_utils.py`, `ThreadPoolExecutorWithContext`.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it in a thread, in a copy of this context."""
        return super().submit(copy_context().run, fn, *args, **kwargs)


class TraceType(StrEnum):
    """What a traced function does."""

    LLM = "LLM"
    FUNCTION = "Function"
    LANGCHAIN = "LangChain"
    FLOW = "Flow"
    EMBEDDING = "Embedding"
    RETRIEVAL = "Retrieval"
    TOOL = "Tool"


class OperationContext(dict[str, Any]):
    """A dict of the current context whose keys are also attributes. A flow can use it; nothing is sent anywhere.

    Source: promptflow `tracing/_operation_context.py`, `OperationContext`.
    """

    @classmethod
    def get_instance(cls) -> OperationContext:
        """The one of this context; made if there is none."""
        found = _operation.get()
        if found is None:
            cls.set_instance(found := cls())
        return found

    @classmethod
    def set_instance(cls, instance: OperationContext | None) -> None:
        """Replace the one of this context."""
        _operation.set(instance)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The operation context has no {name!r}.") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"The operation context has no {name!r}.") from None

    def copy(self) -> OperationContext:
        """A copy of the same class."""
        return OperationContext(self)

    def get_user_agent(self) -> str:
        """The parts that were appended, and this package's."""
        return " ".join(filter(None, (self.get("user_agent"), "prefect-batchflow")))

    def append_user_agent(self, user_agent: str) -> None:
        """Add a part, unless it is there."""
        before = self.get("user_agent", "")
        if user_agent not in before:
            self["user_agent"] = f"{before} {user_agent}".strip()

    def get_request_id(self) -> Any:
        """The request id, if the flow set one, else `unknown`."""
        return self.get("request_id", "unknown")

    def set_execution_target(self, execution_target: str) -> None:
        """Note the kind of flow."""
        self["execution_target"] = execution_target

    def get_context_dict(self) -> dict[str, Any]:
        """A plain dict of it."""
        return dict(self)
