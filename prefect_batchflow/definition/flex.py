"""flow.flex.yaml and callables: functions, classes with `__call__` and `__aggregate__`, callable objects."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import subprocess
import sys
import sysconfig
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.annotations import evaluated_annotations
from prefect_batchflow.definition.code_parts import parts_of
from prefect_batchflow.definition.document import (
    DISPLAY_KEYS,
    Problems,
    mapping_at,
    read_environment,
    read_inputs,
    read_language,
    read_message_format,
    refuse_other_keys,
)
from prefect_batchflow.definition.flow import Entry, Flow
from prefect_batchflow.definition.includes import is_there, read_includes
from prefect_batchflow.definition.sending import MAIN, MainModule, culprit, pickled
from prefect_batchflow.definition.service import with_service
from prefect_batchflow.exceptions import FlowDefinitionError, InvalidFlexFlowEntry, PythonLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_batchflow.definition.code_parts import CodeParts

FLOW_KEYS = DISPLAY_KEYS | {
    "entry", "inputs", "outputs", "init", "sample", "language", "message_format", "environment_variables",
    "additional_includes",
}  # fmt: skip


def flow_of_document(document: dict[str, Any], file: Path, working_dir: Path) -> Flow:
    """Give the flow of a parsed flow.flex.yaml.

    `outputs` and `sample.inputs` have no effect, as in promptflow's batch: `outputs` is for people, and a line always has
    its own inputs.

    Raises:
        InvalidFlowRequest: The message lists every problem; the class is theirs if they share one.
    """
    problems = Problems(file)
    language = read_language(document, problems)
    # promptflow reads it only in DAG flows: a callable's images are always in the basic form.
    read_message_format(document, problems, known=("basic",))
    inputs = read_inputs(document, "inputs", problems, empty_is_none=True)
    flow = Flow(
        file.parent.name,
        working_dir,
        Entry(module="", attribute=str(document["entry"])),
        inputs,
        language=language,
        definition_file=file,
        environment_variables=read_environment(document, problems),
        additional_includes=read_includes(document, file.parent, problems),
    )
    if not flow.is_python:
        return with_service(flow, document, problems)
    refuse_other_keys(document, FLOW_KEYS, "top level", problems)
    init = read_inputs(document, "init", problems, empty_is_none=True)
    sample = mapping_at(document, "sample", "top level", problems)
    refuse_other_keys(sample, {"inputs", "init"}, "sample", problems)
    sample_init = mapping_at(sample, "init", "sample", problems)
    entry = _entry_of_text(document["entry"], working_dir, flow.additional_includes, sample_init, problems)
    problems.raise_any()
    return replace(flow, program=entry, init=init)


def flow_of_file(file: Path, attribute: str, working_dir: Path | None) -> Flow:
    """Give the flow of `path/to/file.py:attribute`. The file exists; a worker will find out whether it has the attribute."""
    entry = Entry(module=str(file), attribute=attribute, file=file)
    return Flow(attribute, working_dir or file.parent, entry, source=f"{file}:{attribute}")


def flow_of_module(module: str, attribute: str, working_dir: Path | None) -> Flow:
    """Give the flow of `module:attribute`. A worker may find a module that is not found here."""
    folder = working_dir or Path.cwd()
    entry = Entry(module, attribute, file=find_module_file(module, [str(folder), *sys.path]))
    return Flow(attribute, folder, entry, source=f"{module}:{attribute}")


def flow_of_object(target: Any, working_dir: Path | None) -> Flow:
    """Give the flow of a callable: by its name if a worker can import it, otherwise by cloudpickle.

    Raises:
        FlowDefinitionError: It is not callable, or can be neither imported nor pickled.
    """
    if not _is_callable(target):
        what = f"the class {target.__qualname__}" if isinstance(target, type) else f"{target!r}"
        raise FlowDefinitionError(
            f"{what} is not a flow. Expected a path, a function, a class with __call__, or a callable object."
        )
    definition = _definition_of(target)
    module = getattr(definition, "__module__", None)
    module_file = getattr(sys.modules.get(module or ""), "__file__", None)
    file = Path(module_file).resolve() if module_file else None
    folder = working_dir or _import_folder(module, file)
    name = definition.__qualname__.removesuffix(".__call__")
    if _is_importable(target, file):
        entry = Entry(target.__module__, target.__qualname__, file=file)
        return Flow(name, folder, entry, source=f"{entry.module}:{entry.attribute}")
    return Flow(name, folder, _sent(target, name, module, file))


def find_module_file(module: str, folders: Iterable[str]) -> Path | None:
    """The file that a module would be imported from, found without importing anything; `None` if there is none."""
    importlib.invalidate_caches()
    return search_module(module, folders)


def search_module(module: str, folders: Iterable[str]) -> Path | None:
    """The same, for many modules: it does not look for files that were written a moment ago."""
    spec, search = None, list(folders)
    for part in module.split("."):
        # Only the last part of the name: with the full name, the finder wants the parent imported.
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return Path(spec.origin).resolve() if spec and spec.has_location and spec.origin else None


def _entry_of_text(
    text: Any, working_dir: Path, includes: Sequence[Path], sample_init: dict[str, Any], problems: Problems
) -> Entry:
    """Read `entry: module:name`; the module can also be a file."""
    match = re.fullmatch(r"(?P<module>[^:]+):(?P<attribute>\w+(\.\w+)*)", text) if isinstance(text, str) else None
    if match is None:
        expected = "expected 'module:function' or 'module:Class'"
        problems.add("top level", f"'entry' is {text!r}, {expected}.", InvalidFlexFlowEntry)
        return Entry("", "")
    module, attribute = match["module"].strip(), match["attribute"]
    if module.endswith(".py"):
        file: Path | None = working_dir / module
        module = str(file)
    else:
        file = find_module_file(module, [str(working_dir), *sys.path])
    # An included file counts, too: it will be in the merged copy.
    if file is None or not file.is_file():
        path = match["module"] if module.endswith(".py") else match["module"].replace(".", "/")
        if any(is_there(path + end, working_dir, includes) for end in ("", ".py", "/__init__.py")):
            return Entry(module, attribute, sample_init=sample_init)
        there = ", ".join(sorted(path.name for path in working_dir.glob("*.py"))[:10]) or "no Python file"
        expected = f"expected a module in {working_dir}, which contains {there}, or an installed one"
        problems.add("top level", f"'entry' names '{match['module']}', {expected}.", PythonLoadError)
    return Entry(module, attribute, file=file, sample_init=sample_init)


def _is_callable(target: Any) -> bool:
    """Whether it can be called; for a class, whether its objects can."""
    if isinstance(target, type):
        return any("__call__" in base.__dict__ for base in target.__mro__)
    return callable(target)


def _definition_of(target: Any) -> Any:
    """The function or class whose code a callable runs."""
    if isinstance(target, functools.partial):
        return _definition_of(target.func)
    if isinstance(target, MethodType):
        return target.__func__
    return target if hasattr(target, "__qualname__") else type(target)


def _is_importable(target: Any, file: Path | None) -> bool:
    """Whether a worker can import the same object by module and name."""
    module_name, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not module_name or not name or module_name == MAIN or file is None:
        return False
    found: Any = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is target and _is_found_again(module_name, file)


def _is_found_again(module: str, file: Path) -> bool:
    found = find_module_file(module, sys.path)
    if found is None:
        # Perhaps a hook imports it, such as that of a package installed in editable mode. A new interpreter tells.
        found = _file_in_new_process(module)
    return found is not None and (found == file or (found.exists() and file.exists() and found.samefile(file)))


@functools.cache
def _file_in_new_process(module: str) -> Path | None:
    ask = (
        "import importlib.util, sys\n"
        "try: spec = importlib.util.find_spec(sys.argv[1])\n"
        "except Exception: spec = None\n"
        "print(spec.origin if spec and spec.has_location else '')"
    )
    command = [sys.executable, "-P", "-c", ask, module]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603 - this Python
        answer = asked.stdout.splitlines()
        return Path(answer[-1]).resolve() if answer and answer[-1] else None
    return None


def _sent(target: Any, name: str, module_name: str | None, file: Path | None) -> Entry:
    """The entry of a callable that no worker can import by its name."""
    module = sys.modules.get(module_name or "")
    is_of_main = module_name == MAIN
    is_by_value = (
        not is_of_main and module is not None and file is not None and not _is_found_again(str(module_name), file)
    )
    main = MainModule.of_caller()
    is_named = main is not None and main.has(target)
    parts = parts_of(target, MAIN if is_of_main or not is_by_value else str(module_name))
    try:
        with evaluated_annotations(target):
            sent = None if is_named else pickled(target, main, module if is_by_value else None)
        # An object of another module can have parts of the script in it.
        needs_script = main is not None and (is_named or MAIN.encode() in (sent or b""))
        return Entry(
            MAIN if is_named else "",
            target.__qualname__ if is_named else name,
            pickled=sent,
            file=file,
            script=main.script(parts) if main is not None and needs_script else None,
            code_parts=parts.digests,
            modules=tuple(sorted(parts.modules)),
            is_of_main=is_of_main,
        )
    except Exception as exc:  # the object's own pickling can raise anything
        what = _what_stays(target, parts, main)
        if is_of_main and main is None and file is not None and file.exists():
            cure = (
                f'Start the run below `if __name__ == "__main__":` in {file}. Then each worker runs the script up to there, '
                "and makes such objects itself."
            )
        elif is_of_main:
            cure = (
                f"Save the code as a file and give its path and name, such as 'my_flow.py:{name}'. Then each worker makes "
                "such objects itself. Or make them in the function."
            )
        else:
            cure = "Give a function or class of a module, such as 'module:name'."
        raise FlowDefinitionError(
            f"{target!r} cannot be sent to a worker process: {what}({type(exc).__name__}) {exc}. {cure} If it needs objects, "
            "let a class build them from `init_kwargs`."
        ) from exc


def _what_stays(target: Any, parts: CodeParts, main: MainModule | None) -> str:
    """Name the global, or the part of the object, that cannot be pickled."""
    users: list[tuple[str, Any]] = [("it", target)]
    for name, value in parts.globals.items():
        if not _can_be_pickled(value, main):
            if not isinstance(value, type | FunctionType):
                return f"{parts.users[name]} uses {culprit(value, main, f'the global {name!r}')}. "
            users.append((name, value))
    for user, value in users:
        for place, part in _parts_of_object(value):
            if not _can_be_pickled(part, main):
                return f"{user} uses {culprit(part, main, place)}. "
    return "" if isinstance(target, type | FunctionType) else f"{culprit(target, main, 'the object')} cannot. "


def _can_be_pickled(value: Any, main: MainModule | None) -> bool:
    try:
        pickled(value, main)
    except Exception:  # noqa: BLE001 - the object's own pickling can raise anything
        return False
    return True


def _parts_of_object(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function, a partial or a class consists of, apart from code and globals."""
    if isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):
                yield f"the variable {name!r}", cell.cell_contents
        for name, parameter in inspect.signature(value, follow_wrapped=False).parameters.items():
            if parameter.default is not parameter.empty:
                yield f"the default of {name!r}", parameter.default
    elif isinstance(value, functools.partial):
        yield from ((f"argument {number}", argument) for number, argument in enumerate(value.args, 1))
        yield from ((f"the argument {name!r}", argument) for name, argument in value.keywords.items())
    elif isinstance(value, type):
        yield from (
            (f"the attribute {name!r}", item)
            for name, item in vars(value).items()
            if not name.startswith("__") and not hasattr(item, "__get__")
        )


def _import_folder(module: str | None, file: Path | None) -> Path:
    """The folder that a module is imported from; for installed modules and the standard library, the current folder."""
    if module is None or file is None:
        return Path.cwd()
    if module == MAIN:
        # `python -m package.module` has the name by which it was found.
        spec = getattr(sys.modules[MAIN], "__spec__", None)
        module = "" if spec is None else str(spec.name)
    levels = module.count(".") + (file.name == "__init__.py")
    folder = file.parents[levels] if levels < len(file.parents) else file.parent
    paths = sysconfig.get_paths()
    installed = any(folder.is_relative_to(paths[key]) for key in ("stdlib", "platlib", "purelib"))
    return Path.cwd() if installed else folder
