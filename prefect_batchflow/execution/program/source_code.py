"""A flow's Python file, read without importing it.

Answers are certain or missing: `None` stands for all that only an import can tell, such as a class with an unknown base.
Annotations become the objects that an import would give, so that the rules of the loaders apply to these signatures too.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import typing
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Union

from prefect_batchflow.connections.kinds import CustomStrongTypeConnection
from prefect_batchflow.definition.parsing import parsed
from prefect_batchflow.exceptions import FlowDefinitionError
from prefect_batchflow.execution.program.statements import (
    Function,
    bound_names,
    can_bind_more,
    imports_in,
    is_constant,
    origins_in,
    walked,
)
from prefect_batchflow.promptflow_shim.names import PROVIDED

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_batchflow.execution.program.statements import Reach

_PACKAGE: Final = __name__.partition(".")[0]
_KEEP_SIGNATURE: Final = frozenset(
    {
        "abc.abstractmethod", "functools.cache", "functools.lru_cache", "staticmethod", "typing.final", "typing.override",
        "promptflow.tracing.trace",
    }
)  # fmt: skip
"""Decorators after which a function still takes the parameters that are written."""
_PLAIN_BASES: Final = frozenset({"object", "abc.ABC", "typing.Generic", "typing.Protocol"})
"""Base classes that have no constructor."""
_CHANGE_PATH: Final = frozenset({"autorootcwd", "pkg_resources", "pyrootutils", "rootutils", "setuptools", "site"})
"""Modules whose import or use can change where modules are found."""


class Opaque(str):
    """The text of a value or an annotation that is not evaluated."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SourceTool:
    """A function or method with `@tool`."""

    name: str
    """As its `__qualname__`."""
    signature: inspect.Signature | None
    constructor: inspect.Signature | None = None
    """For a method: the parameters of its class's `__init__`."""
    is_method: bool = False


class SourceCode:
    """One Python file.

    Raises:
        FlowDefinitionError: It cannot be read, or is not Python.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._tree = parsed(file.read_bytes(), str(file))
            with warnings.catch_warnings(action="ignore"):
                compile(self._tree, str(file), "exec", dont_inherit=True)  # such as a `return` outside a function
            nodes = list(ast.walk(self._tree))
            self.imports = list(imports_in(self._tree, "always"))
        except (OSError, SyntaxError, ValueError, RecursionError) as exc:
            raise FlowDefinitionError(f"{file} cannot be imported: ({type(exc).__name__}) {exc}.") from exc
        self._names = bound_names(self._tree)
        self._origins = origins_in(nodes)
        self.is_open = any(map(can_bind_more, nodes)) or "__getattr__" in self._names
        """Whether it can have names that are not written in it."""
        self.changes_path = any(self._changes_path(node) for node in nodes)
        """Whether it can change where modules are found."""

    def binds(self, name: str) -> bool:
        """Whether the module has, or can have, this name."""
        return self.is_open or name in self._names

    def imported_name(self, name: str) -> tuple[str, str, int] | None:
        """Module, name and dots of the one import that binds a name; `None` if anything else binds it."""
        bound = self._names.get(name, [])
        if len(bound) == 1 and isinstance(bound[0], ast.ImportFrom):
            alias = next(alias for alias in bound[0].names if (alias.asname or alias.name) == name)
            return bound[0].module or "", alias.name, bound[0].level
        return None

    def functions(self) -> list[str]:
        """The functions and classes that it defines, in its order."""
        return [name for name, bound in self._names.items() if isinstance(bound[-1], (Function, ast.ClassDef))]

    def definition(self, name: str) -> Function | ast.ClassDef | None:
        """The one function or class of a name; `None` if a name is bound otherwise, or several times."""
        bound = self._names.get(name, [])
        found = bound[0] if len(bound) == 1 else None
        return found if isinstance(found, (Function, ast.ClassDef)) else None

    def origin(self, expression: ast.expr) -> str:
        """The dotted name that an expression has by the file's imports; empty if it has none."""
        if isinstance(expression, ast.Name):
            if expression.id in self._origins:
                return self._origins[expression.id]
            return "" if expression.id in self._names or not hasattr(builtins, expression.id) else expression.id
        if isinstance(expression, ast.Attribute) and (owner := self.origin(expression.value)):
            return f"{owner}.{expression.attr}"
        return ""

    # --- tools -------------------------------------------------------------------------------------------------------

    def tools(self) -> tuple[list[SourceTool], bool]:
        """The tools that it certainly has, and whether it can have more."""
        found: list[SourceTool] = []
        more = self.is_open
        marks = 0
        for name, bound in self._names.items():
            own = [each for each in bound if isinstance(each, (Function, ast.ClassDef))]
            if not own:
                continue
            if len(own) > 1:
                more = True  # an `if` or a later definition decides
                marks += sum(self._marks(part) for each in own for part in ast.walk(each))
            elif isinstance(own[0], ast.ClassDef):
                tools, unknown = self._tools_of_class(own[0])
                found += tools
                more |= unknown
                marks += sum(self._marks(part) for part in ast.walk(own[0]))
            else:
                marks += sum(self._marks(part) for part in ast.walk(own[0]))
                if any(map(self._marks_tool, own[0].decorator_list)):
                    found.append(SourceTool(name, self.signature(own[0])))
                else:
                    more |= bool(own[0].decorator_list)
        # A mark elsewhere, such as `run = tool(run)`.
        more |= sum(map(self._marks, ast.walk(self._tree))) > marks
        return found, more

    def tool(self, name: str, class_name: str | None = None) -> SourceTool | None:
        """A package's tool by its name; `None` if it is not certain."""
        if class_name is None:
            found = self.definition(name)
            return SourceTool(name, self.signature(found)) if isinstance(found, Function) else None
        owner = self.definition(class_name)
        if not isinstance(owner, ast.ClassDef):
            return None
        method = self._members(owner)[0].get(name)
        signature = None if method is None else self.signature(method, is_method=True)
        return SourceTool(f"{class_name}.{name}", signature, self.constructor(owner), is_method=True)

    def _tools_of_class(self, owner: ast.ClassDef) -> tuple[list[SourceTool], bool]:
        bases = [self.origin(base) for base in owner.bases]
        is_provider = any(base.startswith("promptflow") and base.endswith(".ToolProvider") for base in bases)
        methods, is_known = self._members(owner)
        if not is_provider:
            return [], not is_known or any("ToolProvider" in ast.unparse(base) for base in owner.bases)
        constructor = self.constructor(owner)
        return [
            SourceTool(f"{owner.name}.{name}", self.signature(method, is_method=True), constructor, is_method=True)
            for name, method in methods.items()
            if any(map(self._marks_tool, method.decorator_list))
        ], not is_known

    def _marks_tool(self, decorator: ast.expr) -> bool:
        return self._marks(decorator.func if isinstance(decorator, ast.Call) else decorator)

    def _marks(self, part: ast.AST) -> bool:
        """Whether it names promptflow's `tool`."""
        if not isinstance(part, (ast.Name, ast.Attribute)):
            return False
        module, _, name = self.origin(part).rpartition(".")
        return name == "tool" and module.partition(".")[0] in ("promptflow", _PACKAGE)

    # --- classes -----------------------------------------------------------------------------------------------------

    def is_class(self, name: str) -> bool:
        """Whether a name is certainly a class."""
        return isinstance(self.definition(name), ast.ClassDef)

    def method(self, owner: ast.ClassDef, name: str) -> tuple[inspect.Signature | None, bool]:
        """A method's parameters without `self`, and whether the class can have it."""
        methods, is_known = self._members(owner)
        method = methods.get(name)
        return (None, not is_known) if method is None else (self.signature(method, is_method=True), True)

    def constructor(self, owner: ast.ClassDef) -> inspect.Signature | None:
        """The parameters of a class; `None` also for one whose objects cannot be built."""
        if owner.keywords or any(self.origin(base) == "typing.Protocol" for base in owner.bases):
            return None
        methods, is_known = self._members(owner)
        if any(self.origin(mark) == "abc.abstractmethod" for m in methods.values() for mark in m.decorator_list):
            return None
        decorators = [self.origin(d.func if isinstance(d, ast.Call) else d) for d in owner.decorator_list]
        if decorators:
            fields = decorators == ["dataclasses.dataclass"] and is_known and not owner.bases
            return self._dataclass(owner) if fields and "__init__" not in methods else None
        own = {each.name for each in owner.body if isinstance(each, Function)}
        if "__new__" in methods or not (is_known or "__init__" in own):
            return None
        found = methods.get("__init__")
        return inspect.Signature() if found is None else self.signature(found, is_method=True)

    def _members(self, owner: ast.ClassDef, depth: int = 0) -> tuple[dict[str, Function], bool]:
        """The methods of a class and of its bases here, and whether these are all."""
        methods: dict[str, Function] = {}
        is_known = depth < 10
        for base in reversed(owner.bases) if is_known else ():
            part = base.value if isinstance(base, ast.Subscript) else base
            local = self.definition(part.id) if isinstance(part, ast.Name) else None
            if isinstance(local, ast.ClassDef):
                inherited, also_known = self._members(local, depth + 1)
                methods |= inherited
                is_known &= also_known and not local.decorator_list and not local.keywords
            else:
                origin = self.origin(part)
                is_tool = origin.startswith("promptflow") and origin.endswith(".ToolProvider")
                is_known &= origin in _PLAIN_BASES or is_tool
        for each in owner.body:
            if isinstance(each, Function):
                methods[each.name] = each
            elif isinstance(each, ast.Assign | ast.AnnAssign | ast.If | ast.Try | ast.With | ast.For) and not (
                isinstance(each, ast.AnnAssign) or is_constant(each)
            ):
                is_known = False  # such as `__call__ = run`
        return methods, is_known

    def _dataclass(self, owner: ast.ClassDef) -> inspect.Signature | None:
        parameters = []
        for each in owner.body:
            if not isinstance(each, ast.AnnAssign) or not isinstance(each.target, ast.Name):
                continue
            text = ast.unparse(each.annotation)
            if "ClassVar" in text:
                continue
            if "KW_ONLY" in text:
                return None
            has_default = each.value is not None
            if isinstance(each.value, ast.Call) and self.origin(each.value.func) == "dataclasses.field":
                keywords = {keyword.arg for keyword in each.value.keywords}
                if "init" in keywords or None in keywords:
                    return None
                has_default = bool(keywords & {"default", "default_factory"})
            default = Opaque("…") if has_default else inspect.Parameter.empty
            parameters.append(
                inspect.Parameter(
                    each.target.id,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=default,
                    annotation=self.annotation(each.annotation),
                )
            )
        return _signature(parameters)

    # --- signatures --------------------------------------------------------------------------------------------------

    def signature(self, function: Function, *, is_method: bool = False) -> inspect.Signature | None:
        """The parameters of a function, without `self`; `None` if a decorator can change them."""
        for decorator in function.decorator_list:
            part = decorator.func if isinstance(decorator, ast.Call) else decorator
            if not (self._marks(part) or self.origin(part) in _KEEP_SIGNATURE):
                return None
        given = function.args
        kinds = inspect.Parameter
        positional: list[tuple[ast.arg, Any]] = [(argument, kinds.POSITIONAL_ONLY) for argument in given.posonlyargs]
        positional += [(argument, kinds.POSITIONAL_OR_KEYWORD) for argument in given.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
        defaults += given.defaults
        parameters = [self._parameter(a, kind, d) for (a, kind), d in zip(positional, defaults, strict=True)]
        if is_method and not any(self.origin(decorator) == "staticmethod" for decorator in function.decorator_list):
            parameters = parameters[1:]
        if given.vararg is not None:
            parameters.append(self._parameter(given.vararg, kinds.VAR_POSITIONAL, None))
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
            parameters.append(self._parameter(argument, kinds.KEYWORD_ONLY, default))
        if given.kwarg is not None:
            parameters.append(self._parameter(given.kwarg, kinds.VAR_KEYWORD, None))
        return _signature(parameters)

    def _parameter(self, argument: ast.arg, kind: Any, default: ast.expr | None) -> inspect.Parameter:
        value: Any = inspect.Parameter.empty
        if default is not None:
            try:
                value = ast.literal_eval(default)
            except (ValueError, TypeError, RecursionError, MemoryError):
                value = Opaque(ast.unparse(default))
        annotation = inspect.Parameter.empty if argument.annotation is None else self.annotation(argument.annotation)
        return inspect.Parameter(argument.arg, kind, default=value, annotation=annotation)

    def annotation(self, expression: ast.expr, depth: int = 0) -> Any:
        """The object that an annotation is: of builtins, `typing` and promptflow; `Opaque` for all others."""
        try:
            found = self._evaluated(expression, depth)
        except Exception:  # noqa: BLE001 - `typing` refuses some subscripts
            found = _UNKNOWN
        return Opaque(ast.unparse(expression)) if found is _UNKNOWN else found

    def _evaluated(self, expression: ast.expr, depth: int) -> Any:
        if depth > 20:
            return _UNKNOWN
        if isinstance(expression, ast.Constant):
            if isinstance(expression.value, str):
                return self._evaluated(ast.parse(expression.value, mode="eval").body, depth + 1)
            return None if expression.value is None else _UNKNOWN
        if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.BitOr):
            members = [self._evaluated(side, depth + 1) for side in (expression.left, expression.right)]
            return _UNKNOWN if _UNKNOWN in members else Union[tuple(members)]  # noqa: UP007 - of values
        if isinstance(expression, ast.Subscript):
            base = self._evaluated(expression.value, depth + 1)
            parts = expression.slice.elts if isinstance(expression.slice, ast.Tuple) else [expression.slice]
            if base is typing.Annotated:
                return self._evaluated(parts[0], depth + 1)
            if base is typing.Literal:
                return typing.Literal[tuple(ast.literal_eval(part) for part in parts)]
            arguments = [self._evaluated(part, depth + 1) for part in parts]
            if base is _UNKNOWN or _UNKNOWN in arguments:
                return _UNKNOWN
            return base[tuple(arguments) if len(arguments) > 1 else arguments[0]]
        if isinstance(expression, ast.Name) and (bound := self._names.get(expression.id)):
            value = bound[0].value if len(bound) == 1 and isinstance(bound[0], ast.Assign) else None
            if value is not None:  # such as `Connection = Union[OpenAIConnection, AzureOpenAIConnection]`
                return self._evaluated(value, depth + 1)
            if len(bound) == 1 and isinstance(bound[0], ast.ClassDef):
                return self._own_connection(bound[0], depth + 1)
        return _known(self.origin(expression))

    def _own_connection(self, owner: ast.ClassDef, depth: int) -> Any:
        """A connection class that the file defines, with its fields."""
        bases = [self._evaluated(base, depth) for base in owner.bases]
        if not any(isinstance(base, type) and issubclass(base, CustomStrongTypeConnection) for base in bases):
            return _UNKNOWN
        fields = [each for each in owner.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
        members: dict[str, Any] = {"__annotations__": {f.target.id: ast.unparse(f.annotation) for f in fields}}  # type: ignore[union-attr]
        members |= {f.target.id: Opaque("…") for f in fields if f.value is not None}  # type: ignore[union-attr]
        return type(owner.name, tuple(bases), {**members, "__module__": self.file.stem})

    # --- what it does ------------------------------------------------------------------------------------------------

    def uses(self, wanted: frozenset[str]) -> dict[str, tuple[int, Reach]]:
        """Names from imports that it calls, or whose attributes it takes: the line of the first use, and its reach."""
        found: dict[str, tuple[int, Reach]] = {}
        for part, reach in walked(self._tree, "always"):
            target: ast.expr | None = None
            if isinstance(part, ast.Call):
                target = part.func
            elif isinstance(part, ast.Attribute):
                target = part.value
            name = "" if target is None else self.origin(target)
            if name in wanted:
                known = found.get(name)
                if known is None or (reach == "always" and known[1] != "always"):
                    found[name] = part.lineno, reach  # type: ignore[attr-defined]
        return found

    def loaded_flows(self) -> dict[str, int]:
        """The paths of flows that it loads with promptflow's functions, as far as they are texts, each with its line."""
        found: dict[str, int] = {}
        for part, _ in walked(self._tree, "always"):
            if isinstance(part, ast.Call) and self.origin(part.func).startswith("promptflow."):
                name = self.origin(part.func).rpartition(".")[2]
                given = [*part.args, *(keyword.value for keyword in part.keywords if keyword.arg == "source")]
                # Other arguments, such as `model`, change what the flow needs.
                alone = len(given) == 1 == len(part.args) + len(part.keywords)
                path = given[0] if alone and name in ("load", "load_flow") else None
                if isinstance(path, ast.Constant) and isinstance(path.value, str):
                    found.setdefault(path.value, part.lineno)
        return found

    def _changes_path(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id == "__path__"
        if isinstance(node, ast.Attribute):
            owner = self.origin(node)
            return owner.startswith(("sys.path", "sys.meta_path", "sys.modules")) or node.attr == "addsitedir"
        if isinstance(node, ast.Import):
            return any(alias.name.partition(".")[0] in _CHANGE_PATH for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = {alias.name for alias in node.names}
            return module.partition(".")[0] in _CHANGE_PATH or (module == "sys" and bool(names & {"path", "modules"}))
        return False


_UNKNOWN: Final = Opaque("?")


def _known(origin: str) -> Any:
    """The object of a dotted name, if it needs no import of the flow's."""
    module, _, name = origin.rpartition(".")
    if not module:
        return getattr(builtins, name, _UNKNOWN) if name else _UNKNOWN
    if module == "typing":
        return getattr(typing, name, _UNKNOWN)
    if home := PROVIDED.get(module, {}).get(name):
        where, _, what = home.partition(":")
        if where.partition(".")[0] in ("connections", "tools", "promptflow_shim", "images"):
            return getattr(import_module(f"{_PACKAGE}.{where}"), what)
    return _UNKNOWN


def _signature(parameters: list[inspect.Parameter]) -> inspect.Signature | None:
    try:
        return inspect.Signature(parameters)
    except ValueError:
        return None
