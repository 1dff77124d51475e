"""Every public name of promptflow's modules works without promptflow, or says what to use instead."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import exceptions
from prefect_batchflow.exceptions import UnsupportedFeatureError, error_dict
from prefect_batchflow.promptflow_shim import install, uninstall
from prefect_batchflow.promptflow_shim.names import PROVIDED, REPLACED
from prefect_batchflow.promptflow_shim.tracing import OperationContext, trace
from prefect_batchflow.tools.context import current_context, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Collected by hand from promptflow 1.18.5: `__all__`, or what a module without it defines or brings to flows.
PUBLIC = {
    "promptflow": "PFClient ToolProvider load_flow load_run log_flow_metric log_metric tool",
    "promptflow._cli._utils": "get_workspace_triad_from_local",
    "promptflow._core.metric_logger": "MetricLoggerManager add_metric_logger log_metric remove_metric_logger",
    "promptflow._core.tool": "DynamicList InputSetting ToolInvoker ToolProvider tool",
    "promptflow._internal": "AttrDict ToolExecutionError ToolInvoker ToolProvider enable_cache register_apis "
    "register_builtins register_connections tool",
    "promptflow._sdk._constants": "ConnectionType",
    "promptflow._sdk._load_functions": "load_flow",
    "promptflow._sdk.entities._connection": "AzureOpenAIConnection CustomConnection OpenAIConnection",
    "promptflow._sdk.entities": "AzureContentSafetyConnection AzureOpenAIConnection CognitiveSearchConnection "
    "CustomConnection CustomStrongTypeConnection FlowContext FormRecognizerConnection OpenAIConnection QdrantConnection "
    "Run SerpConnection ServerlessConnection ValidationResult WeaviateConnection",
    "promptflow.batch": "BatchEngine BatchResult",
    "promptflow.client": "PFClient load_flow load_run",
    "promptflow.connections": "AzureAIServicesConnection AzureContentSafetyConnection AzureOpenAIConnection "
    "CognitiveSearchConnection ConnectionProvider CustomConnection CustomStrongTypeConnection FormRecognizerConnection "
    "OpenAIConnection SerpConnection ServerlessConnection",
    "promptflow.contracts.multimedia": "Image PFBytes Text",
    "promptflow.contracts.run_info": "FlowRunInfo RunInfo Status",
    "promptflow.contracts.types": "AssistantDefinition AttrDict FilePath PromptTemplate Secret",
    "promptflow.core": "AsyncFlow AsyncPrompty AzureOpenAIModelConfiguration Flow ModelConfiguration "
    "OpenAIModelConfiguration Prompty ToolProvider log_metric tool",
    "promptflow.core._connection": "AzureOpenAIConnection CustomConnection OpenAIConnection ServerlessConnection",
    "promptflow.core._flow": "AsyncFlow AsyncPrompty Flow Prompty",
    "promptflow.core._model_configuration": "AzureOpenAIModelConfiguration ModelConfiguration OpenAIModelConfiguration",
    "promptflow.entities": "AzureContentSafetyConnection AzureOpenAIConnection CognitiveSearchConnection CustomConnection "
    "DynamicList FlowContext FormRecognizerConnection InputSetting OpenAIConnection QdrantConnection Run SerpConnection",
    "promptflow.exceptions": "ErrorCategory ErrorTarget PromptflowException SystemErrorException UserErrorException "
    "ValidationException",
    "promptflow.executor": "FlowExecutor FlowValidator",
    "promptflow.operations": "ConnectionOperations FlowOperations RunOperations",
    "promptflow.storage": "AbstractBatchRunStorage AbstractCacheStorage AbstractRunStorage",
    "promptflow.tracing": "ThreadPoolExecutorWithContext start_trace trace",
    "promptflow.tracing._context_utils": "ThreadPoolExecutorWithContext",
    "promptflow.tracing._operation_context": "OperationContext",
    "promptflow.tracing._start_trace": "start_trace",
    "promptflow.tracing._trace": "trace",
    "promptflow.tracing.contracts.trace": "TraceType",
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names.split()]


def forget() -> None:
    uninstall()
    for name in [name for name in sys.modules if name.partition(".")[0] == "promptflow"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def mirror() -> Iterator[None]:
    """The mirror, in a process without promptflow."""
    forget()
    assert install()
    yield
    forget()


def imported(module: str, name: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(f"from {module} import {name} as found", namespace)  # noqa: S102 - as users write it
    return namespace["found"]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_works_or_says_what_to_use_when_it_is_used(module: str, name: str) -> None:
    found = imported(module, name)

    assert (name in PROVIDED[module]) != (name in REPLACED.get(module, {}))
    if name in PROVIDED[module]:
        assert found is getattr(importlib.import_module(found.__module__), found.__name__)
        return
    for use in (found, lambda: found.run, lambda: type("Own", (found,), {})()):
        with pytest.raises(UnsupportedFeatureError) as caught:
            use()
        assert f"prefect_batchflow does not provide {module}.{name}. {REPLACED[module][name]}" in str(caught.value)


@pytest.mark.parametrize("module", PROVIDED)
def test_a_star_gives_what_is_provided(module: str) -> None:
    namespace: dict[str, Any] = {}

    exec(f"from {module} import *", namespace)  # noqa: S102 - as users write it

    assert PROVIDED[module].keys() <= namespace.keys()


def test_what_is_replaced_may_stand_in_annotations() -> None:
    client = imported("promptflow.client", "PFClient")

    assert not isinstance(1, client)
    assert client | None == None | client
    assert not hasattr(client, "__wrapped__")


def test_every_provided_module_is_on_the_page_for_moving() -> None:
    """The page names each module, or the module above it, with what works and what raises."""
    page = (Path(__file__).parents[2] / "docs" / "moving-from-promptflow.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `promptflow")]
    text = "\n".join(rows)
    for module in {*PROVIDED, *REPLACED}:
        if PROVIDED.get(module) or REPLACED.get(module):
            assert f"`{module}`" in text, f"{module} is not on the page"
    for module, names in REPLACED.items():
        of_module = [row for row in rows if f"`{module}`" in row]
        right = " ".join(row.split("|")[3] for row in of_module)
        missing = {name for name in names if f"`{name}`" not in right}
        assert not missing or "all" in right, f"{module}: {missing} missing"


class TestOperationContext:
    def test_it_is_a_dict_with_attributes_of_this_context(self) -> None:
        context = OperationContext.get_instance()
        assert OperationContext.get_instance() is context
        context.user = "me"
        assert context["user"] == context.user == context.get_context_dict()["user"] == "me"
        context.append_user_agent("app/1")
        context.append_user_agent("app/1")
        assert context.get_user_agent().startswith("app/1 ")
        assert context.get_request_id() == "unknown"
        copied = context.copy()
        del context.user
        assert (hasattr(context, "user"), copied.user, type(copied)) == (False, "me", OperationContext)
        OperationContext.set_instance(None)
        assert OperationContext.get_instance() is not context


class TestTrace:
    def test_functions_of_every_kind_stay_what_they_are(self) -> None:
        @trace
        def plain() -> int:
            return 1

        @trace()
        async def awaited() -> int:
            return 2

        @trace
        def several() -> Iterator[int]:
            yield 3

        @trace
        async def several_async() -> AsyncIterator[int]:
            yield 4

        async def all_of_it() -> list[int]:
            return [plain(), await awaited(), *several(), *[part async for part in several_async()]]

        assert imported("promptflow.tracing", "trace") is trace
        assert asyncio.run(all_of_it()) == [1, 2, 3, 4]

    def test_starting_it_does_nothing(self) -> None:
        assert imported("promptflow.tracing", "start_trace")(collection="mine") is None

    def test_threads_of_its_pool_belong_to_the_line(self) -> None:
        pool = imported("promptflow.tracing", "ThreadPoolExecutorWithContext")

        with running(1) as first, running(2), pool(1) as threads:
            inner = threads.submit(current_context).result()
            assert list(threads.map(lambda _: current_context(), range(2))) == [inner, inner]

        assert inner is not first
        assert inner is not None
        assert inner.line_number == 2


class TestExceptions:
    def test_they_are_this_packages_own(self) -> None:
        assert imported("promptflow.exceptions", "UserErrorException") is exceptions.UserErrorException
        assert imported("promptflow.exceptions", "PromptflowException") is exceptions.BatchflowException

    def test_they_are_made_as_promptflow_makes_them(self) -> None:
        user_error = imported("promptflow.exceptions", "UserErrorException")
        target = imported("promptflow.exceptions", "ErrorTarget")
        cause = ValueError("cause")

        error = user_error(message_format="{name} is {what}", name="x", target=target.TOOL, error=cause)

        assert (str(error), error.inner_exception) == ("x is <what>", cause)
        shown = error_dict(error)
        assert (shown["message"], shown["messageFormat"]) == ("x is <what>", "{name} is {what}")
        assert shown["messageParameters"] == {"name": "x", "what": "<what>"}
        assert (shown["code"], shown["innerError"], shown["referenceCode"]) == ("UserError", None, "Tool")

    def test_a_class_derived_from_one_brings_its_code(self) -> None:
        validation = imported("promptflow.exceptions", "ValidationException")

        class TooLongException(validation):  # type: ignore[misc, valid-type] # a class known at run time only
            pass

        shown = error_dict(TooLongException("x"))
        assert (shown["code"], shown["innerError"]) == (
            "UserError",
            {"code": "ValidationError", "innerError": {"code": "TooLongException", "innerError": None}},
        )
        assert error_dict(exceptions.BatchflowException("x"))["code"] == "SystemError"


class TestTypes:
    def test_attr_dict(self) -> None:
        found = imported("promptflow.contracts.types", "AttrDict")(a=1)
        found.b = 2

        assert (found.a, found["b"]) == (1, 2)
        with pytest.raises(AttributeError, match=r"There is no key 'c'\. Keys: 'a', 'b'"):
            found.c  # noqa: B018 - the access is what is tested

    def test_assistant_definition(self) -> None:
        definition = imported("promptflow.contracts.types", "AssistantDefinition")
        data = {"model": "m", "instructions": "i", "tools": [{"type": "code_interpreter"}]}

        assert definition.deserialize({**data, "other": 1}).serialize() == data
        assert definition.deserialize({}).serialize() == {"model": "", "instructions": "", "tools": []}

    def test_what_registers_a_tool_gives_it_back(self) -> None:
        register = imported("promptflow._internal", "register_apis")

        assert register(TestTypes) is TestTypes

    def test_what_caches_an_answer_leaves_the_function_as_it_is(self) -> None:
        enable_cache = imported("promptflow._internal", "enable_cache")

        assert enable_cache(lambda: "key")(forget) is forget

    def test_there_is_no_workspace(self) -> None:
        workspace = imported("promptflow._cli._utils", "get_workspace_triad_from_local")()

        assert (workspace.subscription_id, workspace.resource_group_name, workspace.workspace_name) == (None,) * 3
