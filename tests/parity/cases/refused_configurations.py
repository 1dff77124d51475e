"""Configurations of models and connections of a wrong type, and modules that nobody has: refused before the first line."""

from __future__ import annotations

from typing import Any

from declared import FLEX, cases_of, dag, node

from cases.connections import GIVEN, ROWS, TEXT, holds
from cases.models import WITH_MODEL

case = cases_of("refused_configurations")

AZURE = {"azure_deployment": "d"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "OpenAIModelConfiguration": {
        "text": "open_ai",
        "json": '{"model": "m"}',
        "list": ["m"],
        "number": 5,
        "null": None,
        "nothing_in_it": {},
        "an_unknown_key": {"model": "m", "key": "k"},
        "connection_and_base_url": {"model": "m", "connection": "open_ai", "base_url": "http://host"},
        "connection_and_organization": {"model": "m", "connection": "open_ai", "organization": "o"},
    },
    "AzureOpenAIModelConfiguration": {
        "text": "azure",
        "connection_and_endpoint": {**AZURE, "connection": "azure", "azure_endpoint": "http://host"},
        "connection_and_key": {**AZURE, "connection": "azure", "api_key": "k"},
        "connection_and_version": {**AZURE, "connection": "azure", "api_version": "v"},
    },
    "OpenAIConnection": {"number": 5, "null": None, "dict": {"type": "OpenAIConnection"}, "nothing": ""},
}
for parameter, values in CONFIGURATIONS.items():
    for name, value in values.items():
        init: dict[str, Any] = {"c": value}
        case(f"refused_{parameter}_of_{name}", holds(f"c: {parameter}", "1"), ROWS, init=init, **GIVEN, **FLEX)

for kind in ("llm", "prompt", "python"):
    for module in ("no.such.module", "promptflow.tools.nothing", "promptflow.tools.openai"):
        template = {
            "type": kind,
            "source": {"type": "code", "path": "ask.jinja2"},
            "inputs": {"text": "${inputs.text}", **({"model": "gpt"} if kind == "llm" else {})},
            "module": module,
            **({"connection": "open_ai", "api": "chat"} if kind == "llm" else {}),
        }
        ask = node("def ask(text: str): return text", {"text": "${inputs.text}"}, module=module)
        case(
            f"module_{module.replace('.', '_')}_of_a_{kind}_node",
            dag(TEXT, {"out": "${ask.output}"}, ask=ask if kind == "python" else template)
            | {"ask.jinja2": "user:\n{{text}}"},
            ROWS,
            **WITH_MODEL,
        )
