"""Prompt templates: jinja2 in a sandbox, and rendered prompts as the messages of a chat.

A template comes from the flow, never from a row: a row's text goes in unchanged and never counts as a role header. jinja2 is
imported for the first template, so flows without prompts do not need it.
"""

from __future__ import annotations

import ast
import re
import secrets
import sys
import traceback
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
"""Roles of a chat's messages."""
MAX_PROMPT_CHARS: Final = 32 * 1024 * 1024
"""Length of a rendered prompt, at most."""

_FILE = "<template>"  # jinja2's name for a template without a file
_ROLE = "|".join(ROLES)
# ASCII letters only: the long s is not an s.
_HEADER = re.compile(rf"^\s*#?\s*(?a:(?i:({_ROLE})))\s*:\s*\n", re.MULTILINE)
_NAMED = re.compile(
    r"^\s*#{0,2}\s*name\s*:\s*\n+\s*(\S+)\s*\n*#{0,2}\s*content\s*:\s*\n?(.*)", re.MULTILINE | re.DOTALL
)
_ANSWER_OF_TOOL = re.compile(
    r"^\s*#{0,2}\s*tool_call_id\s*:\s*\n+\s*(\S+)\s*\n*#{0,2}\s*content\s*:\s*\n?(.*)", re.MULTILINE | re.DOTALL
)
_TOOL_CALLS = re.compile(r"^\s*#{0,2}\s*tool_calls\s*:\s*\n+\s*(\[.*?\])\s*$", re.MULTILINE | re.DOTALL)
_IMAGE_MARK = re.compile(r"!\[\s*image\s*\]\(\{\{\s*([^\s{}]+)\s*\}\}\)")

# Marks places in a row's text that the parser would take for a header. Digits pass jinja2's filters unchanged.
_MARK = "".join(secrets.choice("0123456789") for _ in range(24))
_ENDINGS = "|".join(sorted({role[n:] for role in ROLES for n in range(len(role))}, key=len, reverse=True))
_LIKE_HEADER = re.compile(
    # A role and its colon, or their end, in case another value has the beginning.
    rf"^([\s#]*(?a:(?i:{_ENDINGS}))?\s*)(?=:\s*(?:\n|\Z))"
    # A role in the last of several lines, in case the template has the colon.
    rf"|(?<=\n)([\s#]*(?a:(?i:{_ROLE})))(?=\s*\Z)"
    r"|^([\s#]*(?:name|content|tool_call_id|tool_calls)\s*)(?=:)",
    re.MULTILINE,
)
_SYNTAX = re.compile(r"\{[{%#]")
_LIKE_SYNTAX = re.compile(r"\{(?=[{%#]|\Z)|\A(?=[{%#])")  # also if the neighbouring text has the other half
_NEWLINES = re.compile(r"\r\n|\r")


class PromptResult(str):
    """A rendered prompt. In another template its own role headers count, but not those in its rows' texts.

    As another node's template, its own jinja2 counts, but not that in its variables.

    Source: promptflow-tools `common.py`, `PromptResult`.
    """

    marked: str

    def __new__(cls, marked: str) -> PromptResult:
        """Take the text with marks; the string's value is the text without them."""
        self = super().__new__(cls, _unmarked(marked))
        self.marked = marked
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class Template:
    """A template, read once and rendered for each line; a variable without a value is empty, as in promptflow.

    Args:
        text: The template's text.
        place: Where it is from, for messages: `Node 'ask': ask.jinja2`.
        of_prompts: Its results can become templates themselves; jinja2 in its variables stays text then.

    Raises:
        JinjaTemplateError: It is not valid jinja2; the message has the line.
    """

    def __init__(self, text: str, place: str, *, of_prompts: bool = False) -> None:
        self.place = place
        self._text = _NEWLINES.sub("\n", text)  # as jinja2 does
        self._template: jinja2.Template | None = None
        self.variables: frozenset[str] = frozenset()
        """The names of its variables."""
        if not _SYNTAX.search(text):
            return  # plain text, as a prompt that another node rendered
        import jinja2
        from jinja2 import meta, nodes

        from prefect_batchflow.tools.sandbox import sandbox

        environment = sandbox(MAX_PROMPT_CHARS, _without_syntax if of_prompts else None)
        try:
            self._template = environment.from_string(text)
            tree = environment.parse(text)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            if any(found.name == "self" for found in tree.find_all(nodes.Name)):
                self.variables |= {"self"}  # jinja2's own, not declared by anyone
        except jinja2.TemplateSyntaxError as exc:
            raise JinjaTemplateError(
                f"{place}, line {exc.lineno}: this is not valid jinja2: {exc.message}. Correct the template.",
                target="Tool",
            ) from exc

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render the template as text.

        Raises:
            JinjaTemplateError: It cannot be rendered with these values, or grows past `MAX_PROMPT_CHARS`.
        Source: promptflow-tools `template_rendering.py`, `render_template_jinja2`.
        """
        if self._template is None:
            return self._text
        from prefect_batchflow.tools.sandbox import begin_rendering

        begin_rendering(self._template.environment)
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
                "Correct the template, or its inputs.",
                target="Tool",
            ) from exc
        return "".join(parts)

    def render_prompt(self, variables: Mapping[str, Any], untrusted: Collection[str]) -> PromptResult:
        """Render the template as a value for other prompts; `render_chat` describes the arguments."""
        return PromptResult(self.render(_marked_variables(variables, untrusted)))

    def render_chat(
        self,
        variables: Mapping[str, Any],
        untrusted: Collection[str] | None = None,
        images: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """Render the template as the messages of a chat.

        Args:
            variables: Name to value.
            untrusted: Names of variables that come from a row: a role header in them is plain text. `None` is all.
            images: As for `parse_chat`; images among the variables are found anyway.

        Raises:
            JinjaTemplateError: See `render`.
            ToolValidationError: See `parse_chat`.
        """
        if "prefect_batchflow.images.image" in sys.modules:  # without this module there are no images
            from prefect_batchflow.images.written import mark_images

            parts = dict(images or {})
            variables, images = mark_images(variables, parts), parts
        text = self.render(_marked_variables(variables, variables if untrusted is None else untrusted))
        return parse_chat(text, images, place=self.place)


def parse_chat(
    text: str, images: Mapping[str, Mapping[str, Any]] | None = None, *, place: str = "The prompt"
) -> list[dict[str, Any]]:
    """Split a rendered prompt at its role headers, such as `# system:`, into the messages of a chat.

    Args:
        text: The prompt.
        images: A line that stands for an image, to the part of a message that replaces it.
        place: Where the prompt is from, for messages.

    Raises:
        ChatAPIInvalidRole: There is text before the first header.
        ChatAPIFunctionRoleInvalidFormat: A function message has no name.
        ChatAPIToolRoleInvalidFormat: A tool message lacks the id of its call.
    Source: promptflow-tools `common.py`, `parse_chat`.
    """
    before, *parts = _HEADER.split(text)
    if before.strip():
        headers = ", ".join(f"'# {role}:'" for role in ROLES)
        raise ChatAPIInvalidRole(
            f"{place}: a chat must begin with a role on its own line, one of {headers}; found "
            f"{_unmarked(before.strip())[:100]!r}. Put a header above it, or use the completion api.",
            target="Tool",
        )
    roles = map(str.lower, parts[::2])
    return [_message(role, body, images or {}, place) for role, body in zip(roles, parts[1::2], strict=True)]


def without_image_marks(text: str) -> str:
    """A template with each `![image]({{name}})` as `{{name}}` on its own line.

    Source: promptflow-tools `common.py`, `preprocess_template_string`.
    """
    return _IMAGE_MARK.sub(r"\n{{\1}}\n", text)


def image_names(text: str) -> set[str]:
    """The variables that a template shows as images: `![image]({{name}})`."""
    return set(_IMAGE_MARK.findall(text))


def _message(role: str, body: str, images: Mapping[str, Mapping[str, Any]], place: str) -> dict[str, Any]:
    if role == "tool":
        if found := _ANSWER_OF_TOOL.search(body):
            return {"role": role, "tool_call_id": _unmarked(found[1]), "content": _content(found[2], images)}
        raise ChatAPIToolRoleInvalidFormat(
            f"{place}: a message of the role tool must have '## tool_call_id:', the id on the next line, then "
            f"'## content:'; found {_unmarked(body.strip())[:100]!r}.",
            target="Tool",
        )
    if role == "assistant" and (calls := _tool_calls(body)) is not None:
        return {"role": role, "tool_calls": calls}
    if found := _NAMED.search(body):
        return {"role": role, "name": _unmarked(found[1]), "content": _content(found[2], images)}
    if role == "function":
        raise ChatAPIFunctionRoleInvalidFormat(
            f"{place}: a message of the role function must have '## name:', the function's name on the next line, "
            f"then '## content:'; found {_unmarked(body.strip())[:100]!r}.",
            target="Tool",
        )
    return {"role": role, "content": _content(body, images)}


def _tool_calls(body: str) -> Any:
    """The calls in an assistant's message, written as a Python literal; `None` without calls."""
    if (found := _TOOL_CALLS.search(body)) is None:
        return None
    try:
        return _unmarked_value(ast.literal_eval(found[1]))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None  # the message is plain text


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
    """A row's value with its role headers marked."""
    if isinstance(value, str):
        # A role alone stays unmarked, because templates write `{{ message.role }}:`.
        return _LIKE_HEADER.sub(lambda found: found[0] + _MARK, value)
    if isinstance(value, Mapping):
        return {_marked(key): _marked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_marked, value))
    return value


def _without_syntax(value: Any) -> str:
    """A value's text with marks in its jinja2, so that it stays text if the prompt becomes a template."""
    text = str(value)
    return _LIKE_SYNTAX.sub(lambda found: found[0] + _MARK, text) if "{" in text or text[:1] in "%#" else text


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


def _line_of(exc: BaseException) -> int | None:
    """The template's line where an error occurred, from jinja2's entry in the traceback."""
    walk = traceback.walk_tb(exc.__traceback__)
    lines = [line for frame, line in walk if frame.f_code.co_filename == _FILE]
    return lines[-1] if lines else None
