"""Connections: in nodes, constructors and model configurations, completed by the environment, of a type of the flow's own."""

from __future__ import annotations

from typing import Any

from declared import FLEX, MODEL_URL, cases_of, dag, flex, node

case = cases_of("connections")

TEXT = {"text": "string"}
ROWS = [{"text": "one"}, {"text": "two"}]
CUSTOM = {"type": "CustomConnection", "value": {"place": "here", "token": "tok"}, "secret_keys": ["token"]}
OPEN_AI = {"type": "OpenAIConnection", "value": {"api_key": "key", "base_url": MODEL_URL}}
AZURE = {
    "type": "AzureOpenAIConnection",
    "value": {"api_key": "key", "api_base": MODEL_URL, "api_type": "azure", "api_version": "2024-02-01"},
}
CONNECTIONS = {"custom": CUSTOM, "open_ai": OPEN_AI, "azure": AZURE}
GIVEN: dict[str, Any] = {"connections": CONNECTIONS}
SHOWN = "[type(c).__name__, dict(c.configs), dict(c.secrets)]"


def asks(annotation: str, shown: str = SHOWN, given: str = "custom", more: str = "") -> dict[str, str | bytes]:
    """A node whose tool takes a connection."""
    names = "AzureOpenAIConnection, CustomConnection, CustomStrongTypeConnection, OpenAIConnection"
    code = f"""
from typing import Optional, Union
from promptflow.connections import {names}
from promptflow.contracts.types import Secret
{more}

def f(x: str, c: {annotation}): return {shown}
"""
    return dag(TEXT, {"out": "${f.output}"}, f=node(code, {"x": "${inputs.text}", "c": given}))


case("a_custom_connection", asks("CustomConnection"), ROWS, **GIVEN)
case("a_connection_that_is_optional", asks("Optional[CustomConnection]"), ROWS, **GIVEN)
case("a_connection_of_one_of_two_types", asks("Union[CustomConnection, OpenAIConnection]"), ROWS, **GIVEN)
case("a_connection_of_another_type", asks("OpenAIConnection"), ROWS, **GIVEN)
case("a_connection_without_an_annotation", asks("str", "c"), ROWS, **GIVEN)
case(
    "a_connection_of_the_flows_own_type",
    asks(
        "Mine",
        "[type(c).__name__, c.place, c.token]",
        more="class Mine(CustomStrongTypeConnection):\n    token: Secret\n    place: str",
    ),
    ROWS,
    **GIVEN,
)
case(
    "a_key_of_a_connection_from_the_environment",
    asks("CustomConnection"),
    ROWS,
    env={"CUSTOM_PLACE": "there", "CUSTOM_TOKEN": "other"},
    **GIVEN,
)
case(
    "a_key_that_is_a_variable",
    asks("CustomConnection"),
    ROWS,
    connections={"custom": {**CUSTOM, "value": {"place": "${env:PARITY_PLACE}", "token": "tok"}}},
    env={"PARITY_PLACE": "there"},
)
case("a_connection_that_lacks_a_key", asks("CustomConnection", "c.lost"), ROWS, **GIVEN)
case("an_azure_connection", asks("AzureOpenAIConnection", "[c.api_base[:4], c.api_version]", "azure"), ROWS, **GIVEN)

HOLDER = """
from promptflow.connections import CustomConnection, OpenAIConnection
from promptflow.core import AzureOpenAIModelConfiguration, OpenAIModelConfiguration

class Main:
    def __init__(self, {parameter}):
        self.c = c
    def __call__(self, text: str):
        c = self.c
        return {shown}
"""


def holds(parameter: str, shown: str, /, **keys: Any) -> dict[str, str | bytes]:
    """A class that is built with a connection or a model configuration."""
    return flex(HOLDER.format(parameter=parameter, shown=shown), "Main", **keys)


case("a_connection_of_a_constructor", holds("c: CustomConnection", SHOWN), ROWS, init={"c": "custom"}, **GIVEN, **FLEX)
case(
    "a_connection_of_a_constructor_by_its_yaml",
    holds("c", SHOWN, init={"c": {"type": "CustomConnection"}}),
    ROWS,
    init={"c": "custom"},
    **GIVEN,
    **FLEX,
)
case(
    "an_unknown_connection_of_a_constructor",
    holds("c: CustomConnection", SHOWN),
    ROWS,
    init={"c": "nobody"},
    **GIVEN,
    **FLEX,
)
MODEL = "[type(c).__name__, c.model, c.base_url[:4], c.organization]"
AZURE_MODEL = "[type(c).__name__, c.azure_deployment, c.azure_endpoint[:4], c.api_version]"
case(
    "a_model_configuration",
    holds("c: OpenAIModelConfiguration", MODEL),
    ROWS,
    init={"c": {"model": "m", "base_url": "http://host", "api_key": "key"}},
    **FLEX,
)
case(
    "a_model_configuration_by_connection",
    holds("c: OpenAIModelConfiguration", MODEL),
    ROWS,
    init={"c": {"model": "m", "connection": "open_ai"}},
    **GIVEN,
    **FLEX,
)
case(
    "an_azure_model_configuration",
    holds("c: AzureOpenAIModelConfiguration", AZURE_MODEL),
    ROWS,
    init={
        "c": {"azure_deployment": "d", "azure_endpoint": "http://host", "api_key": "key", "api_version": "2024-06-01"}
    },
    **FLEX,
)
case(
    "an_azure_model_configuration_by_connection",
    holds("c: AzureOpenAIModelConfiguration", AZURE_MODEL),
    ROWS,
    init={"c": {"azure_deployment": "d", "connection": "azure"}},
    **GIVEN,
    **FLEX,
)
case(
    "a_model_configuration_of_the_sample",
    holds("c: OpenAIModelConfiguration", MODEL, sample={"init": {"c": {"model": "m", "connection": "open_ai"}}}),
    ROWS,
    **GIVEN,
    **FLEX,
)
case(
    "a_model_configuration_that_lacks_its_model",
    holds("c: OpenAIModelConfiguration", MODEL),
    ROWS,
    init={"c": {"base_url": "http://host", "api_key": "key"}},
    **FLEX,
)
case(
    "a_prompty_with_the_model_of_a_constructor",
    flex(
        """
        from promptflow.core import OpenAIModelConfiguration, Prompty

        class Main:
            def __init__(self, model: OpenAIModelConfiguration, most: int = 5):
                self.model, self.most = model, most
            def __call__(self, text: str, history: list = []):
                ask = Prompty.load("ask.prompty", model={"configuration": self.model, "parameters": {"max_tokens": self.most}})
                return {"answer": ask(text=text, history=history)}
            def __aggregate__(self, results: list):
                return {"answers": len(results)}
        """,
        "Main",
        sample={"init": {"model": {"model": "gpt", "api_key": "key-of-a-test", "base_url": MODEL_URL}, "most": 7}},
    )
    | {
        "ask.prompty": """---
name: ask
model:
  api: chat
  configuration:
    type: openai
    model: other
  parameters:
    temperature: 0.2
inputs:
  text:
    type: string
  history:
    type: list
---
system:
Be terse.

{% for item in history %}
{{item.role}}:
{{item.content}}
{% endfor %}

user:
{{text}}
"""
    },
    [
        {"text": "one", "history": []},
        {"text": "two", "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
    {"text": "${data.text}", "history": "${data.history}"},
    env={"PF_DISABLE_TRACING": "false"},
    **FLEX,
)
