"""What a model is sent by nodes whose inputs and variables have names that the tools have too, and by unset parameters."""

from __future__ import annotations

import json
from typing import Any

from declared import cases_of, dag, node

from cases.models import CHAT, ROWS, TEXT, WITH_MODEL

case = cases_of("prompts_as_sent")

MODELS: dict[str, dict[str, Any]] = {
    "open_ai": {"connection": "open_ai", "api": "chat"},
    "azure": {"connection": "azure", "api": "chat"},
    "open_ai_completion": {"connection": "open_ai", "api": "completion"},
    "azure_completion": {"connection": "azure", "api": "completion"},
}
NEVER = {"activate": {"when": "${inputs.text}", "is": "never"}}


def asks(
    of: str,
    template: str,
    inputs: dict[str, Any] | None = None,
    /,
    *,
    model: str = "gpt",
    **nodes: Any,
) -> dict[str, str | bytes]:
    """A flow of an llm node, behind other nodes; of a chat, the template gets a role."""
    chat = MODELS[of]["api"] == "chat"
    name = "deployment_name" if MODELS[of]["connection"] == "azure" else "model"
    given = {name: model, "text": "${inputs.text}", **(inputs or {})}
    ask = template_node("llm", "ask", given, **MODELS[of])
    files = dag(TEXT, {"out": "${ask.output}"}, **nodes, ask=ask)
    return files | {"ask.jinja2": f"user:\n{template}" if chat else template}


def template_node(kind: str, name: str, inputs: dict[str, Any], /, **keys: Any) -> dict[str, Any]:
    """A node with a template."""
    return {"type": kind, "source": {"type": "code", "path": f"{name}.jinja2"}, "inputs": inputs, **keys}


def prompt(template: str, inputs: dict[str, Any], /, **nodes: Any) -> dict[str, str | bytes]:
    """A flow of a prompt node, behind other nodes."""
    show = template_node("prompt", "show", {"text": "${inputs.text}", **inputs})
    return dag(TEXT, {"out": "${show.output}"}, **nodes, show=show) | {"show.jinja2": template}


# --- an input `prompt` of an llm node, `template` of a prompt node ---------------------------------------------------

SHOW = template_node("prompt", "show", {"text": "${inputs.text}"})
COMPUTE = "def compute(text: str): return 'user:\\nComputed ' + text + ': {{text}}, {{kind}}{{nobody}}'"
for of in MODELS:
    case(f"prompt_input_of_{of}", asks(of, "{{text}}", {"prompt": "user:\nSay {{text}}"}), ROWS, **WITH_MODEL)
    case(
        f"prompt_input_of_a_prompt_node_for_{of}",
        asks(of, "{{text}}", {"prompt": "${show.output}"}, show=SHOW)
        | {"show.jinja2": "system:\nBe terse.\nuser:\nShow {{text}}\n"},
        ROWS,
        **WITH_MODEL,
    )
for of in ("open_ai", "azure_completion"):
    case(
        f"prompt_input_of_a_python_node_for_{of}",
        asks(
            of,
            "{{text}}",
            {"prompt": "${compute.output}", "kind": "k"},
            compute=node(COMPUTE, {"text": "${inputs.text}"}),
        ),
        ROWS,
        **WITH_MODEL,
    )
    case(
        f"prompt_input_of_the_row_for_{of}",
        asks(of, "{{text}}", {"prompt": "${inputs.text}", "kind": "k"}),
        [{"text": "user:\nSay {{kind}}"}, {"text": "system:\r\nBe terse\r\nuser:\r\nHi\r\n"}],
        **WITH_MODEL,
    )
case(
    "prompt_input_of_a_bypassed_node",
    asks(
        "open_ai",
        "File {{text}}",
        {"prompt": "${compute.output}", "kind": "${other.output}"},
        compute=node("def compute(): return 'user:\\nno'", {}, **NEVER),
        other=node("def other(): return 1"),
    ),
    ROWS,
    **WITH_MODEL,
)
case(
    "prompt_input_that_is_null",
    asks("open_ai", "{{text}}", {"prompt": "${compute.output}"}, compute=node("def compute(): return None")),
    ROWS,
    **WITH_MODEL,
)
case(
    "prompt_input_that_cannot_be_read",
    asks("open_ai", "{{text}}", {"prompt": "${inputs.text}"}),
    [{"text": "user:\n{% for %}"}, {"text": "user:\nfine"}],
    **WITH_MODEL,
)
case("prompt_input_that_is_unset", asks("open_ai", "{{text}}", {"prompt": ""}), ROWS, **WITH_MODEL)
case("template_input", prompt("File {{text}}", {"template": "Given {{text}}"}), ROWS)
case(
    "template_input_of_a_python_node",
    prompt(
        "File {{text}}",
        {"template": "${compute.output}", "kind": "k"},
        compute=node(COMPUTE, {"text": "${inputs.text}"}),
    ),
    ROWS,
)
case("template_input_of_the_row", prompt("File", {"template": "${inputs.text}"}), [{"text": "A {{text|length}}"}])

# --- names that are the tools' ---------------------------------------------------------------------------------------

VARIABLES = ["api", "provider", "module", "image", "name", "node", "type", "value", "messages", "kwargs", "timeout"]
"""Names of a node, of requests and of our own, that no tool of promptflow's has as a parameter."""
EACH = " ".join(f"{name}={{{{{name}}}}}" for name in VARIABLES)
GIVEN: dict[str, Any] = {name: f"a {name}" for name in VARIABLES}
for of, spare in {
    "open_ai": ["deployment_name", "n", "reasoning_effort", "max_completion_tokens", "suffix"],
    "azure": ["model", "reasoning_effort", "max_completion_tokens", "verbosity", "logprobs"],
    "open_ai_completion": ["deployment_name", "tools", "response_format", "seed"],
    "azure_completion": ["model", "tools", "response_format", "seed"],
}.items():
    spared = " ".join(f"{name}={{{{{name}}}}}" for name in spare)
    case(
        f"names_that_are_variables_of_{of}",
        asks(of, f"{EACH} {spared}", {**GIVEN, **{name: f"a {name}" for name in spare}}),
        ROWS[:1],
        **WITH_MODEL,
    )
    case(f"names_without_an_input_of_{of}", asks(of, f"{EACH} {spared} {{{{text}}}}"), ROWS[:1], **WITH_MODEL)
names = [*VARIABLES, "prompt", "model", "connection", "temperature"]
case(
    "names_that_are_variables_of_a_prompt_node",
    prompt(" ".join(f"{name}={{{{{name}}}}}" for name in names), {name: f"a {name}" for name in names}),
    ROWS[:1],
)
for of, name in [
    ("open_ai", "prompt"),
    ("open_ai", "model"),
    ("azure", "deployment_name"),
    ("azure", "connection"),
    ("azure", "n"),
    ("open_ai", "tools"),
    ("open_ai_completion", "suffix"),
    ("azure_completion", "n"),
]:
    case(f"refused_variable_{name}_of_{of}", asks(of, f"{{{{text}}}} {{{{{name}}}}}"), ROWS, **WITH_MODEL)
case("refused_variable_template_of_a_prompt_node", prompt("{{template}}", {}), ROWS)
case("an_input_connection_beside_the_nodes", asks("open_ai", "{{text}}", {"connection": "nobody"}), ROWS, **WITH_MODEL)

# --- values as they are shown ----------------------------------------------------------------------------------------

SHOWN = {"a": ["x", 1], "b": {"k": ["y"]}, "c": True, "d": 1.0, "e": 3, "f": None, "g": "", "h": "true"}
for of in MODELS:
    case(
        f"values_as_{of}_shows_them",
        asks(of, "{{text}} {{a}} {{b}} {{b.k}} {{c}} {{d}} {{e}} {{f}} {{g}} {{h}}", {**SHOWN, "text": ["z"]}),
        ROWS[:1],
        **WITH_MODEL,
    )

# --- parameters ------------------------------------------------------------------------------------------------------

EMPTY: dict[str, Any] = {
    "max_tokens": "",
    "stop": "",
    "temperature": None,
    "presence_penalty": None,
    "logit_bias": "",
    "user": "",
}
for of in MODELS:
    case(f"parameters_that_nobody_wrote_of_{of}", asks(of, "{{text}}", model="whole-request"), ROWS[:1], **WITH_MODEL)
case(
    "parameters_that_are_unset_of_open_ai",
    asks("open_ai", "{{text}}", EMPTY, model="whole-request"),
    ROWS[:1],
    **WITH_MODEL,
)
case(
    "parameters_of_reasoning_models",
    asks("azure", "{{text}}", {"max_completion_tokens": 50, "reasoning_effort": "low"}, model="whole-request"),
    ROWS[:1],
    **WITH_MODEL,
)
case("a_models_name_that_is_a_number", asks("open_ai", "{{text}}", model=5), ROWS[:1], **WITH_MODEL)  # type: ignore[arg-type]

# --- a package's tool with a template ----------------------------------------------------------------------------------

TOOLS = """
from promptflow.contracts.types import PromptTemplate
from promptflow.core import tool

@tool
def ask(prompt: PromptTemplate, size: int = 7, **kwargs):
    kwargs.pop("_inputs_to_escape", None)
    return [str(prompt), size, kwargs]
"""
DEFINITION = {
    "parity_tools.tools.ask": {
        "module": "parity_tools.tools",
        "function": "ask",
        "name": "ask",
        "type": "custom_llm",
        "inputs": {"prompt": {"type": ["prompt_template"]}, "size": {"type": ["int"]}},
    }
}
PACKAGE: dict[str, str | bytes] = {
    "parity_tools/__init__.py": "",
    "parity_tools/tools.py": TOOLS,
    "parity_tools/listing.py": f"import json\ndef list_tools():\n    return json.loads({json.dumps(DEFINITION)!r})\n",
    "parity_tools-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: parity-tools\nVersion: 1.5\n",
    "parity_tools-1.5.dist-info/entry_points.txt": "[package_tools]\nlisting = parity_tools.listing:list_tools\n",
}


def custom(template: str, inputs: dict[str, Any]) -> dict[str, str | bytes]:
    """A flow of a custom_llm node."""
    source = {"type": "package_with_prompt", "tool": "parity_tools.tools.ask", "path": "ask.jinja2"}
    ask = {"type": "custom_llm", "source": source, "inputs": {"text": "${inputs.text}", **inputs}}
    return dag(TEXT, {"out": "${ask.output}"}, ask=ask) | {"ask.jinja2": template} | PACKAGE


case("custom_llm", custom(CHAT, {"size": "3", "api": "a", "model": "m"}), ROWS)
case("custom_llm_with_unset_inputs", custom(CHAT, {"size": "", "prompt": None}), ROWS)
case("custom_llm_with_an_input_prompt", custom(CHAT, {"prompt": "Given {{text}}"}), ROWS)
case("custom_llm_with_a_prompt_of_the_row", custom(CHAT, {"prompt": "${inputs.text}"}), ROWS)
case("refused_variable_of_a_custom_llm", custom("{{size}}", {"size": 1}), ROWS)
