"""DAG nodes with a template: `prompt` renders it, `llm` asks a model with it, `custom_llm` passes it to a tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import Constant, Reference
from prefect_batchflow.exceptions import APINotFound, InvalidConnectionType, NodeInputValidationError, ResolveToolError
from prefect_batchflow.execution.program.dag import NodeTool
from prefect_batchflow.execution.program.steps import UserFunction
from prefect_batchflow.tools.prompt import Template, as_chat_lists, without_image_marks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from prefect_batchflow.connections.given import Connections
    from prefect_batchflow.definition.flow import Flow, Node
    from prefect_batchflow.tools.llm import Api

APIS: Mapping[str, Mapping[str, str]] = {
    "chat": {
        "temperature": "double", "top_p": "double", "n": "int", "stream": "bool", "stop": "list",
        "max_tokens": "int", "max_completion_tokens": "int", "reasoning_effort": "string", "presence_penalty": "double",
        "frequency_penalty": "double", "logit_bias": "object", "user": "string", "function_call": "object",
        "functions": "list", "tool_choice": "object", "tools": "list", "response_format": "object", "seed": "int",
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
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "chat": {"temperature": 1.0, "top_p": 1.0},
    "completion": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16},
}
"""Values to send if the node gives none."""
PROVIDERS: Mapping[str, str] = {
    "AzureOpenAIConnection": "AzureOpenAI",
    "OpenAIConnection": "OpenAI",
    "ServerlessConnection": "OpenAI",
}
"""Kind of connection to provider; a node's own `provider` adds nothing."""


def prompt_node(flow: Flow, node: Node) -> NodeTool:
    """Give the tool of a `prompt` node: its inputs are the template's variables.

    Raises:
        JinjaTemplateError: The template is not valid jinja2.
        NodeInputValidationError: A variable has a reserved name.
    Source: promptflow `executor/_tool_resolver.py`, `_resolve_prompt_node`.
    """
    template = template_of(flow, node)
    _refuse_collisions(node, template, {"template"}, "the prompt tool")
    untrusted = inputs_of_the_line(node)

    def render(**variables: Any) -> str:
        return template.render_prompt(variables, untrusted)

    return NodeTool(node.name, UserFunction(render, node.name), node.inputs, activate=node.activate)


def llm_node(flow: Flow, node: Node, connections: Connections) -> NodeTool:
    """Give the tool of an `llm` node, which renders the template and asks the connection's model.

    Raises:
        ResolveToolError: The connection is missing or has the wrong kind, the api is unknown, or no model is named.
        NodeInputValidationError: A constant does not fit its parameter, or a variable has a parameter's name.
        JinjaTemplateError: The template is not valid jinja2.
    Source: promptflow `executor/_tool_resolver.py`, `_resolve_llm_node`.
    """
    from prefect_batchflow.tools.llm import answer_of, call_model, import_openai, kind_of

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
    is_azure = kind == "AzureOpenAIConnection"
    model_names = ("deployment_name", "model") if is_azure else ("model", "deployment_name")
    inputs = _set_inputs(node, APIS[api])
    if not any(name in inputs for name in model_names):
        raise ResolveToolError(
            f"{place}: it has no input '{model_names[0]}'. Add it with the name of the model.", target="Tool"
        )
    template = template_of(flow, node, with_images=api == "chat")
    own = {*APIS[api], model_names[0], "prompt", "connection"}
    _refuse_collisions(node, template, own, f"{PROVIDERS[kind]}.{api}")
    untrusted = inputs_of_the_line(node)

    async def ask(**arguments: Any) -> Any:
        variables = {name: value for name, value in arguments.items() if name not in own}
        if is_azure:  # only promptflow's tool for Azure shows lists this way
            variables = as_chat_lists(variables)
        named = next((name for name in model_names if arguments.get(name)), model_names[0])
        parameters = request_parameters(api, arguments) | {"model": arguments.get(named)}
        if api == "chat":
            parameters["messages"] = template.render_chat(variables, untrusted)
        else:
            parameters["prompt"] = template.render(variables)
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


def request_parameters(api: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request: a node's arguments without empty ones; `tools` win over `functions`."""
    given = {**DEFAULTS[api], **{k: v for k, v in arguments.items() if k in APIS[api] and not _is_unset(k, v)}}
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


def template_of(flow: Flow, node: Node, *, with_images: bool = False) -> Template:
    """Read a node's template; `with_images` puts each `![image]({{name}})` on a separate line.

    Raises:
        JinjaTemplateError: It is not valid jinja2.
        ResolveToolError: It cannot be read.
    """
    text = template_text(flow, node)
    return Template(without_image_marks(text) if with_images else text, f"Node '{node.name}': {node.source}")


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


def refuse_template_collisions(flow: Flow, node: Node, names: Collection[str]) -> None:
    """Refuse a `custom_llm` node whose template has a variable with the name of one of its tool's parameters.

    Raises:
        NodeInputValidationError: There is such a variable.
        JinjaTemplateError: The template is not valid jinja2.
    """
    _refuse_collisions(node, template_of(flow, node), names, f"the tool '{node.package_tool}'")


def _refuse_collisions(node: Node, template: Template, own: Collection[str], whose: str) -> None:
    twice = sorted(template.variables & set(own))
    if twice:
        raise NodeInputValidationError(
            f"Node '{node.name}': its template {node.source} has the variables {', '.join(twice)}, but {whose} has parameters "
            "of these names. Rename the variables in the template and in the node's inputs.",
            target="Tool",
        )


def _set_inputs(node: Node, types: Mapping[str, str]) -> dict[str, Reference | Constant]:
    """A node's inputs without empty ones, constants converted to their parameters' types."""
    from prefect_batchflow.inputs.types import CONVERSION_ERRORS, CONVERTERS

    inputs: dict[str, Reference | Constant] = {}
    for name, value in node.inputs.items():
        if isinstance(value, Reference):
            inputs[name] = value
        elif value.value not in (None, ""):
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


def _is_unset(name: str, value: Any) -> bool:
    return value is None or value in ("", [], {}) or (name == "max_tokens" and str(value).lower() == "inf")


def inputs_of_the_line(node: Node) -> frozenset[str]:
    """The inputs of a node that come straight from the row."""
    return frozenset(n for n, v in node.inputs.items() if isinstance(v, Reference) and v.section == "inputs")
