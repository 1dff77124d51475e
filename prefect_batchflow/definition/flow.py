"""The one model for every kind of flow.

Frozen dataclasses without third-party imports, because worker processes load them too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

SOURCE_SUFFIXES: Final = frozenset({".py", ".jinja2", ".prompty", ".yaml", ".yml"})
"""Files in a flow folder that a flow consists of."""
MESSAGE_FORMATS: Final = ("basic", "openai-vision")
"""How a flow can write images in its data and outputs; the first is the default."""
PYTHON: Final = "python"
"""The language that this package runs itself."""
TEMPLATE_PACKAGES: Final = ("jinja2",)
MODEL_PACKAGES: Final = ("openai", "jinja2")


class _NoDefault:
    """The type of `NO_DEFAULT`, which stays one object when it is pickled."""

    def __repr__(self) -> str:
        return "NO_DEFAULT"

    def __reduce__(self) -> str:
        return "NO_DEFAULT"


NO_DEFAULT: Final = _NoDefault()
"""The input has no default. `None` is a default like any other."""


@dataclass(frozen=True, slots=True)
class FlowInput:
    """One input of a flow, or one argument of a class entry's constructor."""

    name: str
    type: str = "object"
    """promptflow's name: int, double, bool, string, list, object (any value, also as JSON text), or image (a path, a URL,
    base64 text or an image dictionary). A callable's parameter of another type is `any` and takes values unchanged."""
    default: Any = NO_DEFAULT
    description: str = ""
    nullable: bool = False
    """Whether null stays null. True when the type comes from a callable's annotation. A yaml's `string` turns null into
    "None", as in promptflow."""
    takes_empty_text: bool = True
    """Whether an empty text can be a value. False if a callable's annotation takes no text, such as a date's."""
    allows_none: bool = False
    """Whether a callable's annotation or default allows `None`. An empty text that is not a value is then null."""
    has_code_default: bool = False
    """Whether the code has a default that is not JSON. A line without a value leaves the argument to Python."""

    @property
    def required(self) -> bool:
        """Whether each line must have it."""
        return self.default is NO_DEFAULT and not self.has_code_default


@dataclass(frozen=True, slots=True)
class Reference:
    """`${inputs.x}`, `${node.output.a.b[0]}`: a value of this line."""

    text: str
    """As written, with braces; but `${node}` becomes `${node.output}`."""
    section: str
    """`inputs` or `node`."""
    name: str
    """The flow input's or the node's name."""
    path: tuple[str | int, ...] = ()
    """Keys, attributes and indexes that lead into a node's output."""


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
    """`activate: {when: ${node.output}, is: value}`: the node runs only if the two are equal."""

    when: Reference | Constant
    expected: Any


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a DAG flow: a python tool or a template, and the values of its parameters."""

    name: str
    source: str
    """File of the tool or template, relative to the flow's folder; empty for a package's tool without a template."""
    inputs: Mapping[str, Reference | Constant]
    aggregation: bool = False
    """Whether it runs once, after all lines, on lists of values."""
    activate: Activate | None = None
    """When it runs. `None`: always, unless all nodes that it refers to were bypassed."""
    package_tool: str = ""
    """The id of an installed package's tool."""
    module: str = ""
    """A module to import before looking for the tool."""
    type: str = "python"
    """`python`, `prompt`, `llm` or `custom_llm`."""
    api: str = ""
    """For an `llm` node: `chat` or `completion`; empty means `chat`."""
    connection: str = ""
    """For an `llm` node: the name of its connection."""

    @property
    def references(self) -> dict[str, Reference]:
        """The references that it waits for, by their place: `input 'text'` or `activate`."""
        named = {f"input '{name}'": value for name, value in self.inputs.items()}
        if self.activate is not None:
            named["activate"] = self.activate.when
        return {place: value for place, value in named.items() if isinstance(value, Reference)}

    @property
    def constants(self) -> dict[str, Any]:
        """Parameter to value, for inputs that are not references."""
        return {name: value.value for name, value in self.inputs.items() if isinstance(value, Constant)}

    @property
    def has_template(self) -> bool:
        """Whether its source is a template that this package renders; a `custom_llm` tool renders its own."""
        return self.type in ("llm", "prompt")


# `Dag`, `Entry` and `Prompt` answer the same questions, so that other code need not ask which one a flow has.


@dataclass(frozen=True, slots=True)
class Dag:
    """The program of a DAG flow. Each node comes after the nodes that it refers to."""

    nodes: tuple[Node, ...]
    outputs: tuple[FlowOutput, ...]

    kind: ClassVar[str] = "DAG flow"
    """For people."""
    loads_images: ClassVar[bool] = True
    """Whether its code gets image objects. Otherwise it gets the dictionaries that name the images."""
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
        """The optional packages that it needs, apart from its code's own imports."""
        if any(node.type == "llm" for node in self.nodes):
            return MODEL_PACKAGES
        return TEMPLATE_PACKAGES if any(node.has_template for node in self.nodes) else ()

    def sources(self, folder: Path) -> list[Path]:
        """The files that it names, in the flow's folder."""
        return [folder / node.source for node in self.nodes if node.source]

    def code(self, folder: Path) -> dict[Path, str]:
        """The Python files that a worker imports, each with the node that has its tool there; `""` for an entry."""
        files: dict[Path, str] = {}
        for node in self.nodes:
            if node.type == "python" and node.source:
                files.setdefault((folder / node.source).resolve(), node.name)
        return files


@dataclass(frozen=True, slots=True)
class Script:
    """The caller's main module, which a worker runs again: under another name, so that it does not start the run again."""

    file: Path
    source: bytes
    """Its text as it runs, so that all workers have the same, also on machines without the file."""
    module: str
    """Its name for `python -m`; empty for `python file.py`."""
    argv: tuple[str, ...]
    folder: str
    """The caller's current directory."""
    values: bytes
    """Pickled: the globals that the flow refers to and that running the script again may not give."""
    absent: Mapping[str, str]
    """Globals made below `if __name__ == "__main__":` that cannot be sent, each with the reason."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The program of a flex flow: one callable, or one class that each worker builds once."""

    module: str
    """An importable name, the absolute path of a `.py` file, or `__main__` for `script`; empty if `pickled` has the object."""
    attribute: str
    """The callable's name in the module; dotted if it is nested."""
    pickled: bytes | None = None
    """The object as cloudpickle, if a worker cannot import it; never stored."""
    file: Path | None = None
    """The source file, found without importing it; `None` if there is none."""
    sample_init: Mapping[str, Any] = field(default_factory=dict)
    """The yaml's `sample.init`: arguments for a class entry if the run gives none."""
    script: Script | None = None
    """The main module, if it has the callable or what the callable refers to."""
    code_parts: Mapping[str, str] = field(default_factory=dict)
    """For an object that is sent, the parts of its code to their digests, such as `function f`; for fingerprints."""
    modules: tuple[str, ...] = ()
    """Modules that this code uses."""
    is_of_main: bool = False
    """Whether the main module has it. Then `code_parts` count, and not the file, whose other lines start the run."""

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
    """The program of a `.prompty` file: one template and the model that answers it."""

    file: Path
    template: str
    model: Mapping[str, Any] = field(default_factory=dict)
    """`api`, `configuration`, `parameters` and `response`, if given. `${env:NAME}` stays unresolved, so that a secret is
    read only where it is used."""
    outputs: tuple[str, ...] = ()
    """Keys to pick from a JSON answer; empty means the whole answer."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """Inputs for a call without any."""
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
        """A prompty imports no file."""
        return {}


@dataclass(frozen=True, slots=True)
class Service:
    """The yaml's `service`: how to start the process that runs a flow in another language."""

    command: tuple[str, ...] = ()
    """The program and its arguments, started in the working directory; empty: the language's executor decides."""
    aggregation: bool = False
    """Whether it can aggregate the completed lines."""
    start_timeout_sec: float | None = None
    """Limit of its start; `None`: the language's executor decides."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow, parsed and checked; no user code has run yet.

    An `Entry` has the inputs of its yaml until a worker has imported it; `described` adds those of its signature.
    """

    name: str
    """Name of the folder, callable or class; shown in flow run names."""
    working_dir: Path
    """Absolute. The worker's current directory, and first on its `sys.path`."""
    program: Dag | Entry | Prompt
    inputs: Mapping[str, FlowInput] = field(default_factory=dict)
    init: Mapping[str, FlowInput] = field(default_factory=dict)
    language: str = PYTHON
    """In lower case."""
    source: str | None = None
    """The argument of `load_flow`, made absolute so that a resume finds it; `None` for an object in memory."""
    definition_file: Path | None = None
    """The flow's yaml, absolute; `None` for a callable."""
    service: Service | None = None
    """How to run a flow in another language; `None` for Python."""
    variant: str = ""
    """The chosen `${node.variant}`, if any."""
    node_connections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The connections chosen for nodes, as given to `load_flow`; the nodes already have them."""
    additional_includes: tuple[Path, ...] = ()
    """Absolute paths of files and folders to merge with its folder for a run; see `merged_copy`."""
    message_format: str = MESSAGE_FORMATS[0]
    """How its data and outputs write images."""
    takes_any: bool = False
    """Whether its code takes inputs of any name; known once a worker has imported it."""
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    """Set in the process that runs its code, before the import; a value can be `${connection.key}`."""

    @property
    def is_python(self) -> bool:
        """Whether this package runs it; otherwise an executor for its language does."""
        return self.language == PYTHON

    @property
    def kind(self) -> str:
        """The kind of flow, for people."""
        return self.program.kind if self.is_python else f"flow in {self.language}"

    def described(self, description: FlowDescription) -> Flow:
        """This flow with the inputs that a worker found on import."""
        return replace(self, inputs=description.inputs, takes_any=description.takes_any)


@dataclass(frozen=True, slots=True)
class FlowDescription:
    """What a worker knows about a flow once its code is imported."""

    inputs: Mapping[str, FlowInput]
    """In the order of the signature; types and defaults of the yaml win."""
    is_async: bool
    """True: many lines at once on one event loop. False: one line at a time per process."""
    has_aggregation: bool
    takes_any: bool = False
    """Whether it takes inputs of any name, by `**row`."""


def left_out(folder: os.DirEntry[str]) -> bool:
    """Whether a folder has none of the flow's sources: it is hidden, a cache or a virtual environment."""
    return (
        folder.name.startswith(".")
        or folder.name in {"__pycache__", "node_modules", "site-packages"}
        or Path(folder, "pyvenv.cfg").exists()
    )
