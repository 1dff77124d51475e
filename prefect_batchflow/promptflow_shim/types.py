"""Small classes and functions of promptflow that flows import."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class AttrDict(dict[str, Any]):
    """A dict whose keys are also attributes; `__aggregate__` gets each line's output as one.

    Source: promptflow `contracts/types.py`, `AttrDict`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"There is no key {name!r}. Keys: {', '.join(map(repr, self)) or 'none'}.") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


@dataclass
class AssistantDefinition:
    """The definition of an OpenAI assistant: plain data for a tool."""

    model: str = ""
    instructions: str = ""
    tools: list[Any] = field(default_factory=list)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> AssistantDefinition:
        """Build one from a dict; missing keys are empty."""
        return cls(**{name: data[name] for name in ("model", "instructions", "tools") if name in data})

    def serialize(self) -> dict[str, Any]:
        """Return it as a dict."""
        return asdict(self)


class ErrorCategory(StrEnum):
    """Whose error it is."""

    USER_ERROR = "UserError"
    SYSTEM_ERROR = "SystemError"
    UNKNOWN = "Unknown"


class ErrorTarget(StrEnum):
    """The part that raised an exception: its `target`, which is the reference code in the error dictionary."""

    EXECUTOR = "Executor"
    BATCH = "Batch"
    CORE = "Core"
    FLOW_EXECUTOR = "FlowExecutor"
    NODE_EXECUTOR = "NodeExecutor"
    TOOL = "Tool"
    AZURE_RUN_STORAGE = "AzureRunStorage"
    RUNTIME = "Runtime"
    UNKNOWN = "Unknown"
    RUN_TRACKER = "RunTracker"
    RUN_STORAGE = "RunStorage"
    CONTROL_PLANE_SDK = "ControlPlaneSDK"
    SERVING_APP = "ServingApp"
    FLOW_INVOKER = "FlowInvoker"
    FUNCTION_PATH = "FunctionPath"


class ConnectionType(StrEnum):
    """Type names in a listing of connections."""

    OPEN_AI = "OpenAI"
    AZURE_OPEN_AI = "AzureOpenAI"
    SERVERLESS = "Serverless"
    SERP = "Serp"
    CUSTOM = "Custom"


def enable_cache(*_: Any, **__: Any) -> Callable[[Any], Any]:
    """A decorator that returns the function unchanged; promptflow's caches nothing either."""
    return lambda function: function


class Workspace(NamedTuple):
    """A workspace of Azure ML."""

    subscription_id: str | None = None
    resource_group_name: str | None = None
    workspace_name: str | None = None


def get_workspace_triad_from_local() -> Workspace:
    """The Azure ML workspace of this machine: always an empty one."""
    return Workspace()


def registered(value: Any) -> Any:
    """Return the value unchanged; tools of packages are found by entry points here, not by registering."""
    return value
