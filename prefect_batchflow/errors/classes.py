"""Error classes, which decide whether a failed line is retried: the list of them, and the errors in each.

The exceptions that the package raises are in `exceptions`.

The class comes from the exception itself in a worker, and from the error dictionary elsewhere, where nothing else is left.
Exceptions are recognised by name, so that no library is imported for it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.errors.quota import CODES

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

IN_GROUP_KEY: Final = "types_in_group"
"""The key of the types of the exceptions in a group."""

_OF_CODES: Final[Mapping[str, ErrorClass]] = {
    code: kind
    for kind, codes in {
        ErrorClass.RATE_LIMIT: "RateLimitError",
        ErrorClass.TRANSIENT: "APIConnectionError InternalServerError ConflictError",
        ErrorClass.TIMEOUT: "APITimeoutError LineExecutionTimeoutError",
        ErrorClass.CRASH: "ProcessCrashError",
        ErrorClass.OUT_OF_MEMORY: "LineOutOfMemoryError",
        ErrorClass.BAD_INPUT: "InputMappingError InputNotFound InputParseError InputTypeError InvalidImageInput "
        "InvalidUserData LoadMultimediaDataError",
        ErrorClass.REFUSED: "APIResponseValidationError AuthenticationError BadRequestError NotFoundError "
        "PermissionDeniedError UnprocessableEntityError",
    }.items()
    for code in codes.split()
}
"""Codes of this package and of promptflow; the innermost code in this table counts."""

_OF_EXCEPTIONS: Final[Mapping[str, ErrorClass]] = {
    name: kind
    for kind, names in {
        ErrorClass.OUT_OF_MEMORY: "builtins.MemoryError",
        ErrorClass.RATE_LIMIT: "openai.RateLimitError",
        ErrorClass.TIMEOUT: "builtins.TimeoutError subprocess.TimeoutExpired openai.APITimeoutError anthropic.APITimeoutError "
        "httpx.TimeoutException httpcore.TimeoutException requests.ConnectTimeout requests.Timeout urllib3.TimeoutError",
        ErrorClass.TRANSIENT: "builtins.ConnectionError http.IncompleteRead socket.gaierror ssl.SSLEOFError "
        "openai.APIConnectionError openai.InternalServerError anthropic.APIConnectionError "
        "httpx.NetworkError httpx.RemoteProtocolError httpx.ProxyError httpcore.NetworkError httpcore.RemoteProtocolError "
        "requests.ConnectionError requests.ChunkedEncodingError urllib3.ProtocolError urllib3.NewConnectionError "
        "aiohttp.ClientConnectionError aiohttp.ClientPayloadError",
        # Connection errors by their base class, but a certificate does not change.
        ErrorClass.USER_CODE: "requests.SSLError aiohttp.ServerFingerprintMismatch",
    }.items()
    for name in names.split()
}
"""Exceptions by `package.Name`; the first base class in this table counts."""

_VALUES: Final = tuple(ErrorClass)
_PACKAGES: Final = {"httpx2": "httpx", "httpcore2": "httpcore", "_socket": "socket", "_ssl": "ssl"}
"""Packages with the same classes as another package."""
_UNREACHED: Final = frozenset({"EAI_AGAIN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"})
_CERTIFICATE: Final = "ssl.SSLCertVerificationError"
_OWN: Final = frozenset({"prefect_batchflow", "promptflow"})
_MOST_CAUSES: Final = 8
_MOST_IN_GROUP: Final = 100

_IN_GROUP: Final = (
    *(ErrorClass.REFUSED, ErrorClass.BAD_INPUT, ErrorClass.OUT_OF_MEMORY, ErrorClass.CRASH, ErrorClass.USER_CODE),
    *(ErrorClass.RATE_LIMIT, ErrorClass.TRANSIENT, ErrorClass.TIMEOUT),
)
"""Which class a group of several errors has: the first of these. A retry must cure them all, so the stubborn ones count."""


def class_of_exception(exc: BaseException) -> ErrorClass:
    """The class of an exception, or of its causes if the exception itself has none; that of a group by what is in it."""
    try:
        return _class_with_causes(exc) or ErrorClass.USER_CODE
    except Exception:  # noqa: BLE001 - attributes of a user's class can raise, and be anything
        return ErrorClass.USER_CODE


def exceptions_in(exc: BaseException) -> list[BaseException]:
    """The exceptions in a group and in the groups in it; otherwise the exception itself.

    A task that was only cancelled because another failed says nothing, so a cancellation counts if there is nothing else.
    """
    found: list[BaseException] = []
    waiting = [exc]
    while waiting and len(found) < _MOST_IN_GROUP:
        one = waiting.pop(0)
        if isinstance(one, BaseExceptionGroup):
            waiting[:0] = one.exceptions
        else:
            found.append(one)
    return [one for one in found if type(one).__name__ != "CancelledError"] or found


def _class_with_causes(exc: BaseException) -> ErrorClass | None:
    for cause in _causes(exc):
        if (found := _class_of(cause)) is not None:
            return found
        if isinstance(cause, BaseExceptionGroup):
            kinds = {_class_with_causes(one) or ErrorClass.USER_CODE for one in exceptions_in(cause)}
            return next(kind for kind in _IN_GROUP if kind in kinds)
    return None


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
    return any(name in names for info in infos(error) for name in (info.get("type"), *_types_in(info)))


def _types_in(info: Mapping[str, Any]) -> list[Any]:
    """The types of the exceptions in a group."""
    types = info.get(IN_GROUP_KEY)
    return [name for name in types if isinstance(name, str)] if isinstance(types, list) else []


def infos(error: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The facts of an error dictionary."""
    entries = error.get("additionalInfo")
    found = [entry.get("info") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [info for info in found if isinstance(info, dict)]


def _class_of(exc: BaseException) -> ErrorClass | None:
    """The class of one exception; `None` if the exception itself does not show it."""
    if (said := getattr(exc, INFO_KEY, None)) in _VALUES:
        return ErrorClass(said)
    if not CODES.isdisjoint({str(getattr(exc, "code", None)), str(getattr(exc, "type", None))}):
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
