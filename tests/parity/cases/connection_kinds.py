"""Kinds of connections that a file or a dictionary can give: the fields that a node sees, with their defaults.

Without Qdrant and Weaviate, which promptflow-devkit alone cannot import.
"""

from __future__ import annotations

from declared import cases_of, dag, node

case = cases_of("connection_kinds")

KINDS: dict[str, dict[str, str]] = {
    "ServerlessConnection": {"api_base": "base"},
    "SerpConnection": {},
    "CognitiveSearchConnection": {"api_base": "base"},
    "AzureAIServicesConnection": {"endpoint": "end"},
    "AzureContentSafetyConnection": {"endpoint": "end"},
    "FormRecognizerConnection": {"endpoint": "end"},
    "AzureOpenAIConnection": {"api_base": "base"},
    "OpenAIConnection": {"organization": "org"},
}
CODE = """
from promptflow.connections import {kind}

def f(x: str, c: {kind}):
    return [type(c).__name__, dict(c.configs), dict(c.secrets), c.api_key]
"""

for kind, value in KINDS.items():
    case(
        f"the_fields_of_a_{kind}",
        dag(
            {"text": "string"},
            {"out": "${f.output}"},
            f=node(CODE.format(kind=kind), {"x": "${inputs.text}", "c": "mine"}),
        ),
        [{"text": "one"}],
        connections={"mine": {"type": kind, "value": {"api_key": "key", **value}}},
    )
