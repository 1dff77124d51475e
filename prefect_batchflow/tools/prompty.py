"""A `.prompty` file as a function: it renders the template, calls the model and gives the answer in the file's format."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from prefect_batchflow.connections import kinds
from prefect_batchflow.connections.environment import filled_in, variable_named
from prefect_batchflow.definition.flow import Prompt
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.definition.prompty import problems_of_model
from prefect_batchflow.exceptions import (
    APIResponseValidationError,
    FlowDefinitionError,
    InvalidConnectionError,
    InvalidOptionError,
    InvalidOutputKeyError,
    MissingRequiredInputError,
)
from prefect_batchflow.tools.context import connection_named, given_connections
from prefect_batchflow.tools.llm import answer_of, call_model, call_model_sync, check_connection, kind_of, texts_of
from prefect_batchflow.tools.prompt import Template, without_image_marks
from prefect_batchflow.tools.token_estimate import estimated_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.tools.llm import Api

    GetConnection = Callable[[str, str, Sequence[str]], Any]

_AZURE, _OPENAI = "AzureOpenAIConnection", "OpenAIConnection"
_KINDS: Final = {
    "azure_openai": _AZURE, "azure_open_ai": _AZURE, "azureopenai": _AZURE,
    "openai": _OPENAI, "open_ai": _OPENAI,
}  # fmt: skip
"""Values of `type` in a configuration, in lower case."""
_VARIABLES: Final = {
    _AZURE: {
        "api_base": "AZURE_OPENAI_ENDPOINT",
        "api_key": "AZURE_OPENAI_API_KEY",
        "api_version": "OPENAI_API_VERSION",
    },
    _OPENAI: {"api_key": "OPENAI_API_KEY", "base_url": "OPENAI_BASE_URL", "organization": "OPENAI_ORG_ID"},
}
"""Environment variables for the keys that a configuration leaves out."""
_NEEDED: Final = {_AZURE: "api_base", _OPENAI: "api_key"}
_OTHER_FIELDS: Final = {_AZURE: ("auth_mode", "resource_id"), _OPENAI: ()}
_SPELLINGS: Final = {"api_base": ("azure_endpoint", "api_base")}
_NO_ADDRESS: Final = frozenset({"type", "connection", "model", "azure_deployment"})


class Prompty:
    """A prompty that you can call with its inputs by name: `Prompty.load("ask.prompty")(question="…")`.

    Its model's tokens count for the running line.
    Source: promptflow `core/_flow.py`, `Prompty`.
    """

    def __init__(self, path: str | PathLike[str], model: Mapping[str, Any] | None = None) -> None:
        """Read a `.prompty` file; `load` describes `model`."""
        self._set(load_flow(os.fspath(path)), model, connection_named)

    @classmethod
    def load(cls, source: str | PathLike[str], *, model: Mapping[str, Any] | None = None, **others: Any) -> Self:
        """Read a file.

        Args:
            source: The `.prompty` file.
            model: Replaces the keys of the file's `model`, key by key; its `configuration` can be an object, such as
                `AzureOpenAIModelConfiguration`.
            others: Refused: change other keys in the file.

        Raises:
            InvalidFlowRequest: The file is wrong, or not a prompty.
            InvalidOptionError: `model` is wrong.
        """
        _refuse_others(others)
        return cls(source, model)

    @classmethod
    def of_flow(cls, flow: Flow, init_kwargs: Mapping[str, Any], get_connection: GetConnection) -> Prompty:
        """Make the prompty of a flow, with its model's connection.

        Args:
            flow: A flow whose program is a `Prompt`.
            init_kwargs: `model`, as for `load`.
            get_connection: Gives a connection, as `Connections.get`.
        """
        _refuse_others({name: value for name, value in init_kwargs.items() if name != "model"})
        prompty = cls.__new__(cls)
        prompty._set(flow, init_kwargs.get("model"), get_connection)
        prompty._connect()
        return prompty

    def _set(self, flow: Flow, model: Mapping[str, Any] | None, get_connection: GetConnection) -> None:
        prompt = flow.program
        if not isinstance(prompt, Prompt):
            raise FlowDefinitionError(f"{flow.source} is not a .prompty file. Give the path of one.")
        self._flow, self._prompt, self._given = flow, prompt, model
        self._model = _merged_model(prompt, model)
        self._get_connection = get_connection
        self._call: tuple[Any, dict[str, Any]] | None = None
        self._template = Template(without_image_marks(prompt.template), str(prompt.file))

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker that gets it reads the file again.
        return type(self), (str(self._prompt.file), self._given)

    @property
    def _api(self) -> Api:
        return cast("Literal['chat', 'completion']", self._model.get("api") or "chat")

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Call the model.

        Args:
            args: Refused: give inputs by name.
            inputs: The file's inputs; without any, its `sample` is used. `timeout` in seconds, unless it is an input.

        Returns:
            The text of the first choice; a dict for an answer in JSON; the message if it calls tools; with
            `response: all` openai's response; with `stream: true` a generator of texts.

        Raises:
            MissingRequiredInputError: An input without a default is missing.
            InvalidOutputKeyError: A JSON answer lacks one of the `outputs`.
        """
        connection, parameters = self._asked(args, inputs)
        return self._result(call_model_sync(connection, self._api, parameters), parameters)

    def render(self, *args: Any, **inputs: Any) -> str:
        """Give the rendered prompt, or the messages of a chat as text, without calling the model."""
        return str(self._rendered(self._complete(args, inputs)))

    def estimate_token_count(self, *args: Any, **inputs: Any) -> int:
        """Estimate the tokens of a call: those of the prompt, and `max_tokens` for the answer if the file sets them.

        Raises:
            InvalidOptionError: `max_tokens` is not a whole number above 1.
        Source: promptflow `core/_flow.py`, `Prompty.estimate_token_count`.
        """
        rendered = self._rendered(self._complete(args, inputs))
        parameters = dict(self._model.get("parameters") or {})
        name = next((key for key in ("max_tokens", "max_completion_tokens") if parameters.get(key) is not None), None)
        answer = 0 if name is None else parameters[name]
        if name is not None and (not isinstance(answer, int) or isinstance(answer, bool) or answer <= 1):
            raise InvalidOptionError(f"{self._prompt.file}: {name} is {answer!r}. Expected a whole number above 1.")
        configuration = self._model.get("configuration") or {}
        model = parameters.get("model") or configuration.get("model") or configuration.get("azure_deployment")
        return estimated_tokens(rendered, str(model or "")) + int(answer)

    def _asked(self, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The connection, and the parameters of this call."""
        timeout = inputs.pop("timeout", None) if "timeout" not in self._flow.inputs else None
        rendered = self._rendered(self._complete(args, inputs))
        connection, parameters = self._connect()
        asked = {**parameters, "prompt" if self._api == "completion" else "messages": rendered}
        return connection, asked if timeout is None else {**asked, "timeout": timeout}

    def _complete(self, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that the file declares, with defaults added."""
        if args:
            raise InvalidOptionError(f"{self._prompt.file}: found {len(args)} without a name. Give all inputs by name.")
        inputs = inputs or self._prompt.sample
        declared = self._flow.inputs
        missing = [name for name, found in declared.items() if found.required and name not in inputs]
        if missing:
            raise MissingRequiredInputError(
                f"{self._prompt.file}: required inputs are missing: {', '.join(missing)}. Given: "
                f"{', '.join(inputs) or 'none'}. Give them by name, or add a default.",
                target="Core",
            )
        return {name: inputs.get(name, found.default) for name, found in declared.items()}

    def _rendered(self, inputs: dict[str, Any]) -> Any:
        return self._template.render(inputs) if self._api == "completion" else self._template.render_chat(inputs)

    def _connect(self) -> tuple[Any, dict[str, Any]]:
        """The connection and the model's parameters, made once."""
        if self._call is None:
            place = f"{self._prompt.file}, model"
            model = _from_environment(self._model, place)
            configuration = model.get("configuration") or {}
            written = self._model.get("configuration") or {}
            connection = _connection(configuration, written, f"{place}.configuration", self._get_connection)
            name = configuration.get("azure_deployment") or configuration.get("model")
            given = model.get("parameters") or {}
            # A key without a value is not written, also if it is what a variable or a caller gives.
            parameters = {key: value for key, value in given.items() if value is not None and value != ""}
            self._call = connection, {"model": name, **parameters} if name else parameters
            if not self._call[1].get("model"):
                raise InvalidConnectionError(
                    f"{place}.configuration does not name a model. Write `model: …`, or `azure_deployment: …` for Azure OpenAI."
                )
        return self._call

    def _result(self, response: Any, parameters: Mapping[str, Any]) -> Any:
        """Turn the model's response into the call's result.

        Source: promptflow `core/_prompty_utils.py`, `format_llm_response`.
        """
        if self._model.get("response") == "all":
            return response
        response_format = parameters.get("response_format")
        if isinstance(response_format, dict) and response_format.get("type") == "json_object":
            return self._picked(answer_of(response, self._api))
        if isinstance(response, list):
            return texts_of(response, self._api)
        if self._api == "chat":
            message = response.choices[0].message
            if getattr(message, "tool_calls", None) or getattr(message, "function_call", None):
                return answer_of(response, self._api, whole_message=True)
        return answer_of(response, self._api)

    def _picked(self, answer: str | None) -> Any:
        try:
            value = json.loads(answer or "")
        except ValueError as exc:
            raise APIResponseValidationError(
                f"{self._prompt.file}: the answer is not JSON, as response_format asks: {(answer or '')[:200]!r} "
                f"({exc}). Ask for JSON in the prompt, and allow more max_tokens.",
                target="Tool",
                status=200,
                retry_after_sec=None,
            ) from exc
        missing = [name for name in self._prompt.outputs if not isinstance(value, dict) or name not in value]
        if missing:
            found = ", ".join(value) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise InvalidOutputKeyError(
                f"{self._prompt.file}: the answer has no {', '.join(missing)}, which `outputs` requires. It has "
                f"{found or 'no keys'}. Ask for these keys in the prompt.",
                target="Core",
            )
        return {name: value[name] for name in self._prompt.outputs} if self._prompt.outputs else value


class AsyncPrompty(Prompty):
    """A prompty that you await: `await AsyncPrompty.load("ask.prompty")(question="…")`."""

    async def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Call the model; see `Prompty`."""
        connection, parameters = self._asked(args, inputs)
        return self._result(await call_model(connection, self._api, parameters), parameters)


def _refuse_others(given: Mapping[str, Any]) -> None:
    if given:
        raise InvalidOptionError(
            f"Only `model` can change a prompty, found {', '.join(given)}. Change other keys in the file."
        )


def _merged_model(prompt: Prompt, override: Any) -> dict[str, Any]:
    """The file's `model` with the given values, mapping by mapping.

    A connection's name and its keys exclude each other: a given one removes the other one of the file.
    """
    if override is None:
        return dict(prompt.model)
    place = f"{prompt.file}: the `model` that was given"
    if not isinstance(override, dict):
        raise InvalidOptionError(f"{place} must be a dict, found a {type(override).__name__}.")
    unknown = override.keys() - {"api", "configuration", "parameters", "response"}
    if unknown:
        raise InvalidOptionError(
            f"{place} has {', '.join(sorted(map(str, unknown)))}; expected api, configuration, parameters or response."
        )
    problems = problems_of_model(override)
    if not isinstance(override.get("parameters"), dict | None):
        problems.append(f"'parameters' must be a dict, found a {type(override['parameters']).__name__}.")
    if problems:
        raise InvalidOptionError(f"{place}: {' '.join(problems)}")
    configuration = override.get("configuration")
    before = dict(prompt.model.get("configuration") or {})
    if configuration is not None and not isinstance(configuration, dict):
        configuration, before = _of_object(configuration, place), {}
    elif configuration:
        if configuration.get("connection"):
            before = {key: value for key, value in before.items() if key in _NO_ADDRESS}
        elif configuration.keys() - _NO_ADDRESS:
            before.pop("connection", None)
    merged = _merged(dict(prompt.model), {**override, "configuration": None})
    merged["configuration"] = _merged(before, configuration or {})
    return merged


def _merged(before: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _of_object(configuration: Any, place: str) -> dict[str, Any]:
    """A model configuration object, of this package or of promptflow, as a dict."""
    types = {"AzureOpenAIModelConfiguration": "azure_openai", "OpenAIModelConfiguration": "openai"}
    name = type(configuration).__name__
    if name not in types:
        raise InvalidOptionError(
            f"{place}, configuration: expected a dict, an AzureOpenAIModelConfiguration or an OpenAIModelConfiguration, "
            f"found a {name}."
        )
    fields = {field.name: getattr(configuration, field.name) for field in dataclasses.fields(configuration)}
    return {"type": types[name], **{key: value for key, value in fields.items() if value is not None}}


def _from_environment(value: Any, place: str) -> Any:
    """A value with all `${env:NAME}` replaced; raises if a variable is not set."""
    if isinstance(value, dict):
        return {key: _from_environment(part, f"{place}.{key}") for key, part in value.items()}
    if isinstance(value, list):
        return [_from_environment(part, f"{place}[{index}]") for index, part in enumerate(value)]
    return filled_in(value, os.environ, place) if isinstance(value, str) else value


def _connection(
    configuration: Mapping[str, Any], written: Mapping[str, Any], place: str, get_connection: GetConnection
) -> Any:
    """The connection that a configuration names, or one made from its keys and the environment.

    Args:
        configuration: With the values of variables.
        written: As it is written.
        place: For messages.
        get_connection: Gives a connection, as `Connections.get`.

    Source: promptflow `core/_prompty_utils.py`, `convert_model_configuration_to_connection`.
    """
    given = configuration.get("connection")
    if given:
        inline = sorted(key for key in configuration if key not in _NO_ADDRESS and configuration[key] is not None)
        if inline:
            raise InvalidConnectionError(
                f"{place} has `connection` and also {', '.join(inline)}. Give only one of the two."
            )
        found = get_connection(given, place, _kinds_for(configuration)) if isinstance(given, str) else given
        if kind_of(found) is None:
            raise InvalidConnectionError(
                f"{place}: the connection has the type {type(found).__name__}, expected AzureOpenAI or OpenAI."
            )
        run = given_connections()
        check_connection(
            found,
            f"{place}: the connection '{found.name}'",
            lambda key: run.variable_of(given, key) if run is not None and isinstance(given, str) else None,
        )
        return found
    kind = _kind(configuration, place)
    values = {key: value for key, value in configuration.items() if value}
    if kind == _AZURE and "azure_endpoint" in values:
        values["api_base"] = values["azure_endpoint"]
    variables = _VARIABLES[kind]
    for key in ("azure_endpoint", "api_base", "base_url", "api_key"):
        variable = variable_named(written[key]) if isinstance(written.get(key), str) else None
        if variable is not None and not str(configuration[key]).strip():
            raise InvalidConnectionError(
                f"{place}.{key} is {written[key]}, but the environment variable {variable} is empty. Set it for the process "
                "that runs the flow."
            )
    fields = {name: values.get(name) or os.environ.get(variable) for name, variable in variables.items()}
    fields |= {name: values.get(name) for name in _OTHER_FIELDS[kind]}
    needed = _NEEDED[kind]
    if not fields[needed]:
        shown = "azure_endpoint" if needed == "api_base" else needed
        raise InvalidConnectionError(
            f"{place} has no {shown}. Write it there (as ${{env:NAME}} if it is a secret), set {variables[needed]} for the "
            "process that runs the flow, or name a connection."
        )
    connection = getattr(kinds, kind)(**{name: value for name, value in fields.items() if value})

    def variable_of(key: str) -> str | None:
        own = next((written[name] for name in _SPELLINGS.get(key, (key,)) if written.get(name)), None)
        return variables[key] if own is None and os.environ.get(variables[key]) else variable_named(str(own or ""))

    named = "api_base" if written.get("api_base") and not written.get("azure_endpoint") else "azure_endpoint"
    check_connection(connection, place, variable_of, address_name=named if kind == _AZURE else "")
    return connection


def _kinds_for(configuration: Mapping[str, Any]) -> list[str]:
    """The kinds of connections that a configuration was written for. A connection that was given is what it is."""
    kind = _KINDS.get(str(configuration.get("type")).lower())
    if kind is None and configuration.get("azure_deployment"):
        kind = _AZURE
    return [_AZURE, _OPENAI] if kind is None else [kind]


def _kind(configuration: Mapping[str, Any], place: str) -> str:
    said = configuration.get("type")
    if said is None:
        is_azure = any(configuration.get(key) for key in ("azure_deployment", "azure_endpoint", "api_base"))
        return _AZURE if is_azure else _OPENAI
    kind = _KINDS.get(str(said).lower())
    if kind is None:
        raise InvalidConnectionError(f"{place}: the type is {said!r}, expected 'azure_openai' or 'openai'.")
    return kind
