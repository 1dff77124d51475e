"""Error classes, which decide whether a failed line is retried: the list of them, and the errors in each.

The class comes from the exception itself in a worker, and from the error dictionary elsewhere, where nothing else is left.
Exceptions are recognised by name, so that no library is imported for it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


class ErrorClass(StrEnum):
    """The kind of an error."""

    RATE_LIMIT = "rate_limit"
    """A service gets too many calls: status 429."""
    TRANSIENT = "transient"
    """A service, or the way to it, failed but can recover: broken connections, status 409, 425 and 5xx."""
    TIMEOUT = "timeout"
    """Something took too long: the line, a call it made, or a service (status 408)."""
    CRASH = "crash"
    """The line's process died."""
    OUT_OF_MEMORY = "out_of_memory"
    """The line asked for more memory than its limit."""
    BAD_INPUT = "bad_input"
    """The line's row does not fit the flow; the line fails before its code runs."""
    REFUSED = "refused"
    """A service refuses this call and would refuse it again: other 4xx statuses, a spent quota, a filtered prompt."""
    USER_CODE = "user_code"
    """Any other error of the flow's code."""


NOT_RETRIED: Final = frozenset({ErrorClass.BAD_INPUT, ErrorClass.REFUSED})
"""Errors that a retry does not cure; they are retried only if the options name them."""

PASSING: Final = frozenset({ErrorClass.RATE_LIMIT, ErrorClass.TRANSIENT, ErrorClass.TIMEOUT})
"""Errors that are not about the call itself and can be over soon."""

INFO_KEY: Final = "error_class"
"""The key of the class in an error dictionary's facts about the exception."""

_OF_CODES: Final[Mapping[str, ErrorClass]] = {
    **dict.fromkeys(("RateLimitError",), ErrorClass.RATE_LIMIT),
    **dict.fromkeys(("APIConnectionError", "InternalServerError", "ConflictError"), ErrorClass.TRANSIENT),
    **dict.fromkeys(("APITimeoutError", "LineExecutionTimeoutError"), ErrorClass.TIMEOUT),
    **dict.fromkeys(("ProcessCrashError",), ErrorClass.CRASH),
    **dict.fromkeys(("LineOutOfMemoryError",), ErrorClass.OUT_OF_MEMORY),
    **dict.fromkeys(
        (
            "InputMappingError",
            "InputNotFound",
            "InputParseError",
            "InputTypeError",
            "InvalidImageInput",
            "InvalidUserData",
            "LoadMultimediaDataError",
        ),
        ErrorClass.BAD_INPUT,
    ),
    **dict.fromkeys(
        (
            "APIResponseValidationError",
            "AuthenticationError",
            "BadRequestError",
            "NotFoundError",
            "PermissionDeniedError",
            "UnprocessableEntityError",
        ),
        ErrorClass.REFUSED,
    ),
}
"""Codes of this package and of promptflow; the innermost code in this table counts."""

_OF_EXCEPTIONS: Final[Mapping[str, ErrorClass]] = {
    "builtins.ConnectionError": ErrorClass.TRANSIENT,
    "builtins.MemoryError": ErrorClass.OUT_OF_MEMORY,
    "builtins.TimeoutError": ErrorClass.TIMEOUT,
    "subprocess.TimeoutExpired": ErrorClass.TIMEOUT,
    "http.IncompleteRead": ErrorClass.TRANSIENT,
    "socket.gaierror": ErrorClass.TRANSIENT,
    "ssl.SSLEOFError": ErrorClass.TRANSIENT,
    "openai.RateLimitError": ErrorClass.RATE_LIMIT,
    "openai.APITimeoutError": ErrorClass.TIMEOUT,
    "openai.APIConnectionError": ErrorClass.TRANSIENT,
    "openai.InternalServerError": ErrorClass.TRANSIENT,
    "anthropic.APITimeoutError": ErrorClass.TIMEOUT,
    "anthropic.APIConnectionError": ErrorClass.TRANSIENT,
    "httpx.TimeoutException": ErrorClass.TIMEOUT,
    "httpx.NetworkError": ErrorClass.TRANSIENT,
    "httpx.RemoteProtocolError": ErrorClass.TRANSIENT,
    "httpx.ProxyError": ErrorClass.TRANSIENT,
    "httpcore.TimeoutException": ErrorClass.TIMEOUT,
    "httpcore.NetworkError": ErrorClass.TRANSIENT,
    "httpcore.RemoteProtocolError": ErrorClass.TRANSIENT,
    "requests.ConnectTimeout": ErrorClass.TIMEOUT,
    "requests.Timeout": ErrorClass.TIMEOUT,
    "requests.SSLError": ErrorClass.USER_CODE,  # a ConnectionError, but a certificate does not change
    "aiohttp.ServerFingerprintMismatch": ErrorClass.USER_CODE,  # the same
    "requests.ConnectionError": ErrorClass.TRANSIENT,
    "requests.ChunkedEncodingError": ErrorClass.TRANSIENT,
    "urllib3.TimeoutError": ErrorClass.TIMEOUT,
    "urllib3.ProtocolError": ErrorClass.TRANSIENT,
    "urllib3.NewConnectionError": ErrorClass.TRANSIENT,
    "aiohttp.ClientConnectionError": ErrorClass.TRANSIENT,
    "aiohttp.ClientPayloadError": ErrorClass.TRANSIENT,
}
"""Exceptions by `package.Name`; the first base class in this table counts."""

_VALUES: Final = tuple(ErrorClass)
_PACKAGES: Final = {"httpx2": "httpx", "httpcore2": "httpcore", "_socket": "socket", "_ssl": "ssl"}
"""Packages with the same classes as another package."""
_UNREACHED: Final = frozenset({"EAI_AGAIN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"})
_CERTIFICATE: Final = "ssl.SSLCertVerificationError"
_OWN: Final = frozenset({"prefect_batchflow", "promptflow"})
_MOST_CAUSES: Final = 8


def class_of_exception(exc: BaseException) -> ErrorClass:
    """The class of an exception, or of its causes if the exception itself has none."""
    try:
        for cause in _causes(exc):
            if (found := _class_of(cause)) is not None:
                return found
    except Exception:  # noqa: BLE001 - attributes of a user's class may raise, and be anything
        return ErrorClass.USER_CODE
    return ErrorClass.USER_CODE


def class_of_error(error: Mapping[str, Any]) -> ErrorClass:
    """The class of an error dictionary, which can come from a service in another language."""
    for info in infos(error):
        if info.get(INFO_KEY) in _VALUES:
            return ErrorClass(info[INFO_KEY])
    found = ErrorClass.USER_CODE
    node: Any = error
    while isinstance(node, dict):
        code = node.get("code")
        found = _OF_CODES.get(code, found) if isinstance(code, str) else found
        node = node.get("innerError")
    return found


def is_one_of(names: Collection[str], error: dict[str, Any]) -> bool:
    """Whether an error dictionary has one of these classes, codes or exception types."""
    if class_of_error(error) in names:
        return True
    node: Any = error
    while isinstance(node, dict):
        if node.get("code") in names:
            return True
        node = node.get("innerError")
    return any(info.get("type") in names for info in infos(error))


def infos(error: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The facts of an error dictionary."""
    entries = error.get("additionalInfo")
    found = [entry.get("info") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [info for info in found if isinstance(info, dict)]


def _class_of(exc: BaseException) -> ErrorClass | None:
    """The class of one exception; `None` if the exception itself does not show it."""
    if (said := getattr(exc, INFO_KEY, None)) in _VALUES:
        return ErrorClass(said)
    if "insufficient_quota" in (getattr(exc, "code", None), getattr(exc, "type", None)):
        return ErrorClass.REFUSED
    for cls in type(exc).__mro__:
        package, name = _package(cls), cls.__name__
        if package in _OWN and name in _OF_CODES:
            # The model's service can say that a retry is useless.
            return ErrorClass.REFUSED if getattr(exc, "final", False) is True else _OF_CODES[name]
        if f"{package}.{name}" in _OF_EXCEPTIONS:
            kind = _OF_EXCEPTIONS[f"{package}.{name}"]
            # A bad certificate stays bad, whatever kind of connection it breaks.
            return ErrorClass.USER_CODE if kind is ErrorClass.TRANSIENT and _is_of_certificate(exc) else kind
    status = _status(exc)
    if status is not None:
        return class_of_status(status)
    if isinstance(exc, OSError) and exc.errno is not None:
        import errno

        return ErrorClass.TRANSIENT if errno.errorcode.get(exc.errno) in _UNREACHED else None
    return None


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception and the chain of its causes, at most `_MOST_CAUSES`."""
    cause: BaseException | None = exc
    for _ in range(_MOST_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or _reason(cause)


def _is_of_certificate(exc: BaseException) -> bool:
    """Whether a certificate was rejected."""
    return any(f"{_package(cls)}.{cls.__name__}" == _CERTIFICATE for one in _causes(exc) for cls in type(one).__mro__)


def _reason(exc: BaseException) -> BaseException | None:
    """The cause of an error of urllib, urllib3 or httpcore."""
    reason = next(iter(exc.args), None) if _package(type(exc)) == "httpcore" else getattr(exc, "reason", None)
    return reason if isinstance(reason, BaseException) else None


def class_of_status(status: int) -> ErrorClass | None:
    """The class of an HTTP status; `None` if the status is not an error."""
    if status == 429:
        return ErrorClass.RATE_LIMIT
    if status == 408:
        return ErrorClass.TIMEOUT
    if status in (409, 425) or 500 <= status <= 599:
        return ErrorClass.TRANSIENT
    return ErrorClass.REFUSED if 400 <= status <= 499 else None


def _status(exc: BaseException) -> int | None:
    """The HTTP status in an exception of openai, httpx, requests, aiohttp or urllib."""
    response = getattr(exc, "response", None)
    for found in (
        getattr(exc, "status_code", None),
        getattr(response, "status_code", None),
        getattr(exc, "status", None),
        getattr(exc, "code", None) if _package(type(exc)) == "urllib" else None,
    ):
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return None


def _package(cls: type) -> str:
    package = cls.__module__.partition(".")[0]
    return _PACKAGES.get(package, package)
