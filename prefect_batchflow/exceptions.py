"""Every error of the package, and the error dictionary of promptflow made from one.

::

    BatchflowException
    ├── UserErrorException              the flow, the data or the setup cures it
    │   ├── ValidationError
    │   │   ├── InvalidFlowRequest      the flow's definition is wrong
    │   │   │   ├── FlowDefinitionError       unreadable, or not a flow
    │   │   │   ├── UnsupportedFeatureError   a key or feature that is not supported here
    │   │   │   ├── InputNotFound             an input the flow needs is not there
    │   │   │   ├── InputTypeError            a value does not fit its input's type
    │   │   │   ├── InputParseError           a text is not the JSON its input's type asks for
    │   │   │   ├── InputReferenceNotFound    a reference to an unknown flow input
    │   │   │   ├── NodeReferenceNotFound     a reference to an unknown node
    │   │   │   ├── NodeCircularDependency    nodes that wait for each other
    │   │   │   ├── DuplicateNodeName         two nodes of one name
    │   │   │   ├── InvalidNodeReference      a node of the lines that refers to an aggregation node
    │   │   │   ├── EmptyOutputReference      an output of the flow that refers to nothing
    │   │   │   ├── OutputReferenceNotFound   an output of the flow that refers to an unknown node or input
    │   │   │   ├── InvalidConnectionType     an llm node's connection serves no models
    │   │   │   └── NodeInputValidationError  a literal or a connection of a type that the tool does not take
    │   │   ├── InvalidSource           a node's source is not there; a FlowDefinitionError, too
    │   │   ├── InvalidFlexFlowEntry    an `entry` is no module:name; a FlowDefinitionError, too
    │   │   ├── APINotFound             an llm node's api is unknown
    │   │   ├── PackageToolNotFoundError   no installed package has the tool
    │   │   ├── InputMappingError       `inputs_mapping` and the data do not fit
    │   │   ├── InvalidRequest          what was given with the flow does not serve it
    │   │   │   └── GetConnectionError        a connection is not there, or cannot be made
    │   │   ├── InvalidOptionError      an option of the run is out of range or misspelt
    │   │   └── InvalidImageInput       an image of the data or the flow cannot be read, or may not be
    │   ├── FlowNotFoundError           nothing at the flow's path, or no such attribute
    │   ├── InvalidUserData             the data cannot be read as its suffix says
    │   ├── EmptyInputsData             the data holds no line
    │   ├── ResolveToolError            a node's tool cannot be found in its source, or not be given what it needs;
    │   │                               GetConnectionError, InvalidConnectionType, NodeInputValidationError, APINotFound and
    │   │                               PackageToolNotFoundError are of this class, too
    │   ├── CoreError
    │   │   ├── InvalidConnectionError     a connection or model configuration cannot be made of its values
    │   │   ├── MissingRequiredInputError  a prompty is called without an input that it needs
    │   │   └── InvalidOutputKeyError      a model's answer in JSON lacks what a prompty's outputs name
    │   ├── FlowEntryInitializationError   a class entry's constructor raised
    │   ├── NodeReferenceError
    │   │   └── InvalidReferenceProperty   a node's output lacks what a reference asks for
    │   ├── ToolExecutionError          a node's code raised
    │   ├── ToolValidationError         what a node's code, prompt or model call is made of is wrong
    │   │   ├── JinjaTemplateError                a template is no jinja2, or cannot be rendered
    │   │   ├── ChatAPIInvalidRole                a chat's prompt does not begin with a role
    │   │   ├── ChatAPIFunctionRoleInvalidFormat  a function's message without name
    │   │   ├── ChatAPIToolRoleInvalidFormat      a tool's message without the id of its call
    │   │   └── PythonParsingError
    │   │       ├── NoToolDefined         a node's file has no function with @tool
    │   │       ├── MultipleToolsDefined  it has several
    │   │       └── PythonLoadError     the flow's code cannot be imported
    │   ├── InvalidAggregationFunction  an __aggregate__ takes something else than the outputs
    │   ├── OpenAIError                 a model call failed; leaves have the openai package's names
    │   │   ├── APIConnectionError          the service cannot be reached, or went away
    │   │   │   └── APITimeoutError         it did not answer in time
    │   │   ├── RateLimitError              it refuses so many calls, or the quota is spent
    │   │   ├── InternalServerError         it failed, status 5xx
    │   │   ├── ConflictError               status 409
    │   │   ├── AuthenticationError         it does not know the key
    │   │   ├── PermissionDeniedError       the key may not do that
    │   │   ├── NotFoundError               no such model, deployment or path
    │   │   ├── UnprocessableEntityError    status 422
    │   │   ├── BadRequestError             the call is wrong
    │   │   │   └── ContentFilterError      the prompt, or the answer, was filtered
    │   │   └── APIResponseValidationError  an answer that is none
    │   ├── ScriptExecutionError        a callable flow's code raised
    │   ├── LoadMultimediaDataError     a line's input has an image that cannot be read, or may not be
    │   ├── ImageTooLargeError          a line's images are too large for its record
    │   ├── FlowOutputUnserializable    a line's output is not JSON
    │   ├── LineExecutionTimeoutError   a line met its time limit
    │   ├── BatchRunTimeoutError        the run met its time limit
    │   ├── BatchFailureLimitError      more of its lines failed than its options allow
    │   ├── ProcessCrashError           a line's process died
    │   │   └── LineOutOfMemoryError    a line asked for more than its memory limit
    │   ├── LineFailureError            `raise_on_line_failure`, after everything was written
    │   ├── InvalidRunIdError           a run id that is no safe name
    │   ├── RunNotFoundError            no run of that id in the storage
    │   ├── RunNotReadyError            a run to build on has no outputs, or not all yet
    │   ├── RunInUseError               another process runs that id
    │   └── RunChangedError             a resumed run's data, mapping or flow is not what it was
    └── SystemErrorException            the surroundings failed, not the flow
        ├── UnexpectedError             anything foreign, with its type and text
        ├── StorageError                the run storage cannot be read or written
        │   └── RecordCorruptError      a record whose checksum or form is wrong
        ├── WorkerStartError            a worker process does not start
        └── ClusterError                a Dask or Ray cluster cannot be reached, or loses the same lines again and again

The class names that promptflow has are promptflow's, since `code` and `innerError` of an error dictionary are made from them.
"""

from __future__ import annotations

import traceback
from string import Formatter
from typing import Any, ClassVar, TypeGuard


class BatchflowException(Exception):  # noqa: N818 - promptflow's bases end in Exception, and codes drop that suffix
    """The base of all errors here: a message for people, and facts for programs.

    Args:
        message: What happened, where, what was expected, what to do.
        message_format: What `message` is made of by the facts, where it is not given, as promptflow's exceptions have it.
        target: promptflow's reference code, the part that noticed: `Executor`, `Batch`, `Tool`.
        additional_info: Named facts for readers of the error dictionary, `{type: info}`.
        facts: Anything else a caller may want; each becomes an attribute.
    """

    _not_in_codes: ClassVar[frozenset[str]] = frozenset()
    """Names of the classes above it that its codes leave out, where promptflow's class of its name stands elsewhere."""

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
        """What it was raised from, or was given as the fact `error`."""
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
    """The facts that a format names; one that is not given is shown as `<name>`."""
    names = {name.partition(".")[0].partition("[")[0] for _, name, _, _ in Formatter().parse(message_format) if name}
    return {name: facts.get(name, f"<{name}>") for name in sorted(names)}


def _rebuild(
    cls: type[BatchflowException], message: str, target: str, info: dict[str, Any], facts: dict[str, Any]
) -> BatchflowException:
    return cls(message, target=target, additional_info=info, **facts)


class UserErrorException(BatchflowException):
    """The flow, its data or the setup cures it."""


class SystemErrorException(BatchflowException):
    """The surroundings failed, not the flow."""


class ValidationError(UserErrorException):
    """Something given is not valid; raised through its leaves."""


class InvalidFlowRequest(ValidationError):  # noqa: N818 - promptflow's name
    """The flow's definition is wrong; raised through its leaves."""


class FlowDefinitionError(InvalidFlowRequest):
    """Raised by `load_flow` for a file that is unreadable or is no flow."""


class InvalidSource(FlowDefinitionError):  # noqa: N818 - promptflow's name
    """Raised by `load_flow` for a node whose source is not there, or no file of the flow."""

    _not_in_codes: ClassVar[frozenset[str]] = frozenset({"InvalidFlowRequest", "FlowDefinitionError"})


class InvalidFlexFlowEntry(FlowDefinitionError):  # noqa: N818 - promptflow's name
    """Raised by `load_flow` for an `entry` that is no `module:name`."""

    _not_in_codes: ClassVar[frozenset[str]] = frozenset({"InvalidFlowRequest", "FlowDefinitionError"})


class UnsupportedFeatureError(InvalidFlowRequest):
    """Raised by `load_flow` for a key or feature that is not supported here, by name."""


class InputNotFound(InvalidFlowRequest):
    """Raised for a flow without inputs, and for a line that lacks one."""


class InputTypeError(InvalidFlowRequest):
    """Raised by `lines` for a value that does not fit its input's type."""


class InputParseError(InvalidFlowRequest):
    """Raised by `lines` for a text that is not the JSON its input's type asks for."""


class InputReferenceNotFound(InvalidFlowRequest):
    """Raised by `load_flow` for a reference to a flow input that is not declared."""


class NodeReferenceNotFound(InvalidFlowRequest):
    """Raised by `load_flow` for a reference to a node that does not exist."""


class NodeCircularDependency(InvalidFlowRequest):
    """Raised by `load_flow` for nodes that wait for each other."""


class DuplicateNodeName(InvalidFlowRequest):
    """Raised by `load_flow` for two nodes of one name."""


class InvalidNodeReference(InvalidFlowRequest):
    """Raised by `load_flow` for a node that runs for each line and refers to an aggregation node."""


class EmptyOutputReference(InvalidFlowRequest):
    """Raised by `load_flow` for an output of the flow that refers to nothing."""


class OutputReferenceNotFound(InvalidFlowRequest):
    """Raised by `load_flow` for an output of the flow that refers to an unknown node or input."""


class NodeReferenceError(UserErrorException):
    """A reference to a node does not hold while a line runs; raised as one of its kinds."""


class InvalidReferenceProperty(NodeReferenceError):  # noqa: N818 - promptflow's name
    """Raised while a line runs, for a reference into an output that lacks the key, attribute or index."""


class InvalidRequest(ValidationError):  # noqa: N818 - promptflow's name
    """What was given with the flow does not serve it; raised through its leaves."""


class InvalidOptionError(ValidationError):
    """Raised for an option of a run that is out of range, misspelt or contradicts another."""


class InvalidImageInput(ValidationError):  # noqa: N818 - promptflow's name
    """Raised for an image that cannot be read, or may not be; a line fails with `LoadMultimediaDataError` that has its text."""


class FlowNotFoundError(UserErrorException):
    """Raised by `load_flow` when nothing is at the path, or the module has no such attribute."""


class InputMappingError(ValidationError):
    """Raised before the first line runs, for a mapping that does not fit the data; lists all that is wrong."""


class InvalidUserData(UserErrorException):
    """Raised by the readers for data that cannot be read as its suffix says."""


class EmptyInputsData(UserErrorException):
    """Raised before the first line runs, when the data holds none."""


class ToolValidationError(UserErrorException):
    """What a node's code, prompt or model call is made of is wrong; raised as one of its kinds."""


class PythonParsingError(ToolValidationError):
    """The flow's Python code is wrong; raised as one of its kinds."""


class PythonLoadError(PythonParsingError):
    """Raised by the loader when the flow's code cannot be imported or lacks the entry."""


class ResolveToolError(UserErrorException):
    """Raised by the loader when a node's tool cannot be found in its source, or not be given what it needs."""

    _not_in_codes: ClassVar[frozenset[str]] = frozenset({"ResolveToolError"})
    """promptflow wraps it around its leaves, and leaves it out."""


class GetConnectionError(InvalidRequest, ResolveToolError):
    """Raised by the loader for a connection that was not given, or that cannot be made of what was."""


class NoToolDefined(PythonParsingError, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for a node whose file has no function with `@tool`."""


class MultipleToolsDefined(PythonParsingError, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for a node whose file has several functions with `@tool`."""


class InvalidAggregationFunction(UserErrorException):
    """Raised by the loader for an `__aggregate__` that does not take the list of outputs."""


class NodeInputValidationError(InvalidFlowRequest, ResolveToolError):
    """Raised by the loader for an input that its tool does not take: a literal or a connection of another type."""


class InvalidConnectionType(InvalidFlowRequest, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for an llm node whose connection serves no models."""


class APINotFound(ValidationError, ResolveToolError):  # noqa: N818 - promptflow's name
    """Raised by the loader for an llm node with an unknown api."""


class PackageToolNotFoundError(ValidationError, ResolveToolError):
    """Raised by the loader for a tool that no installed package has."""


class CoreError(UserErrorException):
    """What flows use of promptflow is used wrongly; raised through its leaves."""


class InvalidConnectionError(CoreError):
    """Raised for a connection or model configuration that cannot be made of the values given; never tells them."""


class MissingRequiredInputError(CoreError):
    """Raised by a prompty that is called without an input that has no default."""


class InvalidOutputKeyError(CoreError):
    """Raised by a prompty whose `outputs` name what the model's answer in JSON lacks."""


class FlowEntryInitializationError(UserErrorException):
    """Raised by the loader when a class entry's constructor raised."""


class ToolExecutionError(UserErrorException):
    """A node's code raised; the line fails with it."""


class JinjaTemplateError(ToolValidationError):
    """Raised for a template that is no jinja2, and in a line for one that cannot be rendered with its values."""


class ChatAPIInvalidRole(ToolValidationError):  # noqa: N818 - promptflow's name, like the next two
    """Raised in a line whose chat prompt has text before its first role."""


class ChatAPIFunctionRoleInvalidFormat(ToolValidationError):  # noqa: N818
    """Raised in a line whose chat prompt has a function's message without name."""


class ChatAPIToolRoleInvalidFormat(ToolValidationError):  # noqa: N818
    """Raised in a line whose chat prompt has a tool's message without the id of its call."""


class OpenAIError(UserErrorException):
    """A model call failed; raised through its leaves, or itself for a status that none of them stands for.

    Facts: `status` (HTTP, or `None`), `retry_after_sec` (what the service asked for, or `None`).
    """


class APIConnectionError(OpenAIError):
    """Raised by a model call when the service cannot be reached, or goes away while it answers."""


class APITimeoutError(APIConnectionError):
    """Raised by a model call when the service does not answer in time."""


class RateLimitError(OpenAIError):
    """Raised by a model call when the service refuses so many, or the quota is spent."""


class InternalServerError(OpenAIError):
    """Raised by a model call when the service fails."""


class ConflictError(OpenAIError):
    """Raised by a model call that conflicts with another."""


class AuthenticationError(OpenAIError):
    """Raised by a model call when the service does not know the key."""


class PermissionDeniedError(OpenAIError):
    """Raised by a model call that the key may not do."""


class NotFoundError(OpenAIError):
    """Raised by a model call for a model, deployment or path that is not there."""


class UnprocessableEntityError(OpenAIError):
    """Raised by a model call that the service understands, and cannot do."""


class BadRequestError(OpenAIError):
    """Raised by a model call that is wrong."""


class ContentFilterError(BadRequestError):
    """Raised by a model call whose prompt, or answer, the service's content filter refuses."""


class APIResponseValidationError(OpenAIError):
    """Raised by a model call that is answered by something else than an answer."""


class ScriptExecutionError(UserErrorException):
    """A callable flow's code raised; the line fails with it."""


class LoadMultimediaDataError(UserErrorException):
    """An image in a line's inputs cannot be read, or may not be; the line fails with it before its code runs."""


class ImageTooLargeError(UserErrorException):
    """The images that a line returned are too large for its record; the line fails with it."""


class FlowOutputUnserializable(UserErrorException):
    """A line's output is not JSON; the line fails with it."""


class LineExecutionTimeoutError(UserErrorException):
    """A line met its time limit; the line fails with it."""


class BatchRunTimeoutError(UserErrorException):
    """The run met its time limit; in `error_summary.batch_error_dict`."""


class BatchFailureLimitError(UserErrorException):
    """More lines failed than the run's options allow; in `error_summary.batch_error_dict`."""


class ProcessCrashError(UserErrorException):
    """A line's worker process died while it ran; the line fails with it."""


class LineOutOfMemoryError(ProcessCrashError):
    """A line asked for more than `line_memory_mb`; the line fails with it."""


class LineFailureError(UserErrorException):
    """Raised by `BatchEngine.run(raise_on_line_failure=True)` after all was written."""

    batch_result: Any
    """The `BatchResult`."""


class InvalidRunIdError(UserErrorException):
    """Raised for a run id that is no safe name."""


class RunNotFoundError(UserErrorException):
    """Raised when the storage holds no run of that id."""


class RunNotReadyError(UserErrorException):
    """Raised when a run is to be built on one that has no outputs, or not all of them yet."""


class RunInUseError(UserErrorException):
    """Raised when another process holds the run."""


class RunChangedError(UserErrorException):
    """Raised on resume when data, mapping, flow or options are not what they were; `changes` lists what."""


class UnexpectedError(SystemErrorException):
    """Anything foreign, named by its type and text."""


class StorageError(SystemErrorException):
    """Raised when the run storage cannot be read or written; the run stops, no further line is paid for."""


class RecordCorruptError(StorageError):
    """Raised by the records' reader for a segment whose checksum or form is wrong."""


class WorkerStartError(SystemErrorException):
    """Raised when a worker process does not start; the run stops."""


class ClusterError(SystemErrorException):
    """Raised when a cluster cannot be reached, has no workers, or loses the same lines again and again; the run stops."""


def is_promptflows(exc: BaseException) -> TypeGuard[Any]:
    """Whether it is one of promptflow's own exceptions, where promptflow is installed."""
    return any(
        base.__name__ == "PromptflowException" and base.__module__ == "promptflow.exceptions"
        for base in type(exc).__mro__
    )


def error_dict(exc: BaseException, *, debug: bool = False) -> dict[str, Any]:
    """Describe an exception the way promptflow does.

    Args:
        exc: Any exception; a foreign one is a `SystemError` of its class name.
        debug: Also give `debugInfo` with type, message and stack trace.

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
    """An exception as part of a sentence: its type and its text, without the full stop with which some end."""
    return f"({type(exc).__name__}) {str(exc).rstrip('.')}"
