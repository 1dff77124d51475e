"""Connections and model configurations of constructors: what is taken, and what is refused before the first line."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.connections.kinds import OpenAIConnection
from prefect_batchflow.connections.model_configurations import AzureOpenAIModelConfiguration, OpenAIModelConfiguration
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import FlowEntryInitializationError, PythonLoadError
from prefect_batchflow.execution.program.loader import load_program

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("fresh_imports")

CONNECTIONS = {
    "azure": {
        "type": "AzureOpenAIConnection",
        "value": {"api_key": "k", "api_base": "https://a.b", "api_version": "v"},
    },
    "open_ai": {"type": "OpenAIConnection", "value": {"api_key": "k"}},
}
CODE = """
from __future__ import annotations
from typing import Annotated, Any, NewType, Optional, Union
from promptflow.connections import AzureOpenAIConnection, OpenAIConnection
from promptflow.core import AzureOpenAIModelConfiguration, OpenAIModelConfiguration

Model = NewType("Model", AzureOpenAIModelConfiguration)

class Flow:
    def __init__(self, it: {annotation}):
        self.it = it

    def __call__(self, text: str):
        return [type(self.it).__name__, getattr(self.it, "azure_endpoint", None), getattr(self.it, "connection", None)]
"""
AZURE, OPEN_AI = "AzureOpenAIModelConfiguration", "OpenAIModelConfiguration"


def built(folder: Path, annotation: str, value: Any, init: dict[str, Any] | None = None) -> Any:
    """What a flow's constructor got, told by a line."""
    import yaml

    (folder / "asking.py").write_text(dedent(CODE).replace("{annotation}", annotation))
    document = {"entry": "asking:Flow", **({"init": init} if init else {})}
    (folder / "flow.flex.yaml").write_text(yaml.safe_dump(document))
    program = load_program(load_flow(folder), {"it": value}, CONNECTIONS)
    record: Any = program.run_line(0, {"text": "x"})
    assert record["error"] is None
    return record["output"]["output"]


@pytest.mark.parametrize(
    ("annotation", "value", "name"),
    [
        (AZURE, {"azure_deployment": "d", "azure_endpoint": "https://e"}, AZURE),
        (AZURE, {"azure_deployment": "d", "connection": "azure"}, AZURE),
        (AZURE, AzureOpenAIModelConfiguration("d", connection="azure"), AZURE),
        (AZURE, AzureOpenAIModelConfiguration("d", azure_endpoint="https://e"), AZURE),
        (f"Optional[{AZURE}]", None, "NoneType"),
        (f"{AZURE} = None", None, "NoneType"),
        (f"{AZURE} | None", {"azure_deployment": "d"}, AZURE),
        (f"Union[{AZURE}, {OPEN_AI}]", {"model": "m"}, OPEN_AI),
        (f"Union[{AZURE}, {OPEN_AI}]", OpenAIModelConfiguration("m"), OPEN_AI),
        (f"Union[{AZURE}, str]", "text", "str"),
        (f"Union[{AZURE}, OpenAIConnection]", "open_ai", "OpenAIConnection"),
        ("OpenAIConnection", "open_ai", "OpenAIConnection"),
        ("OpenAIConnection", OpenAIConnection("k"), "OpenAIConnection"),
        ("Optional[OpenAIConnection]", None, "NoneType"),
        ("Union[OpenAIConnection, dict]", {"a": 1}, "dict"),
        ("Any", "open_ai", "str"),
        ("Annotated[OpenAIConnection, 'x']", "open_ai", "OpenAIConnection"),
        ("Optional[Annotated[OpenAIConnection, 'x']]", "open_ai", "OpenAIConnection"),
        (f"Annotated[{AZURE}, 'x']", {"azure_deployment": "d", "connection": "azure"}, AZURE),
        (f"Annotated[Union[{AZURE}, {OPEN_AI}], 'x'] | None", {"azure_deployment": "d", "connection": "azure"}, AZURE),
        ("Model", {"azure_deployment": "d", "connection": "azure"}, AZURE),
    ],
    ids=str,
)
def test_what_fits_is_given(tmp_path: Path, annotation: str, value: Any, name: str) -> None:
    told = built(tmp_path, annotation, value)

    assert told[0] == name
    if "'azure'" in repr(value):
        assert told[1:] == ["https://a.b", None]


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (
            AZURE,
            "azure",
            r"expected the keys of AzureOpenAIModelConfiguration, such as {azure_deployment: …, connection: …}",
        ),
        (OPEN_AI, "open_ai", r"such as {model: …, connection: …}; found a value of type str"),
        (OPEN_AI, '{"model": "m"}', "found a value of type str"),
        (OPEN_AI, "", "found a value of type str"),
        (OPEN_AI, ["m"], "found a value of type list"),
        (OPEN_AI, 5, "found a value of type int"),
        (OPEN_AI, True, "found a value of type bool"),
        (OPEN_AI, None, "found a value of type NoneType"),
        (OPEN_AI, {}, "lacks 'model'"),
        (OPEN_AI, {"model": "m", "key": 1}, "unknown keys key"),
        (OPEN_AI, {"model": "m", "connection": "nobody"}, "'nobody'"),
        (OPEN_AI, {"model": "m", "connection": "azure"}, "the code takes OpenAIConnection"),
        (OPEN_AI, {"model": "m", "connection": 5}, "expected the name of a connection"),
        (OPEN_AI, {"model": "m", "connection": "open_ai", "base_url": "u"}, "also base_url"),
        (OPEN_AI, {"model": "m", "connection": "open_ai", "organization": "o"}, "also organization"),
        (AZURE, {"azure_deployment": "d", "connection": "azure", "azure_endpoint": "e"}, "also azure_endpoint"),
        (AZURE, {"azure_deployment": "d", "connection": "azure", "api_key": "k"}, "also api_key"),
        (AZURE, {"azure_deployment": "d", "connection": "azure", "api_version": "v"}, "also api_version"),
        (AZURE, OpenAIModelConfiguration("m"), "found a value of type OpenAIModelConfiguration"),
        (f"Optional[{AZURE}]", "azure", "found a value of type str"),
        (f"Annotated[{AZURE}, 'x']", "azure", "found a value of type str"),
        (AZURE, {"azure_deployment": None, "connection": "azure"}, "lacks 'azure_deployment'"),
        (OPEN_AI, {"model": "", "connection": "open_ai"}, "lacks 'model'"),
        (AZURE, {"azure_deployment": "d", "azure_endpoint": ""}, r"init 'it'\.azure_endpoint is empty"),
        (f"Union[{AZURE}, {OPEN_AI}]", "azure", "AzureOpenAIModelConfiguration or OpenAIModelConfiguration"),
        ("OpenAIConnection", 5, "expected the name of a connection"),
        ("OpenAIConnection", None, "expected the name of a connection"),
        ("OpenAIConnection", {"type": "OpenAIConnection"}, "expected the name of a connection"),
        ("OpenAIConnection", "", "''"),
        ("OpenAIConnection", "azure", "the code takes OpenAIConnection"),
        ("Optional[OpenAIConnection]", ["open_ai"], "expected the name of a connection"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(tmp_path: Path, annotation: str, value: Any, said: str) -> None:
    with pytest.raises(FlowEntryInitializationError, match=said) as caught:
        built(tmp_path, annotation, value)

    assert "init 'it'" in str(caught.value)


@pytest.mark.parametrize(
    "value", ["open_ai", ["m"], None, {"model": "m", "base_url": "u", "connection": "open_ai"}], ids=str
)
def test_a_type_in_the_yaml_refuses_as_an_annotation(tmp_path: Path, value: Any) -> None:
    with pytest.raises(FlowEntryInitializationError, match="init 'it'"):
        built(tmp_path, "Any", value, {"it": {"type": OPEN_AI}})


@pytest.mark.parametrize("kind", ["python", "prompt", "llm"])
@pytest.mark.parametrize("module", ["no.such.module", "promptflow.tools.nothing", "promptflow.nothing"])
def test_an_unknown_module_of_a_node_is_refused(tmp_path: Path, kind: str, module: str) -> None:
    import json

    (tmp_path / "n.py").write_text("from promptflow.core import tool\n@tool\ndef n(): return 1\n")
    (tmp_path / "n.jinja2").write_text("user:\nHi")
    source = {"type": "code", "path": "n.py" if kind == "python" else "n.jinja2"}
    node = {"name": "n", "type": kind, "source": source, "module": module, "inputs": {}}
    node |= {"connection": "open_ai", "api": "chat", "inputs": {"model": "m"}} if kind == "llm" else {}
    document = {"inputs": {"q": {"type": "string"}}, "outputs": {"a": {"reference": "${n.output}"}}, "nodes": [node]}
    (tmp_path / "flow.dag.yaml").write_text(json.dumps(document))

    with pytest.raises(PythonLoadError, match=f"The module '{module}' of the node 'n' cannot be imported"):
        load_program(load_flow(tmp_path), {}, CONNECTIONS)

    (tmp_path / "flow.dag.yaml").write_text(json.dumps(document).replace(module, "promptflow.tools.openai"))
    load_program(load_flow(tmp_path), {}, CONNECTIONS)
