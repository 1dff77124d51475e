"""The one model of a flow, whatever it was written as.

Frozen dataclasses and no third-party import: a worker process reads these too.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SOURCE_SUFFIXES: Final = frozenset({".py", ".jinja2", ".prompty", ".yaml", ".yml"})
"""The files of a flow folder that may change what the flow does."""
OTHER_SOURCE_SUFFIXES: Final = SOURCE_SUFFIXES | frozenset(
    {".cjs", ".cs", ".csproj", ".dll", ".go", ".jar", ".java", ".js", ".kt", ".mjs", ".php", ".rb", ".rs", ".sh", ".ts"}
)
"""The same of a flow in another language."""
MESSAGE_FORMATS: Final = ("basic", "openai-vision")
"""How a flow writes images in its data and outputs; the first is the default."""
PYTHON: Final = "python"
"""The language of a flow that this package runs itself."""
TEMPLATE_PACKAGES: Final = ("jinja2",)
MODEL_PACKAGES: Final = ("openai", "jinja2")
SOURCE_FILE_LIMIT: Final = 10_000
"""Files of a flow folder that its fingerprint takes in."""


class _NoDefault:
    """The type of `NO_DEFAULT`; one object, also after pickling."""

    def __repr__(self) -> str:
        return "NO_DEFAULT"

    def __reduce__(self) -> str:
        return "NO_DEFAULT"


NO_DEFAULT: Final = _NoDefault()
"""An input without default; `None` is a default."""


@dataclass(frozen=True, slots=True)
class FlowInput:
    """One input of a flow, or one argument of a class entry's constructor."""

    name: str
    type: str = "object"
    """promptflow's names: int, double, bool, string, list, object (any value; a text may be its JSON), image (a path,
    an address, base64 text or an image dictionary). `any`, for a callable's parameter of none of these types, takes values
    as they are."""
    default: Any = NO_DEFAULT
    description: str = ""
    nullable: bool = False
    """Whether null stays null whatever the type: so where a callable's annotation gives it. A yaml's `string` makes "None"
    of null, as promptflow does."""

    @property
    def required(self) -> bool:
        """Whether a line must bring it."""
        return self.default is NO_DEFAULT


@dataclass(frozen=True, slots=True)
class Reference:
    """`${inputs.x}`, `${node.output.a.b[0]}`: a value of this line."""

    text: str
    """As written, braces included, but `${node}` is spelled out as `${node.output}`."""
    section: str
    """`inputs` or `node`."""
    name: str
    """The flow input's or the node's name."""
    path: tuple[str | int, ...] = ()
    """Keys, attributes and indexes into a node's output."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A value written in the flow itself."""

    value: Any


@dataclass(frozen=True, slots=True)
class FlowOutput:
    """One output of a DAG flow."""

    name: str
    value: Reference | Constant


@dataclass(frozen=True, slots=True)
class Activate:
    """`activate: {when: ${node.output}, is: value}`: the node runs only when the two are equal."""

    when: Reference | Constant
    expected: Any


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a DAG flow: a python tool or a template, and the values of its parameters."""

    name: str
    source: str
    """The tool's file, or the template's, relative to the flow's folder; empty for a package's tool without template."""
    inputs: Mapping[str, Reference | Constant]
    aggregation: bool = False
    """Runs once, after all lines, over lists."""
    activate: Activate | None = None
    """When it runs; `None` is always, but for a node whose references all lead to bypassed ones."""
    package_tool: str = ""
    """The id of an installed package's tool."""
    module: str = ""
    """A module that is imported before its tool is looked for."""
    type: str = "python"
    """`python`, `prompt`, `llm` or `custom_llm`."""
    api: str = ""
    """Of an `llm` node: `chat` or `completion`; empty is `chat`."""
    connection: str = ""
    """Of an `llm` node: the name of the connection that it asks."""

    @property
    def references(self) -> dict[str, Reference]:
        """What it waits for, by where it says so: `input 'text'`, `activate`."""
        named = {f"input '{name}'": value for name, value in self.inputs.items()}
        if self.activate is not None:
            named["activate"] = self.activate.when
        return {place: value for place, value in named.items() if isinstance(value, Reference)}

    @property
    def constants(self) -> dict[str, Any]:
        """Parameter to value, of those that the flow itself gives."""
        return {name: value.value for name, value in self.inputs.items() if isinstance(value, Constant)}

    @property
    def has_template(self) -> bool:
        """Whether this package renders its source; a `custom_llm` node's tool does it itself."""
        return self.type in ("llm", "prompt")


# `Dag`, `Entry` and `Prompt` answer the same questions, so that nobody asks which of them a flow has.


@dataclass(frozen=True, slots=True)
class Dag:
    """The program of a DAG flow: nodes in an order in which each comes after what it refers to."""

    nodes: tuple[Node, ...]
    outputs: tuple[FlowOutput, ...]

    kind: ClassVar[str] = "DAG flow"
    """For people."""
    loads_images: ClassVar[bool] = True
    """Whether its code gets images; otherwise it gets the dictionaries that name them."""
    attribute: ClassVar[str] = ""
    model: ClassVar[Mapping[str, Any]] = {}
    sample_init: ClassVar[Mapping[str, Any]] = {}

    @property
    def line_nodes(self) -> tuple[Node, ...]:
        """The nodes that run for each line."""
        return tuple(n for n in self.nodes if not n.aggregation)

    @property
    def aggregation_nodes(self) -> tuple[Node, ...]:
        """The nodes that run once, over all completed lines."""
        return tuple(n for n in self.nodes if n.aggregation)

    @property
    def packages(self) -> tuple[str, ...]:
        """The optional packages that it needs, beside what its code imports."""
        if any(node.type == "llm" for node in self.nodes):
            return MODEL_PACKAGES
        return TEMPLATE_PACKAGES if any(node.has_template for node in self.nodes) else ()

    def sources(self, folder: Path) -> list[Path]:
        """The files that it names, in the flow's folder."""
        return [folder / node.source for node in self.nodes if node.source]

    def code(self, folder: Path) -> dict[Path, str]:
        """The Python files that a worker imports by their paths, to the node whose tool each has; `""` for an entry."""
        files: dict[Path, str] = {}
        for node in self.nodes:
            if node.type == "python" and node.source:
                files.setdefault((folder / node.source).resolve(), node.name)
        return files


@dataclass(frozen=True, slots=True)
class Entry:
    """The program of a flex flow: one callable, or one class to be built once a worker."""

    module: str
    """An importable name, or the path of a `.py` file, absolute; empty when `pickled` brings the object."""
    attribute: str
    """The callable's name in the module, dotted when it is nested."""
    pickled: bytes | None = None
    """cloudpickle of an object that cannot be imported elsewhere; travels from parent to worker only."""
    file: Path | None = None
    """The source file, found without importing it; `None` when there is none to be found."""
    sample_init: Mapping[str, Any] = field(default_factory=dict)
    """The yaml's `sample.init`: a class entry's arguments when none were given."""

    kind: ClassVar[str] = "flex flow"
    loads_images: ClassVar[bool] = False
    nodes: ClassVar[tuple[Node, ...]] = ()
    model: ClassVar[Mapping[str, Any]] = {}
    packages: ClassVar[tuple[str, ...]] = ()

    def sources(self, folder: Path) -> list[Path]:
        """Its source file, if one was found."""
        return [self.file] if self.file is not None else []

    def code(self, folder: Path) -> dict[Path, str]:
        """As `Dag.code`."""
        return dict.fromkeys(self.sources(folder), "")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The program of a `.prompty` file: one template and the model that is asked."""

    file: Path
    template: str
    model: Mapping[str, Any] = field(default_factory=dict)
    """`api`, `configuration`, `parameters`, `response` as far as they are written; `${env:NAME}` stays as it is, so
    that a secret is read where it is used."""
    outputs: tuple[str, ...] = ()
    """What is picked from an answer in JSON; empty is all of it."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """The inputs of a call without any."""
    referenced: tuple[Path, ...] = ()
    """The files that `${file:…}` names."""

    kind: ClassVar[str] = "prompty"
    loads_images: ClassVar[bool] = True
    nodes: ClassVar[tuple[Node, ...]] = ()
    attribute: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = MODEL_PACKAGES
    sample_init: ClassVar[Mapping[str, Any]] = {}

    @property
    def api(self) -> str:
        """`chat` or `completion`."""
        return str(self.model.get("api") or "chat")

    def sources(self, folder: Path) -> list[Path]:
        """The files that it names."""
        return list(self.referenced)

    def code(self, folder: Path) -> dict[Path, str]:
        """No file is imported."""
        return {}


@dataclass(frozen=True, slots=True)
class Service:
    """How a flow in another language is served: the yaml's `service`."""

    command: tuple[str, ...] = ()
    """The program and its arguments, started in the working directory; empty leaves it to the language's executor."""
    aggregation: bool = False
    """Whether it aggregates the completed lines."""
    start_timeout_sec: float | None = None
    """How long its start may take; `None` leaves it to the language's executor."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow, parsed and checked; no user code has run yet.

    `inputs` of an `Entry` are what its yaml says until a worker has imported it: `described` adds its signature.
    """

    name: str
    """Shown in flow run names: the folder's, the callable's or the class's."""
    working_dir: Path
    """Absolute; first on the worker's `sys.path`, and its current directory."""
    program: Dag | Entry | Prompt
    inputs: Mapping[str, FlowInput] = field(default_factory=dict)
    init: Mapping[str, FlowInput] = field(default_factory=dict)
    language: str = PYTHON
    """In lower case."""
    source: str | None = None
    """What `load_flow` was given, made absolute, so that a resume finds it; `None` for an object in memory."""
    definition_file: Path | None = None
    """The flow's yaml, absolute; `None` for a callable."""
    service: Service | None = None
    """Of a flow in another language, what its yaml says of the process that serves it."""
    variant: str = ""
    """`${node.variant}`, if one was chosen for a node."""
    node_connections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What was chosen for nodes, as `load_flow` takes it; their definitions have it already."""
    additional_includes: tuple[Path, ...] = ()
    """Files and folders, absolute, that are merged with its folder for a run: see `merged_copy`."""
    message_format: str = MESSAGE_FORMATS[0]
    """How images are written in its data and outputs."""
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    """Set where its code runs, before it is imported; a text may be `${connection.key}`."""

    @property
    def is_python(self) -> bool:
        """Whether this package runs its code; otherwise an executor of its language does."""
        return self.language == PYTHON

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return self.program.kind if self.is_python else f"flow in {self.language}"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose content is this flow, for fingerprints; absolute, sorted.

        A flow with a yaml also counts the sources and templates below its working directory, since nodes import
        helpers: hidden folders, caches and virtual environments left out, the nearest 10,000 at most. Of a flow in
        another language these are the usual suffixes of sources, and the files that its command names.
        """
        found = {file.resolve() for file in self.program.sources(self.working_dir)}
        if self.definition_file is not None:
            suffixes = SOURCE_SUFFIXES if self.is_python else OTHER_SOURCE_SUFFIXES
            found |= {self.definition_file.resolve(), *_source_files(self.working_dir, suffixes)}
        if self.service is not None:
            arguments = (self.working_dir / argument for argument in self.service.command if argument)
            found.update(file.resolve() for file in arguments if file.is_file())
        return tuple(sorted(found))

    def described(self, description: FlowDescription) -> Flow:
        """This flow with what a worker found on import."""
        return replace(self, inputs=description.inputs)


@dataclass(frozen=True, slots=True)
class FlowDescription:
    """What a worker tells of a flow once its code is imported."""

    inputs: Mapping[str, FlowInput]
    """In the signature's order; the yaml's types and defaults win."""
    is_async: bool
    """Many lines at once in one event loop, or one line at a time a process."""
    has_aggregation: bool


def _source_files(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Sources and templates below a folder, nearest first, in an order that does not depend on the file system."""
    left = SOURCE_FILE_LIMIT
    folders = [folder]
    for current in folders:
        entries = sorted(os.scandir(current), key=lambda entry: entry.name) if current.is_dir() else []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not left_out(entry):
                    folders.append(current / entry.name)
            elif Path(entry.name).suffix in suffixes:
                if left == 0:
                    warnings.warn(
                        f"{folder} holds more than {SOURCE_FILE_LIMIT:,} sources; those deeper than {current} are not "
                        "part of the flow's fingerprint.",
                        stacklevel=3,
                    )
                    return
                left -= 1
                yield current / entry.name


def left_out(folder: os.DirEntry[str]) -> bool:
    """Whether a folder is none of a flow's sources: hidden, a cache, or a virtual environment."""
    return (
        folder.name.startswith(".")
        or folder.name in {"__pycache__", "node_modules", "site-packages"}
        or Path(folder, "pyvenv.cfg").exists()
    )
