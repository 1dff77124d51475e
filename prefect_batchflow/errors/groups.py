"""The errors of many lines as a few groups: what happened, how often, where first, what to do."""

from __future__ import annotations

import re
from bisect import insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.errors.classes import ErrorClass, class_of_error
from prefect_batchflow.errors.quota import asks_for_billing
from prefect_batchflow.exceptions import innermost_code

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_GROUPS: Final = 1_000
"""Number of groups, at most; all other errors are counted together in `ErrorGroups.other`."""
MAX_TEMPLATE_CHARS: Final = 300
"""Length of a group's template, at most."""
MAX_SAMPLE_CHARS: Final = 1_000
"""Length of a group's sample message, at most."""
FIRST_LINES: Final = 5
"""Line numbers kept per group, the smallest ones."""

_READ_CHARS = 2_000  # a message says what happened at its beginning; the rest is data

_FIXED_NAME = re.compile(r"(?:failure in|module named|attribute|input|node) $", re.IGNORECASE)
_PLACEHOLDERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\w{1,20}://[^\s'\"<>]+"), "<url>"),
    (re.compile(r"(?<![\w<])(?:[A-Za-z]:)?(?:[\\/][\w.@+~-]+){2,}[\\/]?"), "<path>"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<id>"),
    (re.compile(r"(?<!\w)[-+]?\d+(?:\.\d+)?e[-+]\d+", re.IGNORECASE), "<n>"),  # its digits look like an id
    (re.compile(r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*"), "<n>"),
)
_QUOTED = re.compile(r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`)(?!\w)")


def message_template(message: str) -> str:
    """A message with placeholders for the parts that differ from line to line, so that equal failures read equal.

    Numbers become `<n>`, quoted texts `<text>`, hexadecimal ids and UUIDs `<id>`, paths `<path>`, addresses `<url>`.
    Names of nodes, inputs, attributes and missing modules stay, because they say what failed.
    """
    text = " ".join(message[:_READ_CHARS].split())
    text = _QUOTED.sub(_without_quoted_data, text)
    for pattern, placeholder in _PLACEHOLDERS:
        text = pattern.sub(placeholder, text)
    return shortened(text, MAX_TEMPLATE_CHARS)


def _without_quoted_data(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 20) : match.start()]
    return match[0] if _FIXED_NAME.search(before) else "<text>"


def shortened(text: str, limit: int) -> str:
    """The text, or its first `limit - 1` characters and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


_LOOK = "Read the traceback in the records of these lines, fix the flow or the data, then run the failed lines again."

_BILLING = (
    "The service's quota is used up, and neither retries nor fewer calls at once help: check plan, credit and limits in its "
    "billing settings, or wait until the quota is renewed. Then run the failed lines again."
)
_ADVICE: dict[str, str] = {
    "LineExecutionTimeoutError": "Raise `line_timeout_sec`, or find out what these lines wait for.",
    "BatchRunTimeoutError": "Resume the run: finished lines are kept. Or raise `batch_timeout_sec` or `worker_count`.",
    "BatchFailureLimitError": "Fix the cause of the failures, then resume: finished lines are kept. Or raise the limit.",
    "LineOutOfMemoryError": "Raise `line_memory_mb`, run fewer workers, or make a line need less memory.",
    "ProcessCrashError": "The worker process died in these lines: look for native code, `os._exit` or deep recursion.",
    "InvalidUserData": "Correct these rows in the data, then resume the run with `on_change='reuse'`.",
    "InputTypeError": "Correct these values in the data, or the input's type in the flow.",
    "InputParseError": "Correct the JSON text in the data, or change the input's type to string.",
    "InputNotFound": "Add the column to the data, map it in `inputs_mapping`, or give the input a default.",
    "InputMappingError": "Correct `inputs_mapping`: each reference must name a source and a column of the data.",
    "InvalidReferenceProperty": "The flow refers to something that the node's output lacks: correct one of them.",
    "FlowOutputUnserializable": "Return JSON values: strings, numbers, booleans, null, lists, dictionaries.",
    "PythonLoadError": "The flow's code cannot be imported: install the packages that it needs where the workers run.",
    "ResolveToolError": "Correct the node's source: the tool must be in its file.",
    "FlowEntryInitializationError": "Correct the class entry's constructor, or its `init` values.",
    "JinjaTemplateError": "Correct the template, or the values of these lines.",
    "ContentFilterError": "The service's content filter blocked these lines: check their inputs, or change the filter.",
    "BadRequestError": "The service refuses these calls: check the model's parameters and the length of the prompts.",
    "NotFoundError": "Correct the model's or deployment's name, and the connection's address.",
    "APIResponseValidationError": "The response is not a model's answer: check the connection's address.",
    "StorageError": "Make the run storage readable and writable again, then resume the run.",
    "RecordCorruptError": "Resume the run: lines with a damaged record run again.",
    "WorkerStartError": "Read the process's last output in the message: correct the flow's imports, or its `service`.",
}

_CAUSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"No module named '([\w.]{1,80})'"),
        "The module `{0}` is missing: install its package where the workers run.",
    ),
    (
        re.compile(r"\b(?:RateLimitError|Too Many Requests|Error code: 429)\b"),
        "The service gets too many calls: lower `worker_count` or `max_concurrency`, or allow retries with a delay.",
    ),
    (
        re.compile(r"\b(?:AuthenticationError|PermissionDeniedError|Unauthorized|Error code: 40[13])\b"),
        "The service does not accept the credentials: check the connection's key and endpoint.",
    ),
    (
        re.compile(
            r"\b(?:API(?:Connection|Timeout)Error|Connect(?:ion)?(?:Reset|Refused|Aborted)?(?:Error|Timeout)"
            r"|Read(?:Error|Timeout)|TimeoutError|InternalServerError|Error code: 50\d)\b"
        ),
        "The service did not answer, or failed: allow retries with a delay, then run the failed lines again.",
    ),
    (
        re.compile(r"\bFileNotFoundError\b"),
        "A file is missing: it must exist where the workers run; relative paths start at the flow's folder.",
    ),
    (re.compile(r"\bMemoryError\b"), _ADVICE["LineOutOfMemoryError"]),
)


def advice_for(code: str, message: str) -> str:
    """What to do about an error with this innermost code, in one or two sentences.

    The message of an error of the flow's own code names the exception.
    """
    if class_of_error({"code": code}) is not ErrorClass.BAD_INPUT and asks_for_billing(
        f"{code} {message[:_READ_CHARS]}"
    ):
        return _BILLING
    if code in _ADVICE:
        return _ADVICE[code]
    for pattern, text in _CAUSES:
        if match := pattern.search(f"{code} {message[:_READ_CHARS]}"):
            return text.format(*match.groups())
    return _LOOK


@dataclass(slots=True)
class ErrorGroup:
    """Errors that read the same except for their data."""

    code: str
    """Their innermost code."""
    template: str
    """Their message, with placeholders for the parts that differ."""
    sample: str
    """The message of the line with the smallest number, shortened."""
    count: int = 0
    """Number of lines that failed like this."""
    line_numbers: list[int] = field(default_factory=list)
    """The smallest of their line numbers, sorted."""

    @property
    def advice(self) -> str:
        """What to do about them."""
        return advice_for(self.code, self.sample)

    def add(self, line_number: int, message: str) -> None:
        """Count a line."""
        self.count += 1
        if not self.line_numbers or line_number < self.line_numbers[0]:
            self.sample = shortened(message, MAX_SAMPLE_CHARS)
        insort(self.line_numbers, line_number)
        del self.line_numbers[FIRST_LINES:]


class ErrorGroups:
    """Adds errors of lines to groups; memory is bounded by `MAX_GROUPS`, not by the number of lines."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], ErrorGroup] = {}
        self.other: ErrorGroup | None = None
        """Errors beyond `MAX_GROUPS` groups, counted together."""

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[ErrorGroup]:
        """The groups without `other`, largest first, then by first line."""
        return iter(sorted(self._groups.values(), key=lambda group: (-group.count, group.line_numbers[0])))

    def add(self, line_number: int, error: dict[str, Any]) -> None:
        """Count the error dictionary of one line."""
        message = str(error.get("message", ""))
        code, template = innermost_code(error), message_template(message)
        group = self._groups.get((code, template))
        if group is None and len(self._groups) < MAX_GROUPS:
            group = self._groups[code, template] = ErrorGroup(code, template, sample="")
        if group is None:
            self.other = self.other or ErrorGroup("Other", f"errors beyond the first {MAX_GROUPS} groups", sample="")
            group = self.other
        group.add(line_number, message)
