"""The classes of errors, by which a failed line is tried again or not: which there are, and what belongs to each.

A class is told twice: in a worker, of the exception that the line's code raised, and of an error dictionary, which is all that
is left of it elsewhere. Exceptions are known by name, so that no library is imported for it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


class ErrorClass(StrEnum):
    """What kind of thing went wrong."""

    RATE_LIMIT = "rate_limit"
    """A service refuses so many calls: status 429."""
    TRANSIENT = "transient"
    """A service, or the way to it, failed and may not fail again: broken connections, status 409, 425 and 5xx."""
    TIMEOUT = "timeout"
    """Something did not end in time: the line, a call it made, or, status 408, a service."""
    CRASH = "crash"
    """The line's process died."""
    OUT_OF_MEMORY = "out_of_memory"
    """The line asked for more memory than there is for it."""
    BAD_INPUT = "bad_input"
    """The line's row does not fit the flow; it fails without running, or before its code does."""
    REFUSED = "refused"
    """A service refuses this call, and will again: the other statuses 4xx, a spent quota, a filtered prompt."""
    USER_CODE = "user_code"
    """Anything else that the flow's code raised or returned."""


NOT_RETRIED: Final = frozenset({ErrorClass.BAD_INPUT, ErrorClass.REFUSED})
"""What fails again however often it is tried; tried again only where it is asked for by name."""

PASSING: Final = frozenset({ErrorClass.RATE_LIMIT, ErrorClass.TRANSIENT, ErrorClass.TIMEOUT})
"""What says nothing of the call itself, and may be over soon."""

INFO_KEY: Final = "error_class"
"""Where an error dictionary has the class, in the facts on what was raised."""

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
"""This package's and promptflow's codes; the innermost that is here counts."""

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
    "requests.SSLError": ErrorClass.USER_CODE,  # a ConnectionError, but a certificate stays what it is
    "aiohttp.ServerFingerprintMismatch": ErrorClass.USER_CODE,  # the same
    "requests.ConnectionError": ErrorClass.TRANSIENT,
    "requests.ChunkedEncodingError": ErrorClass.TRANSIENT,
    "urllib3.TimeoutError": ErrorClass.TIMEOUT,
    "urllib3.ProtocolError": ErrorClass.TRANSIENT,
    "urllib3.NewConnectionError": ErrorClass.TRANSIENT,
    "aiohttp.ClientConnectionError": ErrorClass.TRANSIENT,
    "aiohttp.ClientPayloadError": ErrorClass.TRANSIENT,
}
"""Exceptions by `package.Name`; the first that is here of those that one is derived from counts."""

_VALUES: Final = tuple(ErrorClass)
_PACKAGES: Final = {"httpx2": "httpx", "httpcore2": "httpcore", "_socket": "socket", "_ssl": "ssl"}
"""Packages that have another's classes."""
_UNREACHED: Final = frozenset({"EAI_AGAIN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"})
_CERTIFICATE: Final = "ssl.SSLCertVerificationError"
_OWN: Final = frozenset({"prefect_batchflow", "promptflow"})
_MOST_CAUSES: Final = 8


def class_of_exception(exc: BaseException) -> ErrorClass:
    """The class of what a line's code raised, or, where that says nothing, of what it was raised from."""
    try:
        for cause in _causes(exc):
            if (found := _class_of(cause)) is not None:
                return found
    except Exception:  # noqa: BLE001 - attributes of a user's class may raise, and be anything
        return ErrorClass.USER_CODE
    return ErrorClass.USER_CODE


def class_of_error(error: Mapping[str, Any]) -> ErrorClass:
    """The class of an error dictionary, which a service in another language may have made."""
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
    """Whether an error dictionary is of one of these classes, or has one of these codes or types of exceptions in its chain."""
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
    """The class of one exception; `None` if it says nothing of the kind."""
    if (said := getattr(exc, INFO_KEY, None)) in _VALUES:
        return ErrorClass(said)
    if "insufficient_quota" in (getattr(exc, "code", None), getattr(exc, "type", None)):
        return ErrorClass.REFUSED
    for cls in type(exc).__mro__:
        package, name = _package(cls), cls.__name__
        if package in _OWN and name in _OF_CODES:
            # A model's service may say that a further try is no use.
            return ErrorClass.REFUSED if getattr(exc, "final", False) is True else _OF_CODES[name]
        if f"{package}.{name}" in _OF_EXCEPTIONS:
            kind = _OF_EXCEPTIONS[f"{package}.{name}"]
            # A certificate stays what it is, whatever kind of connection it breaks.
            return ErrorClass.USER_CODE if kind is ErrorClass.TRANSIENT and _is_of_certificate(exc) else kind
    status = _status(exc)
    if status is not None:
        return class_of_status(status)
    if isinstance(exc, OSError) and exc.errno is not None:
        import errno

        return ErrorClass.TRANSIENT if errno.errorcode.get(exc.errno) in _UNREACHED else None
    return None


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from, and so on, so far as anybody wants to know."""
    cause: BaseException | None = exc
    for _ in range(_MOST_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or _reason(cause)


def _is_of_certificate(exc: BaseException) -> bool:
    """Whether a certificate was not accepted."""
    return any(f"{_package(cls)}.{cls.__name__}" == _CERTIFICATE for one in _causes(exc) for cls in type(one).__mro__)


def _reason(exc: BaseException) -> BaseException | None:
    """Where urllib's, urllib3's and httpcore's errors have their cause."""
    reason = next(iter(exc.args), None) if _package(type(exc)) == "httpcore" else getattr(exc, "reason", None)
    return reason if isinstance(reason, BaseException) else None


def class_of_status(status: int) -> ErrorClass | None:
    """The class of an HTTP status; `None` for one that is no error."""
    if status == 429:
        return ErrorClass.RATE_LIMIT
    if status == 408:
        return ErrorClass.TIMEOUT
    if status in (409, 425) or 500 <= status <= 599:
        return ErrorClass.TRANSIENT
    return ErrorClass.REFUSED if 400 <= status <= 499 else None


def _status(exc: BaseException) -> int | None:
    """The HTTP status that an exception carries: openai's, httpx', requests', aiohttp's or urllib's."""
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
