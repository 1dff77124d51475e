"""DAG nodes with a template: `prompt` renders it, `llm` asks a model with it, `custom_llm` passes it to a tool."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import Constant, Reference
from prefect_batchflow.exceptions import (
    APINotFound,
    GetConnectionError,
    InvalidConnectionError,
    InvalidConnectionType,
    InvalidImageInput,
    JinjaTemplateError,
    NodeInputValidationError,
    ResolveToolError,
)
from prefect_batchflow.execution.program.dag import NodeTool
from prefect_batchflow.execution.program.steps import UserFunction
from prefect_batchflow.tools.prompt import PromptResult, Template, image_names, without_image_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from prefect_batchflow.connections.given import Connections
    from prefect_batchflow.definition.flow import Flow, Node
    from prefect_batchflow.execution.program.images import FlowImages
    from prefect_batchflow.tools.llm import Api

APIS: Mapping[str, Mapping[str, str]] = {
    "chat": {
        "temperature": "double", "top_p": "double", "stream": "bool", "stop": "list", "max_tokens": "int",
        "presence_penalty": "double", "frequency_penalty": "double", "logit_bias": "object", "user": "string",
        "function_call": "object", "functions": "list", "tool_choice": "object", "tools": "list",
        "response_format": "object", "seed": "int",
    },
    "completion": {
        "suffix": "string", "max_tokens": "int", "temperature": "double", "top_p": "double", "n": "int", "stream": "bool",
        "logprobs": "int", "echo": "bool", "stop": "list", "presence_penalty": "double", "frequency_penalty": "double",
        "best_of": "int", "logit_bias": "object", "user": "string",
    },
}  # fmt: skip
"""The parameters of each api, with the types that constants are converted to. Other inputs go to the template.

Source: promptflow-tools `aoai.py` and `openai.py`.
"""
NEWER: Mapping[str, Mapping[str, str]] = {
    "chat": {
        "n": "int", "max_completion_tokens": "int", "reasoning_effort": "string", "verbosity": "string",
        "parallel_tool_calls": "bool", "service_tier": "string", "extra_body": "object",
    },
    "completion": {"seed": "int", "extra_body": "object"},
}  # fmt: skip
"""Parameters of the services that promptflow's tools do not have. If the template has such a variable, it is that instead."""
PROVIDERS: Mapping[str, str] = {
    "AzureOpenAIConnection": "AzureOpenAI",
    "OpenAIConnection": "OpenAI",
    "ServerlessConnection": "OpenAI",
}
"""Kind of connection to provider; a node's own `provider` adds nothing."""


def prompt_node(flow: Flow, node: Node) -> NodeTool:
    """Give the tool of a `prompt` node: its inputs are the template's variables; `template` replaces the file's text.

    Raises:
        JinjaTemplateError: The template is not valid jinja2.
        NodeInputValidationError: A variable has a reserved name, or the input `template` is not text.
    Source: promptflow `executor/_tool_resolver.py`, `_resolve_prompt_node`.
    """
    template_for = _given_template(flow, node, "template", {"template"}, "the prompt tool", of_prompts=True)
    inputs = {name: value for name, value in node.inputs.items() if name != "template" or not _is_empty(value)}
    untrusted = inputs_of_the_line(node)

    def render(**variables: Any) -> str:
        return template_for(variables).render_prompt(variables, untrusted)

    return NodeTool(node.name, UserFunction(render, node.name), inputs, optional={"template"}, activate=node.activate)


def llm_node(flow: Flow, node: Node, connections: Connections) -> NodeTool:
    """Give the tool of an `llm` node, which renders the template and asks the connection's model.

    An input `prompt` replaces the text of the template's file.

    Raises:
        ResolveToolError: The connection is missing or has the wrong kind, the api is unknown, or no model is named.
        NodeInputValidationError: A constant does not fit its parameter, or a variable has a parameter's name.
        JinjaTemplateError: The template is not valid jinja2.
    Source: promptflow `executor/_tool_resolver.py`, `_resolve_llm_node`.
    """
    from prefect_batchflow.tools.llm import answer_of, call_model, check_connection, import_openai, kind_of

    place = f"Node '{node.name}'"
    if node.api not in ("", *APIS):
        raise APINotFound(f"{place}: unknown api '{node.api}'. Expected chat or completion.", target="Tool")
    api: Api = "completion" if node.api == "completion" else "chat"
    connection = connections.get(node.connection, f"node '{node.name}'", _kinds_for(node))
    kind = kind_of(connection)
    if kind is None:
        raise InvalidConnectionType(
            f"{place}: the connection '{node.connection}' is a {type(connection).__name__}, which cannot serve an llm node. "
            f"Expected one of {', '.join(PROVIDERS)}.",
            target="Tool",
        )
    import_openai()
    try:
        check_connection(
            connection,
            f"{place}: the connection '{node.connection}'",
            partial(connections.variable_of, node.connection),
        )
    except InvalidConnectionError as exc:
        raise GetConnectionError(exc.message, target="Tool") from exc
    is_azure = kind == "AzureOpenAIConnection"
    model_names = ("deployment_name", "model") if is_azure else ("model", "deployment_name")
    reserved = {*APIS[api], model_names[0], "prompt", "connection"} | ({"n"} if is_azure else set())
    whose = f"{PROVIDERS[kind]}.{api}"
    template_for = _given_template(flow, node, "prompt", reserved, whose, with_images=api == "chat")
    variables_of_file = template_for({}).variables
    newer = {name: type_name for name, type_name in NEWER[api].items() if name not in variables_of_file}
    types = {**APIS[api], **newer}
    inputs = _set_inputs(node, types)
    if not any(name in inputs for name in model_names):
        raise ResolveToolError(
            f"{place}: it has no input '{model_names[0]}'. Add it with the name of the model.", target="Tool"
        )
    for name in model_names:
        if isinstance(value := inputs.get(name), Constant):
            inputs[name] = Constant(_model_name(value.value, f"{place}, input '{name}'"))
    own = {*types, *reserved}
    untrusted = inputs_of_the_line(node)

    async def ask(**arguments: Any) -> Any:
        template = template_for(arguments)
        variables = {name: value for name, value in arguments.items() if name not in own}
        named = next((name for name in model_names if not _is_unset(name, arguments.get(name))), model_names[0])
        model = _model_name(arguments.get(named), f"{place}, input '{named}'")
        parameters = request_parameters(types, arguments) | {"model": model}
        if api == "chat":
            parameters["messages"] = template.render_chat(variables, untrusted)
        else:
            parameters["prompt"] = str(template.render_prompt(variables, untrusted))
        response = await call_model(connection, api, parameters)
        return answer_of(response, api, whole_message="tools" in parameters or "functions" in parameters)

    function = UserFunction(ask, node.name, is_async=True)
    return NodeTool(node.name, function, inputs, optional=own, activate=node.activate)


def _kinds_for(node: Node) -> list[str]:
    """The kinds of connections that a node was written for: one that names a deployment and no model asks Azure."""
    names_model, names_deployment = (
        isinstance(value := node.inputs.get(name), Reference) or (value is not None and value.value not in (None, ""))
        for name in ("model", "deployment_name")
    )
    return ["AzureOpenAIConnection"] if names_deployment and not names_model else list(PROVIDERS)


def request_parameters(types: Mapping[str, str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request: a node's arguments without empty ones; `tools` win over `functions`.

    Unlike promptflow, this adds no values: newer models refuse some of promptflow's.
    """
    given = {name: value for name, value in arguments.items() if name in types and not _is_unset(name, value)}
    if "max_tokens" in given:
        given["max_tokens"] = int(given["max_tokens"])
    if str(given.get("stream", "")).lower() != "true":
        given.pop("stream", None)
    else:
        given["stream"] = True
    superseded = ("functions", "function_call") if "tools" in given else ("tool_choice",)
    for name in superseded:
        given.pop(name, None)
    if "functions" in given:
        given.setdefault("function_call", "auto")
    else:
        given.pop("function_call", None)
    return given


def _model_name(value: Any, place: str) -> str:
    """The name of a model as text; yaml reads some names as numbers."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        return str(value)
    raise NodeInputValidationError(f"{place}: expected the name of a model, found {_shown(value)}.", target="Tool")


def _shown(value: Any) -> str:
    return "nothing" if value is None or value == "" else f"a value of type {type(value).__name__}"


def _given_template(
    flow: Flow,
    node: Node,
    name: str,
    own: Collection[str],
    whose: str,
    *,
    with_images: bool = False,
    of_prompts: bool = False,
) -> Callable[[Mapping[str, Any]], Template]:
    """Give the function that finds a line's template in its arguments: the input `name`, otherwise the file's.

    Source: promptflow `executor/_tool_resolver.py`, which binds the file's text to this parameter as a default.
    """
    place = f"Node '{node.name}', input '{name}'"

    def made(text: str, place: str, source: str) -> Template:
        template = Template(without_image_marks(text) if with_images else text, place, of_prompts=of_prompts)
        _refuse_collisions(node, template, source, own, whose)
        return template

    of_file = made(template_text(flow, node), f"Node '{node.name}': {node.source}", f"its template {node.source}")
    given = node.inputs.get(name)
    if given is None or _is_empty(given):
        return lambda arguments: of_file
    of_text = lru_cache(maxsize=16)(lambda text: made(text, place, f"its input '{name}'"))

    def of_value(value: Any) -> Template:
        if not isinstance(value, str):
            raise JinjaTemplateError(f"{place}: expected the prompt's text, found {_shown(value)}.", target="Tool")
        # Without a jinja2 of its own, which rows could have, a rendered prompt is plain text.
        return of_text(value.marked if isinstance(value, PromptResult) else str(value))

    if isinstance(given, Constant):
        always = of_value(given.value)
        return lambda arguments: always
    return lambda arguments: of_value(arguments[name]) if name in arguments else of_file


def template_text(flow: Flow, node: Node) -> str:
    """A node's template as written.

    Raises:
        ResolveToolError: It cannot be read.
    """
    try:
        return (flow.working_dir / node.source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ResolveToolError(
            f"Node '{node.name}': its template {node.source} cannot be read as UTF-8: {exc}.", target="Tool"
        ) from exc


def with_images(flow: Flow, node: Node, images: FlowImages) -> Node:
    """Give the node with its constants for `![image]({{name}})` loaded.

    Raises:
        NodeInputValidationError: One is not an image.
    Source: promptflow `executor/_tool_resolver.py`, `_load_images_for_prompt_tpl`.
    """
    texts = [template_text(flow, node), *(v.value for v in node.inputs.values() if isinstance(v, Constant))]
    shown = {name for text in texts if isinstance(text, str) for name in image_names(text)}
    loaded = dict(node.inputs)
    for name in shown & loaded.keys():
        value = loaded[name]
        if isinstance(value, Constant) and not _is_empty(value):
            try:
                loaded[name] = Constant(images.load_constant(value.value))
            except InvalidImageInput as exc:
                raise NodeInputValidationError(
                    f"Node '{node.name}', input '{name}', which {node.source} shows as an image: {exc}", target="Tool"
                ) from exc
    return replace(node, inputs=loaded)


def refuse_template_collisions(flow: Flow, node: Node, names: Collection[str]) -> None:
    """Refuse a `custom_llm` node whose template has a variable with the name of one of its tool's parameters.

    Raises:
        NodeInputValidationError: There is such a variable.
        JinjaTemplateError: The template is not valid jinja2.
    """
    template = Template(template_text(flow, node), f"Node '{node.name}': {node.source}")
    _refuse_collisions(node, template, f"its template {node.source}", names, f"the tool '{node.package_tool}'")


def _refuse_collisions(node: Node, template: Template, source: str, own: Collection[str], whose: str) -> None:
    twice = sorted(template.variables & set(own))
    if twice:
        raise NodeInputValidationError(
            f"Node '{node.name}': {source} has the variables {', '.join(twice)}, but {whose} has parameters of these names. "
            "Rename the variables in the template and in the node's inputs.",
            target="Tool",
        )
    if "self" in template.variables and "self" in node.inputs:
        raise NodeInputValidationError(
            f"Node '{node.name}': {source} has the variable self, which jinja2 keeps for itself. Rename it in the template "
            "and in the node's inputs.",
            target="Tool",
        )


def _set_inputs(node: Node, types: Mapping[str, str]) -> dict[str, Reference | Constant]:
    """A node's inputs without empty ones, constants converted to their parameters' types."""
    from prefect_batchflow.inputs.types import CONVERSION_ERRORS, CONVERTERS

    inputs: dict[str, Reference | Constant] = {}
    for name, value in node.inputs.items():
        if isinstance(value, Reference):
            inputs[name] = value
        elif not _is_empty(value):
            try:
                inputs[name] = (
                    Constant(CONVERTERS[types[name]](value.value)) if _converts(name, value, types) else value
                )
            except CONVERSION_ERRORS as exc:
                raise NodeInputValidationError(
                    f"Node '{node.name}', input '{name}' is {value.value!r}; expected a value of type {types[name]}.",
                    target="Tool",
                ) from exc
    return inputs


def _converts(name: str, value: Constant, types: Mapping[str, str]) -> bool:
    if name == "stop" and isinstance(value.value, str) and not value.value.startswith("["):
        return False  # one text means a list of one
    return name in types and not _is_unset(name, value.value)


def _is_empty(value: Reference | Constant) -> bool:
    return isinstance(value, Constant) and value.value in (None, "")


def _is_unset(name: str, value: Any) -> bool:
    return value is None or value in ("", [], {}) or (name == "max_tokens" and str(value).lower() == "inf")


def inputs_of_the_line(node: Node) -> frozenset[str]:
    """The inputs of a node that come straight from the row."""
    return frozenset(n for n, v in node.inputs.items() if isinstance(v, Reference) and v.section == "inputs")
