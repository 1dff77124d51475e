"""Prompt templates: jinja2 in a sandbox, and the messages of a chat that a rendered prompt is.

A template comes from the flow, never from a row: what a row says is put in as it is, and never read as a role header.
jinja2 is imported when the first template is read: flows without prompts do without it.
"""

from __future__ import annotations

import ast
import functools
import re
import secrets
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.exceptions import (
    ChatAPIFunctionRoleInvalidFormat,
    ChatAPIInvalidRole,
    ChatAPIToolRoleInvalidFormat,
    JinjaTemplateError,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    import jinja2

ROLES: Final = ("system", "user", "assistant", "function", "tool")
"""Of a chat's messages."""
MAX_PROMPT_CHARS: Final = 32 * 1024 * 1024
"""Length of a rendered prompt, at most."""

_FILE = "<template>"  # what jinja2 calls a template that came from no file
_ROLE = "|".join(ROLES)
# Cases of ASCII only: the long s is no s.
_HEADER = re.compile(rf"^\s*#?\s*(?a:(?i:({_ROLE})))\s*:\s*\n", re.MULTILINE)
_NAMED = re.compile(
    r"^\s*#{0,2}\s*name\s*:\s*\n+\s*(\S+)\s*\n*#{0,2}\s*content\s*:\s*\n?(.*)", re.MULTILINE | re.DOTALL
)
_ANSWER_OF_TOOL = re.compile(
    r"^\s*#{0,2}\s*tool_call_id\s*:\s*\n+\s*(\S+)\s*\n*#{0,2}\s*content\s*:\s*\n?(.*)", re.MULTILINE | re.DOTALL
)
_TOOL_CALLS = re.compile(r"^\s*#{0,2}\s*tool_calls\s*:\s*\n+\s*(\[.*?\])\s*$", re.MULTILINE | re.DOTALL)
_IMAGE_MARK = re.compile(r"!\[\s*image\s*\]\(\{\{\s*([^\s{}]+)\s*\}\}\)")

# Stands in what came from a row, where the prompt's parser would see a header. Digits pass jinja2's filters unchanged.
_MARK = "".join(secrets.choice("0123456789") for _ in range(24))
_ENDINGS = "|".join(sorted({role[n:] for role in ROLES for n in range(len(role))}, key=len, reverse=True))
_LIKE_HEADER = re.compile(
    # A role and its colon; or their end, to which another value may bring the beginning.
    rf"^([\s#]*(?a:(?i:{_ENDINGS}))?\s*)(?=:\s*(?:\n|\Z))"
    # A role in the last line of several, to which the template may bring the colon.
    rf"|(?<=\n)([\s#]*(?a:(?i:{_ROLE})))(?=\s*\Z)"
    r"|^([\s#]*(?:name|content|tool_call_id|tool_calls)\s*)(?=:)",
    re.MULTILINE,
)


class PromptResult(str):
    """A rendered prompt; put into another template, it brings its own role headers, and its rows' texts bring none.

    Source: promptflow-tools `common.py`, `PromptResult`.
    """

    marked: str

    def __new__(cls, marked: str) -> PromptResult:
        """Take the text with marks in it; the value is the text without them."""
        self = super().__new__(cls, _unmarked(marked))
        self.marked = marked
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class ChatList(list[Any]):
    """A list that a template shows as its items, one a line.

    Source: promptflow-tools `common.py`, `ChatInputList`.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def as_chat_lists(value: Any) -> Any:
    """A value whose lists, at any depth, are `ChatList`s, as promptflow's Azure OpenAI tool has them."""
    if type(value) is dict:
        return {key: as_chat_lists(part) for key, part in value.items()}
    if isinstance(value, list):
        return ChatList(map(as_chat_lists, value))
    return value


class Template:
    """One template, read once and rendered for each line.

    A variable without a value is empty, as promptflow has it; `variables` tells which there should be.
    """

    def __init__(self, text: str, place: str) -> None:
        """Read a template.

        Args:
            text: jinja2.
            place: Whose it is, for messages: `Node 'ask': ask.jinja2`.

        Raises:
            JinjaTemplateError: It is no jinja2; the message has the line.
        """
        import jinja2
        from jinja2 import meta

        self.place = place
        environment = _environment()
        try:
            self._template: jinja2.Template = environment.from_string(text)
            self.variables = frozenset(meta.find_undeclared_variables(environment.parse(text)))
            """The names that it takes from outside."""
        except jinja2.TemplateSyntaxError as exc:
            raise JinjaTemplateError(
                f"{place}, line {exc.lineno}: this is no jinja2: {exc.message}. Correct the template.", target="Tool"
            ) from exc

    def render(self, variables: Mapping[str, Any]) -> str:
        """Give the text.

        Raises:
            JinjaTemplateError: It cannot be rendered with these values, or grows past `MAX_PROMPT_CHARS`.
        Source: promptflow-tools `template_rendering.py`, `render_template_jinja2`.
        """
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(dict(variables)):
                length += len(part)
                if length > MAX_PROMPT_CHARS:
                    raise OverflowError(f"it is longer than {MAX_PROMPT_CHARS:,} characters")
                parts.append(part)
        except Exception as exc:
            line = f", line {number}" if (number := _line_of(exc)) else ""
            raise JinjaTemplateError(
                f"{self.place}{line}: the template cannot be rendered: ({type(exc).__name__}) {_unmarked(str(exc))}. "
                "Correct the template, or what its inputs are.",
                target="Tool",
            ) from exc
        return "".join(parts)

    def render_prompt(self, variables: Mapping[str, Any], untrusted: Collection[str]) -> PromptResult:
        """Give the text as a value for other prompts.

        Args:
            variables: Name to value.
            untrusted: Those that come from a row: a role header in them is text.
        """
        return PromptResult(self.render(_marked_variables(variables, untrusted)))

    def render_chat(
        self,
        variables: Mapping[str, Any],
        untrusted: Collection[str] | None = None,
        images: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """Give the messages of a chat.

        Args:
            variables: Name to value.
            untrusted: Those that come from a row: a role header in them is text. `None` is all.
            images: As for `parse_chat`; those among the variables need not be told.

        Raises:
            JinjaTemplateError: As `render`.
            ToolValidationError: As `parse_chat`.
        """
        if "prefect_batchflow.images.image" in sys.modules:  # without it there is no image
            from prefect_batchflow.images.written import mark_images

            parts = dict(images or {})
            variables, images = mark_images(variables, parts), parts
        text = self.render(_marked_variables(variables, variables if untrusted is None else untrusted))
        return parse_chat(text, images, place=self.place)


def parse_chat(
    text: str, images: Mapping[str, Mapping[str, Any]] | None = None, *, place: str = "The prompt"
) -> list[dict[str, Any]]:
    """Give the messages of a rendered prompt, split at its role headers, as `# system:`.

    Args:
        text: The prompt.
        images: What stands for an image, alone in its line, to the part of a message that it becomes.
        place: Whose it is, for messages.

    Raises:
        ChatAPIInvalidRole: Text before the first header.
        ChatAPIFunctionRoleInvalidFormat: A function's message without name.
        ChatAPIToolRoleInvalidFormat: A tool's message without the id of its call.
    Source: promptflow-tools `common.py`, `parse_chat`.
    """
    before, *parts = _HEADER.split(text)
    if before.strip():
        headers = ", ".join(f"'# {role}:'" for role in ROLES)
        raise ChatAPIInvalidRole(
            f"{place}: the text of a chat should begin with a role in a line of its own, one of {headers}; found "
            f"{_unmarked(before.strip())[:100]!r}. Put a header above it, or use the completion api.",
            target="Tool",
        )
    roles = map(str.lower, parts[::2])
    return [_message(role, body, images or {}, place) for role, body in zip(roles, parts[1::2], strict=True)]


def without_image_marks(text: str) -> str:
    """A template with each `![image]({{name}})` as `{{name}}` in a line of its own.

    Source: promptflow-tools `common.py`, `preprocess_template_string`.
    """
    return _IMAGE_MARK.sub(r"\n{{\1}}\n", text)


def _message(role: str, body: str, images: Mapping[str, Mapping[str, Any]], place: str) -> dict[str, Any]:
    if role == "tool":
        if found := _ANSWER_OF_TOOL.search(body):
            return {"role": role, "tool_call_id": _unmarked(found[1]), "content": _content(found[2], images)}
        raise ChatAPIToolRoleInvalidFormat(
            f"{place}: a message of the role tool should have '## tool_call_id:', the id in the next line, then "
            f"'## content:'; found {_unmarked(body.strip())[:100]!r}.",
            target="Tool",
        )
    if role == "assistant" and (calls := _tool_calls(body)) is not None:
        return {"role": role, "tool_calls": calls}
    if found := _NAMED.search(body):
        return {"role": role, "name": _unmarked(found[1]), "content": _content(found[2], images)}
    if role == "function":
        raise ChatAPIFunctionRoleInvalidFormat(
            f"{place}: a message of the role function should have '## name:', the function's name in the next line, "
            f"then '## content:'; found {_unmarked(body.strip())[:100]!r}.",
            target="Tool",
        )
    return {"role": role, "content": _content(body, images)}


def _tool_calls(body: str) -> Any:
    """The calls of an assistant's message, a Python literal; `None` when there are none."""
    found = _TOOL_CALLS.search(body)
    if found is None:
        return None
    try:
        return _unmarked_value(ast.literal_eval(found[1]))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None  # it is text, then


def _content(text: str, images: Mapping[str, Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    text = text.strip()
    lines = text.split("\n") if images else []
    if not any(line.strip() in images for line in lines):
        return _unmarked(text)
    return [
        dict(images[line.strip()]) if line.strip() in images else {"type": "text", "text": _unmarked(line)}
        for line in lines
        if line.strip()
    ]


def _marked_variables(variables: Mapping[str, Any], untrusted: Collection[str]) -> dict[str, Any]:
    return {
        name: value.marked if isinstance(value, PromptResult) else _marked(value) if name in untrusted else value
        for name, value in variables.items()
    }


def _marked(value: Any) -> Any:
    """A row's value that holds no role header."""
    if isinstance(value, str):
        # A role by itself is what a template that writes `{{ message.role }}:` asks for.
        return _LIKE_HEADER.sub(lambda found: found[0] + _MARK, value)
    if isinstance(value, Mapping):
        return {_marked(key): _marked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        kind = ChatList if isinstance(value, ChatList) else list
        return kind(map(_marked, value))
    return value


def _unmarked(text: str) -> str:
    return text.replace(_MARK, "")


def _unmarked_value(value: Any) -> Any:
    if isinstance(value, str):
        return _unmarked(value)
    if isinstance(value, dict):
        return {_unmarked_value(key): _unmarked_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_unmarked_value, value))
    return value


@functools.cache
def _environment() -> jinja2.Environment:
    from prefect_batchflow.tools.sandbox import sandbox

    return sandbox(MAX_PROMPT_CHARS)


def _line_of(exc: BaseException) -> int | None:
    """The line of the template in which an error arose, as jinja2 has written it into the traceback."""
    line, frame = None, exc.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == _FILE:
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
