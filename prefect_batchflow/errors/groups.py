"""Errors of many lines as a few groups: what happened, how often, where first, what to do. Values in, values out."""

from __future__ import annotations

import re
from bisect import insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.exceptions import innermost_code

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_GROUPS: Final = 1_000
"""Groups kept apart; errors of further kinds are counted together in `ErrorGroups.other`."""
MAX_TEMPLATE_CHARS: Final = 300
"""Length of a group's template, at most."""
MAX_SAMPLE_CHARS: Final = 1_000
"""Length of a group's sample message, at most."""
FIRST_LINES: Final = 5
"""Line numbers kept of a group, the smallest."""

_READ_CHARS = 2_000  # what a message says is said by then; the rest is data

_FIXED_NAME = re.compile(r"(?:failure in|module named|attribute|input|node) $", re.IGNORECASE)
_PLACEHOLDERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\w{1,20}://[^\s'\"<>]+"), "<url>"),
    (re.compile(r"(?<![\w<])(?:[A-Za-z]:)?(?:[\\/][\w.@+~-]+){2,}[\\/]?"), "<path>"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<id>"),
    (re.compile(r"(?<!\w)[-+]?\d+(?:\.\d+)?e[-+]\d+", re.IGNORECASE), "<n>"),  # its digits could pass for an id
    (re.compile(r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*"), "<n>"),
)
_QUOTED = re.compile(r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`)(?!\w)")


def message_template(message: str) -> str:
    """A message without what differs from line to line, so that equal failures read equal.

    Numbers become `<n>`, quoted texts `<text>`, hexadecimal ids and UUIDs `<id>`, paths `<path>`, addresses `<url>`.
    A name stays where it says what failed: a node's, an input's, an attribute's, a missing module's.
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


_LOOK = "Read the traceback in the records of these lines, mend the flow or the data, then run the failed lines again."

_ADVICE: dict[str, str] = {
    "LineExecutionTimeoutError": "Raise `line_timeout_sec`, or look at what these lines wait for.",
    "BatchRunTimeoutError": "Resume the run: finished lines are kept. Or raise `batch_timeout_sec` or `worker_count`.",
    "BatchFailureLimitError": "Mend what the lines fail of, then resume: finished lines are kept. Or raise the limit.",
    "LineOutOfMemoryError": "Raise `line_memory_mb`, run fewer workers at once, or let a line hold less.",
    "ProcessCrashError": "The worker process died in these lines: look for native code, `os._exit` or deep recursion.",
    "InvalidUserData": "Correct these rows in the data, then resume the run with `on_change='reuse'`.",
    "InputTypeError": "Correct these values in the data, or the input's type in the flow.",
    "InputParseError": "Correct the JSON text in the data, or make the input's type string.",
    "InputNotFound": "Add the column to the data, map it in `inputs_mapping`, or give the input a default.",
    "InputMappingError": "Correct `inputs_mapping`: each reference must name a source and a column of the data.",
    "InvalidReferenceProperty": "The node's output lacks what the flow refers to: correct the reference, or the node.",
    "FlowOutputUnserializable": "Return JSON values: texts, numbers, booleans, null, lists, dictionaries.",
    "PythonLoadError": "The flow's code cannot be imported: install what it needs where the workers run.",
    "ResolveToolError": "Correct the node's source: its file must hold the tool.",
    "FlowEntryInitializationError": "Correct the class entry's constructor, or its `init` values.",
    "JinjaTemplateError": "Correct the template, or the values of these lines that it cannot be rendered with.",
    "ContentFilterError": "The service's content filter refused these: look at their inputs, or set the filter otherwise.",
    "BadRequestError": "The service refuses these calls: look at the model's parameters and at how long the prompts are.",
    "NotFoundError": "Correct the model's or deployment's name, and the connection's address.",
    "APIResponseValidationError": "What answers is no model service: check the connection's address.",
    "StorageError": "Make the run storage readable and writable again, then resume the run.",
    "RecordCorruptError": "Resume the run: lines without a whole record are run again.",
    "WorkerStartError": "Read the process's last output in the message: correct the flow's imports, or its `service`.",
}

_CAUSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"No module named '([\w.]{1,80})'"),
        "The module `{0}` is missing: install the package that brings it where the workers run.",
    ),
    (
        re.compile(r"\b(?:RateLimitError|Too Many Requests|Error code: 429)\b"),
        "The service refuses so many calls: lower `worker_count` or `max_concurrency`, allow retries with a delay.",
    ),
    (
        re.compile(r"\b(?:AuthenticationError|PermissionDeniedError|Unauthorized|Error code: 40[13])\b"),
        "The service refuses the credentials: check the connection's key and endpoint.",
    ),
    (
        re.compile(
            r"\b(?:API(?:Connection|Timeout)Error|Connect(?:ion)?(?:Reset|Refused|Aborted)?(?:Error|Timeout)"
            r"|Read(?:Error|Timeout)|TimeoutError|InternalServerError|Error code: 50\d)\b"
        ),
        "The service did not answer well: allow retries with a delay, then run the failed lines again.",
    ),
    (
        re.compile(r"\bFileNotFoundError\b"),
        "A file is missing: relative paths count from the flow's folder, and it must exist where the workers run.",
    ),
    (re.compile(r"\bMemoryError\b"), _ADVICE["LineOutOfMemoryError"]),
)


def advice_for(code: str, message: str) -> str:
    """What to do about an error: one sentence or two.

    Args:
        code: Its innermost code, as `LineExecutionTimeoutError`.
        message: Its message; for errors of the flow's own code it names the exception.
    """
    if code in _ADVICE:
        return _ADVICE[code]
    for pattern, text in _CAUSES:
        if match := pattern.search(f"{code} {message[:_READ_CHARS]}"):
            return text.format(*match.groups())
    return _LOOK


@dataclass(slots=True)
class ErrorGroup:
    """Errors that read the same but for their data."""

    code: str
    """Their innermost code."""
    template: str
    """Their message with placeholders for what differs."""
    sample: str
    """The message of the smallest line number, shortened."""
    count: int = 0
    """Lines that failed so."""
    line_numbers: list[int] = field(default_factory=list)
    """The smallest of their line numbers, sorted."""

    @property
    def advice(self) -> str:
        """What to do about them."""
        return advice_for(self.code, self.sample)

    def add(self, line_number: int, message: str) -> None:
        """Count one line more."""
        self.count += 1
        if not self.line_numbers or line_number < self.line_numbers[0]:
            self.sample = shortened(message, MAX_SAMPLE_CHARS)
        insort(self.line_numbers, line_number)
        del self.line_numbers[FIRST_LINES:]


class ErrorGroups:
    """Folds line errors into groups as they come; memory is bounded by `MAX_GROUPS`, not by the lines."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], ErrorGroup] = {}
        self.other: ErrorGroup | None = None
        """Errors of the kinds beyond `MAX_GROUPS`, if any, counted together."""

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[ErrorGroup]:
        """The groups, largest first, then by first line; `other` is not among them."""
        return iter(sorted(self._groups.values(), key=lambda group: (-group.count, group.line_numbers[0])))

    def add(self, line_number: int, error: dict[str, Any]) -> None:
        """Count the error of one line.

        Args:
            line_number: The line's number.
            error: Its error dictionary.
        """
        message = str(error.get("message", ""))
        self._group(innermost_code(error), message_template(message)).add(line_number, message)

    def _group(self, code: str, template: str) -> ErrorGroup:
        group = self._groups.get((code, template))
        if group is not None:
            return group
        if len(self._groups) < MAX_GROUPS:
            return self._groups.setdefault((code, template), ErrorGroup(code, template, sample=""))
        if self.other is None:
            self.other = ErrorGroup("Other", f"errors of further kinds, beyond the first {MAX_GROUPS}", sample="")
        return self.other
