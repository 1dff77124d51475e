"""Every exception of the package, and the error dictionary of promptflow made from one.

Which errors are retried is in `errors.classes`.

Classes below a class, or after its colon, derive from it. Each class says when it is raised::

    BatchflowException
    ├── UserErrorException: fix the flow, the data or the setup
    │   ├── ValidationError
    │   │   ├── InvalidFlowRequest
    │   │   │   ├── FlowDefinitionError: InvalidSource, InvalidFlexFlowEntry
    │   │   │   ├── UnsupportedFeatureError, InputNotFound, InputTypeError, InputParseError, InputReferenceNotFound
    │   │   │   ├── NodeReferenceNotFound, NodeCircularDependency, DuplicateNodeName, InvalidNodeReference
    │   │   │   └── EmptyOutputReference, OutputReferenceNotFound, InvalidConnectionType, NodeInputValidationError
    │   │   ├── InvalidRequest: GetConnectionError
    │   │   └── APINotFound, PackageToolNotFoundError, InputMappingError, InvalidOptionError, InvalidImageInput
    │   ├── ResolveToolError: GetConnectionError, InvalidConnectionType, NodeInputValidationError, APINotFound
    │   │                     PackageToolNotFoundError, NoToolDefined, MultipleToolsDefined
    │   ├── CoreError: InvalidConnectionError, MissingRequiredInputError, InvalidOutputKeyError
    │   ├── NodeReferenceError: InvalidReferenceProperty
    │   ├── ToolValidationError
    │   │   ├── PythonParsingError: NoToolDefined, MultipleToolsDefined, PythonLoadError
    │   │   ├── JinjaTemplateError
    │   │   └── ChatAPIInvalidRole, ChatAPIFunctionRoleInvalidFormat, ChatAPIToolRoleInvalidFormat
    │   ├── OpenAIError
    │   │   ├── APIConnectionError: APITimeoutError
    │   │   ├── BadRequestError: ContentFilterError
    │   │   ├── RateLimitError, InternalServerError, ConflictError, AuthenticationError, PermissionDeniedError
    │   │   └── NotFoundError, UnprocessableEntityError, APIResponseValidationError
    │   ├── ProcessCrashError: LineOutOfMemoryError
    │   ├── FlowNotFoundError, InvalidUserData, EmptyInputsData, FlowEntryInitializationError, ToolExecutionError
    │   ├── InvalidAggregationFunction, ScriptExecutionError, LoadMultimediaDataError, ImageTooLargeError
    │   ├── FlowOutputUnserializable, LineExecutionTimeoutError, BatchRunTimeoutError, BatchFailureLimitError
    │   ├── LineFailureError, InvalidRunIdError, RunNotFoundError, RunNotReadyError, RunInUseError
    │   └── RunChangedError
    └── SystemErrorException: the surroundings failed
        ├── StorageError: RecordCorruptError
        └── UnexpectedError, WorkerStartError, ClusterError, PrefectServerError

Names that promptflow has are promptflow's, because `code` and `innerError` of an error dictionary are made of them. The file
is long because the tree is in one place.
"""

from __future__ import annotations

import traceback
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable


class BatchflowException(Exception):  # noqa: N818 - promptflow's bases end in Exception, and codes drop that suffix
    """The base of all errors: a message for people, and facts for programs.

    Args:
        message: What happened, where, what was expected, what to do.
        message_format: Makes the message from the facts when no message is given, as in promptflow's exceptions.
        target: promptflow's reference code, the part that found the error: `Executor`, `Batch`, `Tool`.
        additional_info: Named facts for readers of the error dictionary, `{type: info}`.
        facts: Anything else that callers need; each becomes an attribute.
    """

    _not_in_codes: ClassVar[frozenset[str]] = frozenset()
    """Names of its base classes that its codes leave out, because promptflow's class has other bases."""

    def __init__(
        self,
        message: str = "",
        message_format: str = "",
        *,
        target: str = "Batch",
        additional_info: dict[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        self.message_format = message_format
        self.message_parameters = _parameters(message_format, facts)
        message = message or message_format.format(**self.message_parameters)
        super().__init__(message)
        self.message = message
        self.target = target
        self.additional_info = dict(additional_info or {})
        self.__dict__.update(facts)
        self._facts = facts

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.target, self.additional_info, self._facts))

    @property
    def inner_exception(self) -> BaseException | None:
        """The exception that it was raised from, or the fact `error`."""
        error = self._facts.get("error")
        return error if isinstance(error, BaseException) else self.__cause__

    @classmethod
    def codes(cls) -> list[str]:
        """The class chain below the base, outermost first: `["UserError", "ToolExecutionError"]`.

        Source: promptflow `exceptions.py`, `error_codes`.
        """
        chain = [
            c
            for c in reversed(cls.__mro__)
            if issubclass(c, BatchflowException) and c is not BatchflowException
            if c is cls or c.__name__ not in cls._not_in_codes
        ]
        roots = {"UserErrorException": "UserError", "SystemErrorException": "SystemError"}
        return [roots.get(c.__name__, c.__name__) for c in chain] or ["SystemError"]


def _parameters(message_format: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that a format names; a missing one is shown as `<name>`."""
    names = {name.partition(".")[0].partition("[")[0] for _, name, _, _ in Formatter().parse(message_format) if name}
    return {name: facts.get(name, f"<{name}>") for name in sorted(names)}


def _rebuild(
    cls: type[BatchflowException], message: str, target: str, info: dict[str, Any], facts: dict[str, Any]
) -> BatchflowException:
    return cls(message, target=target, additional_info=info, **facts)


class UserErrorException(BatchflowException):
    """The user can fix it: in the flow, its data or the setup."""


class SystemErrorException(BatchflowException):
    """The surroundings failed, not the flow."""


class ValidationError(UserErrorException):
    """Something that was given is not valid; raised through its leaves."""


class InvalidFlowRequest(ValidationError):  # noqa: N818 - promptflow's name
    """The flow's definition is wrong; raised through its leaves."""


class FlowDefinitionError(InvalidFlowRequest):
    """Raised by `load_flow` for a file that cannot be read or is not a flow."""


class InvalidSource(FlowDefinitionError):  # noqa: N818 - promptflow's name
    """Raised by `load_flow` for a node whose source does not exist or is not a file of the flow."""

    _not_in_codes: ClassVar[frozenset[str]] = frozenset({"InvalidFlowRequest", "FlowDefinitionError"})


class InvalidFlexFlowEntry(FlowDefinitionError):  # noqa: N818 - promptflow's name
    """Raised by `load_flow` for an `entry` that is not `module:name`."""

    _not_in_codes: ClassVar[frozenset[str]] = frozenset({"InvalidFlowRequest", "FlowDefinitionError"})


class UnsupportedFeatureError(InvalidFlowRequest):
    """Raised by `load_flow` for a key or feature that is not supported; the message names it."""


class InputNotFound(InvalidFlowRequest):
    """Raised for a flow without inputs, and for a line that lacks an input."""


class InputTypeError(InvalidFlowRequest):
    """Raised by `lines` for a value that does not fit its input's type."""


class InputParseError(InvalidFlowRequest):
    """Raised by `lines` for a text that is not JSON where the input's type asks for JSON."""


class InputReferenceNotFound(InvalidFlowRequest):
    """Raised by `load_flow` for a reference to a flow input that is not declared."""


class NodeReferenceNotFound(InvalidFlowRequest):
    """Raised by `load_flow` for a reference to a node that does not exist."""


class NodeCircularDependency(InvalidFlowRequest):
    """Raised by `load_flow` for nodes that wait for each other."""


class DuplicateNodeName(InvalidFlowRequest):
    """Raised by `load_flow` for two nodes with one name."""


class InvalidNodeReference(InvalidFlowRequest):
    """Raised by `load_flow` for a node that runs for each line but refers to an aggregation node."""


class EmptyOutputReference(InvalidFlowRequest):
    """Raised by `load_flow` for an output of the flow that refers to nothing."""


class OutputReferenceNotFound(InvalidFlowRequest):
    """Raised by `load_flow` for an output of the flow that refers to an unknown node or input."""


class NodeReferenceError(UserErrorException):
    """A reference to a node fails while a line runs; raised through its leaf."""


class InvalidReferenceProperty(NodeReferenceError):  # noqa: N818 - promptflow's name
    """Raised while a line runs, for a reference to a key, attribute or index that the node's output lacks."""


class InvalidRequest(ValidationError):  # noqa: N818 - promptflow's name
    """Something given along with the flow does not fit it; raised through its leaves."""


class InvalidOptionError(ValidationError):
    """Raised for an option of a run that is out of range, misspelt or contradicts another option."""


class InvalidImageInput(ValidationError):  # noqa: N818 - promptflow's name
    """Raised for an image that cannot be read, or is not allowed; a line fails with `LoadMultimediaDataError` and this text."""


class FlowNotFoundError(UserErrorException):
    """Raised by `load_flow` when the path does not exist, or the module has no such attribute."""


class InputMappingError(ValidationError):
    """Raised before the first line runs, for a mapping that does not fit the data; lists all problems."""


class InvalidUserData(UserErrorException):
    """Raised by the readers for data that cannot be read in the format of its suffix."""


class EmptyInputsData(UserErrorException):
    """Raised before the first line runs, when the data has no rows."""


class ToolValidationError(UserErrorException):
    """The code, prompt or model call of a node is wrong; raised through its leaves."""


class PythonParsingError(ToolValidationError):
    """The flow's Python code is wrong; raised through its leaves."""


class PythonLoadError(PythonParsingError):
    """Raised by the loader when the flow's code cannot be imported or lacks the entry."""


class ResolveToolError(UserErrorException):
    """Raised by the loader when it does not find a node's tool, or cannot give the tool what it needs."""

    _not_in_codes: ClassVar[frozenset[str]] = frozenset({"ResolveToolError"})
    """promptflow wraps it around its leaves, and leaves it out of codes."""


class GetConnectionError(InvalidRequest, ResolveToolError):
    """Raised by the loader for a connection that was not given, or that cannot be created from the given values."""


class NoToolDefined(PythonParsingError, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for a node whose file has no function with `@tool`."""


class MultipleToolsDefined(PythonParsingError, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for a node whose file has several functions with `@tool`."""


class InvalidAggregationFunction(UserErrorException):
    """Raised by the loader for an `__aggregate__` that does not take the list of outputs."""


class NodeInputValidationError(InvalidFlowRequest, ResolveToolError):
    """Raised by the loader for a constant or a connection of a type that the tool does not take."""


class InvalidConnectionType(InvalidFlowRequest, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for an llm node whose connection serves no models."""


class APINotFound(ValidationError, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for an llm node with an unknown api."""


class PackageToolNotFoundError(ValidationError, ResolveToolError):
    """Raised by the loader for a tool that no installed package has."""


class CoreError(UserErrorException):
    """User code uses a promptflow class wrongly; raised through its leaves."""


class InvalidConnectionError(CoreError):
    """Raised for a connection or model configuration that cannot be created from the given values; never shows a value."""


class MissingRequiredInputError(CoreError):
    """Raised by a prompty that is called without an input that has no default."""


class InvalidOutputKeyError(CoreError):
    """Raised by a prompty when the model's JSON answer lacks a key of its `outputs`."""


class FlowEntryInitializationError(UserErrorException):
    """Raised by the loader when the constructor of a class entry raised."""


class ToolExecutionError(UserErrorException):
    """A node's code raised; the line fails."""


class JinjaTemplateError(ToolValidationError):
    """Raised for a template that is not valid jinja2, and in a line whose values it cannot be rendered with."""


class ChatAPIInvalidRole(ToolValidationError):  # noqa: N818 - promptflow's name, like the next two
    """Raised in a line whose chat prompt has text before its first role."""


class ChatAPIFunctionRoleInvalidFormat(ToolValidationError):  # noqa: N818
    """Raised in a line whose chat prompt has a function message without a name."""


class ChatAPIToolRoleInvalidFormat(ToolValidationError):  # noqa: N818
    """Raised in a line whose chat prompt has a tool message without the id of its call."""


class OpenAIError(UserErrorException):
    """A model call failed; raised through its leaves, or itself for a status without a leaf.

    The leaves have the openai package's names. Facts: `status` (HTTP, or `None`), `retry_after_sec` (the wait that the
    service asked for, or `None`).
    """


class APIConnectionError(OpenAIError):
    """Raised by a model call when the service cannot be reached, or the connection breaks."""


class APITimeoutError(APIConnectionError):
    """Raised by a model call when the service does not answer in time."""


class RateLimitError(OpenAIError):
    """Raised by a model call when the service gets too many calls, or the quota is used up (status 429)."""


class InternalServerError(OpenAIError):
    """Raised by a model call when the service fails (status 5xx)."""


class ConflictError(OpenAIError):
    """Raised by a model call that conflicts with another one (status 409)."""


class AuthenticationError(OpenAIError):
    """Raised by a model call when the service does not accept the key (status 401)."""


class PermissionDeniedError(OpenAIError):
    """Raised by a model call that the key has no permission for (status 403)."""


class NotFoundError(OpenAIError):
    """Raised by a model call for a model, deployment or path that does not exist (status 404)."""


class UnprocessableEntityError(OpenAIError):
    """Raised by a model call that the service understands but cannot process (status 422)."""


class BadRequestError(OpenAIError):
    """Raised by a model call that the service finds invalid (status 400)."""


class ContentFilterError(BadRequestError):
    """Raised by a model call whose prompt or answer the service's content filter blocks."""


class APIResponseValidationError(OpenAIError):
    """Raised by a model call when the response is not a model's answer."""


class ScriptExecutionError(UserErrorException):
    """The code of a callable flow raised; the line fails."""


class LoadMultimediaDataError(UserErrorException):
    """An image in a line's inputs cannot be read, or is not allowed; the line fails before its code runs."""


class ImageTooLargeError(UserErrorException):
    """The images that a line returned are too large for its record; the line fails."""


class FlowOutputUnserializable(UserErrorException):
    """A line's output is not JSON; the line fails."""


class LineExecutionTimeoutError(UserErrorException):
    """A line reached its time limit; the line fails."""


class BatchRunTimeoutError(UserErrorException):
    """The run reached its time limit; in `error_summary.batch_error_dict`."""


class BatchFailureLimitError(UserErrorException):
    """More lines failed than the run's options allow; in `error_summary.batch_error_dict`."""


class ProcessCrashError(UserErrorException):
    """A line's worker process died while it ran the line; the line fails."""


class LineOutOfMemoryError(ProcessCrashError):
    """A line asked for more than `line_memory_mb`; the line fails."""


class LineFailureError(UserErrorException):
    """Raised by `BatchEngine.run(raise_on_line_failure=True)` after everything is written."""

    batch_result: Any
    """The `BatchResult`."""


class InvalidRunIdError(UserErrorException):
    """Raised for a run id that is not a safe name."""


class RunNotFoundError(UserErrorException):
    """Raised when the storage has no run with that id."""


class RunNotReadyError(UserErrorException):
    """Raised when a run builds on another run that has no outputs, or not all of them yet."""


class RunInUseError(UserErrorException):
    """Raised when another process holds the run."""


class RunChangedError(UserErrorException):
    """Raised on resume when data, mapping, flow or options changed; `changes` lists them."""


class UnexpectedError(SystemErrorException):
    """Any foreign exception, with its type and text."""


class StorageError(SystemErrorException):
    """Raised when the run storage cannot be read or written; the run stops before it pays for another line."""


class RecordCorruptError(StorageError):
    """Raised by the records' reader for a segment with a wrong checksum or form."""


class WorkerStartError(SystemErrorException):
    """Raised when a worker process does not start; the run stops."""


class PrefectServerError(SystemErrorException):
    """Raised when the Prefect server does not start, does not answer or refuses, before the first line."""


class ClusterError(SystemErrorException):
    """Raised when a cluster cannot be reached, has no workers, or loses the same lines repeatedly; the run stops."""


def is_promptflows(exc: BaseException) -> TypeGuard[Any]:
    """Whether it is an exception of an installed promptflow."""
    return any(
        base.__name__ == "PromptflowException" and base.__module__ == "promptflow.exceptions"
        for base in type(exc).__mro__
    )


TO_GIVE = "ToGive"
"""The key in an error's additional information for something that a run lacks and the caller can give: its kind and name."""


def error_dict(exc: BaseException, *, debug: bool = False) -> dict[str, Any]:
    """Describe an exception as promptflow does.

    Args:
        exc: Any exception; a foreign one becomes a `SystemError` with its class name.
        debug: Add `debugInfo` with type, message and stack trace.

    Returns:
        `{message, messageFormat, messageParameters, referenceCode, code, innerError, additionalInfo?, debugInfo?}`.
    Source: promptflow `_utils/exception_utils.py`, `ExceptionPresenter.to_dict`.
    """
    message_format, parameters = "", {}
    if isinstance(exc, BatchflowException):
        codes, target, info = type(exc).codes(), str(exc.target), exc.additional_info
        message_format, parameters = exc.message_format, exc.message_parameters
    elif is_promptflows(exc):
        codes, target, info = exc.error_codes or ["SystemError"], str(exc.reference_code), exc.additional_info
        message_format, parameters = exc.message_format, exc.message_parameters
    else:
        codes, target, info = ["SystemError", type(exc).__name__], "", {}
    inner: dict[str, Any] | None = None
    for code in reversed(codes[1:]):
        inner = {"code": code, "innerError": inner}
    result: dict[str, Any] = {
        "message": str(exc),
        "messageFormat": message_format,
        "messageParameters": {name: str(value) for name, value in parameters.items()},
        "referenceCode": target,
        "code": codes[0],
        "innerError": inner,
    }
    if info:
        result["additionalInfo"] = [{"type": name, "info": value} for name, value in info.items()]
    if debug:
        result["debugInfo"] = {
            "type": type(exc).__name__,
            "message": str(exc),
            "stackTrace": "".join(traceback.format_exception(exc)),
            "innerException": None,
        }
    return result


def innermost_code(error: dict[str, Any]) -> str:
    """The most specific code of an error dictionary: `LineExecutionTimeoutError` of `UserError/…`."""
    code = str(error.get("code", ""))
    inner = error.get("innerError")
    while isinstance(inner, dict):
        code = str(inner.get("code", code))
        inner = inner.get("innerError")
    return code


def told(exc: BaseException) -> str:
    """An exception as part of a sentence: its type and its text, without a full stop at the end."""
    return f"({type(exc).__name__}) {str(exc).rstrip('.')}"


def listed(names: Iterable[str]) -> str:
    """The names in quotes, separated by commas."""
    return ", ".join(f"'{name}'" for name in names)
