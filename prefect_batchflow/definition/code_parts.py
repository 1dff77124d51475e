"""What a callable's code consists of, part by part, so that a resume can say which part has changed.

A function that is sent to workers by value has no file to compare. Its parts are the function itself, the functions and
classes of its module that it uses, and the globals that these read. The digest of a part is the same in every process: it
has no addresses, no line numbers, and sets are sorted.
"""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import re
import sys
from collections import deque
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DEEPEST = 40
_SECRET = re.compile(
    r"(?:api|access|secret|private|account)_?key|passw(?:or)?d|secret|credentials?|(?:auth|access|api|bearer)_?token",
    re.IGNORECASE,
)
"""What bears such a name is rotated, and its hash should be nowhere."""
_MEMO = re.compile(r"_*(?:.*_)?(?:cache|caches|cached|memo)_*", re.IGNORECASE)
"""A global of such a name holds results, not settings."""
_BY_NAME = frozenset({"eval", "exec", "globals", "vars"})
"""What reads globals by names in texts."""
_NOT_CODE = frozenset(
    {
        *("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__slots__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__dataclass_fields__"),
        *(
            "__dataclass_params__",
            "__match_args__",
            "__parameters__",
            "__orig_bases__",
            "__abstractmethods__",
            "__hash__",
        ),
        *(
            "_abc_impl",
            "_member_map_",
            "_member_names_",
            "_value2member_map_",
            "_unhashable_values_",
            "_hashable_values_",
        ),
    }
)
"""What a class derives from its statements, or has by itself."""


@dataclass
class CodeParts:
    """The parts of a callable."""

    digests: dict[str, str] = field(default_factory=dict)
    """Such as `function f` and `global PROMPT`, each to a short hash."""
    modules: set[str] = field(default_factory=set)
    """Modules that the code uses; those below its folder are compared by their source, installed ones by version."""
    opaque: set[str] = field(default_factory=set)
    """Objects of which only the type counts, such as `client (openai.OpenAI)`."""
    globals: dict[str, Any] = field(default_factory=dict)
    """The globals that its functions refer to, in the order in which they were found."""
    users: dict[str, str] = field(default_factory=dict)
    """Global to the function that refers to it, for messages."""
    data: set[str] = field(default_factory=set)
    """The globals that are plain data throughout."""


def parts_of(target: Any, module: str) -> CodeParts:
    """Give the parts of a callable whose module is sent by value, or is run again by its file.

    Args:
        target: A function, a class, a bound method, a partial or a callable object.
        module: The module whose functions and classes are parts themselves; of other modules only the name counts.
    """
    return _PartsWalk(module).walk(target)


def is_found(value: Any) -> bool:
    """Whether a function or class is what its module has under its name."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def digest_of(value: Any) -> str:
    """A short hash of any value: data by content, code of the main module by its parts, other objects by type."""
    parts = parts_of(value, "__main__").digests
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode()).hexdigest()[:16]


class _PartsWalk:
    def __init__(self, module: str) -> None:
        self._module = module
        self._found = CodeParts()
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []
        """Keeps what `_names` knows by id."""
        self._waiting: deque[Callable[[], None]] = deque()
        self._stored: set[str] = set()

    def walk(self, target: Any) -> CodeParts:
        """Walk the target and everything that it leads to."""
        digest = _Digest(self, "the callable")
        digest.value(target)
        self._found.digests["the callable"] = digest.end()
        while self._waiting:
            self._waiting.popleft()()
        # What its functions assign themselves, such as a client made on the first call, is no setting.
        for name in self._stored:
            self._found.digests.pop(f"global {name}", None)
        return self._found

    def is_own(self, value: Any) -> bool:
        """Whether a function or class is a part itself."""
        return getattr(value, "__module__", None) == self._module

    def is_module(self, name: str) -> bool:
        """Whether the globals of the module of this name are parts."""
        return name == self._module

    def part(self, value: Any) -> str:
        """The name of the part that a function or class is; a new one is walked later."""
        if id(value) not in self._names:
            kind = "class" if isinstance(value, type) else "function"
            name = base = f"{kind} {value.__qualname__}"
            taken, number = set(self._names.values()), 2
            while name in taken:
                name, number = f"{base} ({number})", number + 1
            self._names[id(value)] = name
            self._kept.append(value)
            self._waiting.append(lambda: self._add_part(name, value))
        return self._names[id(value)]

    def _add_part(self, name: str, value: Any) -> None:
        digest = _Digest(self, value.__qualname__)
        if isinstance(value, type):
            digest.class_body(value)
        else:
            digest.function_body(value)
        self._found.digests[name] = digest.end()

    def use_module(self, name: str) -> None:
        if name != self._module:
            self._found.modules.add(name)

    def use_global(self, name: str, namespace: dict[str, Any], user: str) -> None:
        """A function refers to a global of its module."""
        is_modules_own = name.startswith("__") and name.endswith("__")  # `__name__`, `__file__`
        if name not in namespace or name in self._found.globals or is_modules_own:
            return
        value = namespace[name]
        self._found.globals[name] = value
        self._found.users[name] = user
        if isinstance(value, ModuleType):
            self.use_module(value.__name__)
        else:
            self._waiting.append(lambda: self._add_global(name, value, user))

    def _add_global(self, name: str, value: Any, user: str) -> None:
        digest = _Digest(self, name)
        digest.value(value)
        if _SECRET.search(name) or _MEMO.fullmatch(name):
            pass
        elif not (isinstance(value, type | FunctionType) and self.is_own(value) and value.__qualname__ == name):
            self._found.digests[f"global {name}"] = digest.end()
        if digest.is_data:
            self._found.data.add(name)

    def store_global(self, name: str) -> None:
        self._stored.add(name)

    def add_opaque(self, place: str, value: Any) -> None:
        self._found.opaque.add(f"{place} ({_type_name(type(value))})")


class _Digest:
    """The hash of one part."""

    def __init__(self, walk: _PartsWalk, place: str) -> None:
        self._walk = walk
        self._place = place
        self._hash = hashlib.sha256()
        self._path: list[int] = []
        self.is_data = True
        """Whether it has seen nothing but data."""

    def end(self) -> str:
        return self._hash.hexdigest()[:16]

    def add(self, *words: str) -> None:
        for word in words:
            self._hash.update(f"{len(word)}:{word};".encode(errors="surrogatepass"))

    def value(self, value: Any) -> None:
        """Any value: data by content, functions and classes by name or as parts, other objects by type."""
        kind = type(value)
        if value is None or value is Ellipsis or value is NotImplemented or kind in (bool, int, float, complex):
            self.add(kind.__name__, repr(value))
            return
        if kind is str:
            self.add("str", value)
            return
        if kind in (bytes, bytearray):
            self.add(kind.__name__, hashlib.sha256(value).hexdigest())
            return
        if id(value) in self._path:
            self.add("above")
            return
        if len(self._path) > _DEEPEST:
            self.add("deep", kind.__qualname__)
            return
        self._path.append(id(value))
        try:
            self._compound(kind, value)
        finally:
            self._path.pop()

    def _compound(self, kind: type, value: Any) -> None:
        if kind in (list, tuple, deque):
            self.add(kind.__name__, str(len(value)))
            for item in value:
                self.value(item)
        elif isinstance(value, dict) and (kind is dict or kind.__module__ == "collections"):
            self.add(kind.__name__)
            self._sorted((key, item) for key, item in value.items() if not _is_secret(key))
            self.value(getattr(value, "default_factory", None))
        elif kind in (set, frozenset):
            self.add(kind.__name__)
            self._sorted((item, None) for item in value)
        elif isinstance(value, type):
            self.is_data = False
            self._class(value)
        elif isinstance(value, enum.Enum):
            self._class(kind)
            self.add(str(value.name))
        elif kind is CodeType:
            self.code(value)
        elif kind is CellType:
            self._cell(value)
        elif isinstance(value, ModuleType):
            self.is_data = False
            self.add("module", value.__name__)
            self._walk.use_module(value.__name__)
        elif callable(value) and self._callable(value):
            self.is_data = False
        elif isinstance(value, property | functools.cached_property | classmethod | staticmethod):
            self.is_data = False
            self.add(kind.__name__)
            for name in ("fget", "fset", "fdel", "func", "__func__"):
                self.value(getattr(value, name, None))
        else:
            self._object(kind, value)

    def _sorted(self, pairs: Iterator[tuple[Any, Any]]) -> None:
        """Pairs in an order that does not depend on hashes or on when they were added."""
        digests = []
        for key, item in pairs:
            inner = _Digest(self._walk, f"{self._place}[{key!r}]" if isinstance(key, str) else self._place)
            inner._path = self._path
            inner.value(key)
            inner.value(item)
            self.is_data = self.is_data and inner.is_data
            digests.append(inner.end())
        self.add(*sorted(digests))

    def _callable(self, value: Any) -> bool:
        """Add what a callable runs; False for an object that is callable by its class."""
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self.add("method")
            self.value(value.__func__)
            self.value(value.__self__)
        elif isinstance(value, functools.partial):
            self.add("partial")
            self.value(value.func)
            self.value(value.args)
            self.value(value.keywords)
        elif hasattr(value, "__wrapped__"):
            self.add("wrapper", _type_name(type(value)))
            if hasattr(value, "cache_parameters"):
                self.value(value.cache_parameters())
            self.value(value.__wrapped__)
        elif isinstance(value, BuiltinFunctionType) or not hasattr(type(value), "__dict__"):
            self.add("builtin", str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", "")))
            self._walk.use_module(str(getattr(value, "__module__", None) or "builtins"))
            bound = getattr(value, "__self__", None)
            if bound is not None and not isinstance(bound, ModuleType):
                self.value(bound)
        else:
            return False
        return True

    def _function(self, function: FunctionType) -> None:
        if self._walk.is_own(function):
            self.add(self._walk.part(function))
        elif is_found(function):
            self.add("function", function.__module__, function.__qualname__)
            self._walk.use_module(function.__module__)
        else:
            self.add("function", function.__qualname__)
            self.function_body(function)

    def _class(self, value: type) -> None:
        if self._walk.is_own(value):
            self.add(self._walk.part(value))
        else:
            self.add("class", _type_name(value))
            if value.__module__ != "builtins":
                self._walk.use_module(value.__module__)

    def function_body(self, function: FunctionType) -> None:
        """The code of a function and all that belongs to it."""
        self.code(function.__code__)
        self.value(function.__defaults__)
        self.value(function.__kwdefaults__)
        for name, annotation in sorted(_annotations(function).items()):
            self.add(name)
            self._annotation(annotation)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            if not _SECRET.search(name) and not _MEMO.fullmatch(name):
                self.add(name)
                self._cell(cell)
        self._sorted((name, item) for name, item in vars(function).items() if name != "__wrapped__")
        self.value(getattr(function, "__wrapped__", None))
        if self._walk.is_module(home := str(function.__globals__.get("__name__"))):
            for name in [*_globals_of(function.__code__), *_named_globals(function.__code__)]:
                self._walk.use_global(name, function.__globals__, function.__qualname__)
        else:
            self._walk.use_module(home)  # of a decorator from elsewhere, for example

    def _cell(self, cell: CellType) -> None:
        try:
            self.value(cell.cell_contents)
        except ValueError:
            self.add("empty")

    def code(self, code: CodeType) -> None:
        """Code without the places where it was written."""
        self.add("code", code.co_name, code.co_code.hex(), *code.co_names, "/", *code.co_varnames, "/")
        self.add(str(code.co_argcount), str(code.co_posonlyargcount), str(code.co_kwonlyargcount), str(code.co_flags))
        self.add(getattr(code, "co_exceptiontable", b"").hex())
        for constant in code.co_consts:
            self.value(constant)
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME":
                self._walk.use_module(str(instruction.argval))
            elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                self._walk.store_global(str(instruction.argval))

    def class_body(self, cls: type) -> None:
        """The statements of a class."""
        self.add("class", *(() if type(cls) is type else (_type_name(type(cls)),)))
        for base in cls.__bases__:
            self._class(base)
        for name, annotation in _annotations(cls).items():
            self.add(name)
            self._annotation(annotation)
        if dataclasses.is_dataclass(cls):
            for item in dataclasses.fields(cls):
                self.add(item.name)
                for part in (item.default, item.default_factory):
                    self.value(None if part is dataclasses.MISSING else part)
        fields = vars(cls).get("__pydantic_fields__") or {}
        for name in sorted(fields):
            self.add(name, _ADDRESS.sub("", repr(fields[name])))
        if issubclass(cls, enum.Enum):
            for name, member in cls.__members__.items():
                self.add(name)
                self.value(member.value)
        for name in sorted(vars(cls)):
            value = vars(cls)[name]
            if name in _NOT_CODE or _SECRET.search(name) or _MEMO.fullmatch(name) or isinstance(value, enum.Enum):
                continue
            is_method = callable(value) or isinstance(value, classmethod | staticmethod | property)
            if (name.startswith("__") and name.endswith("__") and not is_method) or name.startswith("__pydantic"):
                continue
            if isinstance(value, MemberDescriptorType | GetSetDescriptorType):
                continue
            self.add(name)
            self.value(value)

    def _annotation(self, annotation: Any) -> None:
        if isinstance(annotation, type) and not isinstance(annotation, GenericAlias):
            self._class(annotation)
            return
        self.add(_ADDRESS.sub("", repr(annotation)))
        for argument in getattr(annotation, "__args__", ()):
            self._annotation(argument)

    def _object(self, kind: type, value: Any) -> None:
        """An object by its class and its state, if that is data; otherwise by its class alone."""
        self._class(kind)
        if (text := _text_of(kind, value)) is not None:
            self.is_data = False  # it cannot be pickled
            self.value(text)
            return
        state = _state_of(kind, value)
        if state is None:
            self._opaque(value)
            return
        inner = _Digest(self._walk, self._place)
        inner._path = self._path
        inner.value(state)
        if inner.is_data or self._walk.is_own(kind):
            self.add(inner.end())
            self.is_data = self.is_data and inner.is_data
        else:
            # A client of an installed package: its locks, pools and times differ in every process.
            self._opaque(value)

    def _opaque(self, value: Any) -> None:
        self.is_data = False
        self._walk.add_opaque(self._place, value)


def _text_of(kind: type, value: Any) -> Any:
    """What counts of a prompt of jinja2: the code of a template, the loader of an environment; otherwise `None`."""
    if kind.__module__.split(".")[0] != "jinja2":
        return None
    if hasattr(value, "root_render_func"):
        return [value.root_render_func.__code__, *(block.__code__ for block in value.blocks.values())]
    return [value.loader] if hasattr(value, "loader") and hasattr(value, "from_string") else None


def _state_of(kind: type, value: Any) -> Any:
    """What an object consists of, as it pickles itself; `None` if it does not."""
    if kind.__module__ in ("_random", "random", "_thread", "logging", "_io", "io", "weakref", "_weakref"):
        return None
    reducer = copyreg.dispatch_table.get(kind)
    with contextlib.suppress(Exception):  # a user's class
        reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return reduced
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        arguments = tuple(argument for argument in arguments if argument is not kind)
        made_by = f"{make.__module__}.{getattr(make, '__qualname__', '')}"
        return (
            made_by,
            arguments,
            state,
            None if items is None else list(items),
            None if pairs is None else dict(pairs),
        )
    return None


def _globals_of(code: CodeType) -> Iterator[str]:
    """The names of globals that code and the code in it refer to, in their order."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _named_globals(code: CodeType) -> Iterator[str]:
    """The texts in code that reads globals by their names, as in `globals()["PROMPT"]`."""
    if _BY_NAME & set(_globals_of(code)):
        waiting: list[Any] = [code]
        while waiting:
            constant = waiting.pop()
            if isinstance(constant, str) and constant.isidentifier():
                yield constant
            elif isinstance(constant, CodeType):
                waiting += constant.co_consts
            elif isinstance(constant, tuple | frozenset):
                waiting += constant


def _annotations(value: Any) -> dict[str, Any]:
    try:
        return inspect.get_annotations(value)
    except Exception:  # noqa: BLE001 - newer Pythons evaluate them here
        return {}


def _is_secret(key: Any) -> bool:
    return isinstance(key, str) and bool(_SECRET.search(key))


def _type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
