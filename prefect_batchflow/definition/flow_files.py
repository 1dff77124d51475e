"""The files and packages that make up a flow, for the fingerprint that a resume compares.

Everything is found by reading sources; no user code runs. A flow with a yaml has a folder of its own: all sources and texts
below it count. A function of a file, a module or a script often stands in a project's folder: there the files that it
imports count, and the files that its sources name.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import site
import sys
import sysconfig
import warnings
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prefect_batchflow.definition.flex import search_module
from prefect_batchflow.definition.flow import SOURCE_SUFFIXES, Entry, Prompt, left_out
from prefect_batchflow.definition.parsing import parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from prefect_batchflow.definition.flow import Flow

OTHER_SOURCE_SUFFIXES: Final = frozenset(
    {".cjs", ".cs", ".csproj", ".dll", ".go", ".jar", ".java", ".js", ".kt", ".mjs", ".php", ".rb", ".rs", ".sh", ".ts"}
)
"""Sources of a flow in another language."""
TEXT_SUFFIXES: Final = SOURCE_SUFFIXES | frozenset(
    {
        *(".cfg", ".conf", ".hbs", ".htm", ".html", ".ini", ".j2", ".jinja", ".json", ".json5", ".liquid", ".markdown"),
        *(
            ".md",
            ".mustache",
            ".prompt",
            ".rst",
            ".sql",
            ".template",
            ".text",
            ".tmpl",
            ".toml",
            ".tpl",
            ".txt",
            ".xml",
        ),
    }
)
"""Files that code reads as prompts and settings."""
DATA_SUFFIXES: Final = frozenset({".arrow", ".csv", ".feather", ".jsonl", ".ndjson", ".parquet", ".tsv"})
"""Files that are data, unless a source names them."""
SOURCE_FILE_LIMIT: Final = 10_000
"""How many files of a flow folder count for its fingerprint, at most."""
_OWN_NAMES: Final = frozenset({"prefect", "prefect_batchflow"})
"""What runs the flow is not part of it: a newer version may finish a run."""
_OWN_STATE: Final = frozenset(
    {".bak", ".db", ".lock", ".log", ".out", ".pid", ".pyc", ".sqlite", ".sqlite3", ".swp", ".tmp"}
)
"""Files that code usually writes itself. All other files count if a source names them."""
_LISTINGS: Final = frozenset({"glob", "iglob", "iterdir", "listdir", "rglob", "scandir", "walk"})
"""Functions that list a folder."""
_IMPORTS: Final = frozenset({"__import__", "import_module", "iter_modules", "walk_packages"})
"""Functions that import or find modules by names that can be made while the code runs."""
ASSET_SUFFIXES: Final = OTHER_SOURCE_SUFFIXES | frozenset(
    {
        *(".bin", ".bmp", ".bz2", ".faiss", ".gif", ".gz", ".h5", ".jpeg", ".jpg", ".joblib", ".mp3", ".npy", ".npz"),
        *(
            ".onnx",
            ".pdf",
            ".pickle",
            ".pkl",
            ".png",
            ".pt",
            ".safetensors",
            ".svg",
            ".wav",
            ".webp",
            ".xlsx",
            ".xz",
            ".zip",
        ),
        ".zst",
    }
)
"""Other files that count if a source names them. Files of unknown kinds are mostly markers that code writes."""
_WRITES: Final = frozenset({"symlink_to", "touch", "unlink", "write_bytes", "write_text"})
"""Methods that write the file that they are called on."""
_WRITE_MODES: Final = frozenset({f"{mode}{more}" for mode in "wax" for more in ("", "b", "t", "+", "b+", "+b")})
_ABOUT: Final = re.compile(r"readme|licen[cs]e|change(?:s|log)|contributing|notice|authors|security", re.IGNORECASE)
"""Texts for people, unless a source names them."""
_SCRATCH: Final = re.compile(r"(?:.*[._-])?(?:caches?|logs?|te?mp)", re.IGNORECASE)
"""Folders, and texts without their suffix, that code writes for itself."""
_RESULT: Final = "batch_result.json"
"""In a folder of outputs, of any run."""
_LONGEST_TEXT = 1_000
"""Characters. A longer constant in a source names no file."""
_LARGEST_TEXT = 100_000
"""Bytes. A larger file names no other one."""


@dataclass(frozen=True, slots=True)
class FlowFiles:
    """What a flow consists of, apart from the code that is sent to workers by value."""

    files: tuple[Path, ...]
    """Absolute, sorted."""
    packages: tuple[str, ...] = ()
    """Top-level names of the installed modules that its sources import."""


def files_of(flow: Flow, *, names: Iterable[str] = (), leave_out: Collection[Path] = ()) -> FlowFiles:
    """Give the files and packages of a flow.

    Args:
        flow: The flow. The file of a script does not count if the flow is an object of it: its `code_parts` do.
        names: More texts that can name its files, such as the values of `init`.
        leave_out: Files and folders that a run reads as data or writes; absolute.

    Hidden folders, caches, virtual environments and the folders of runs are left out. At most 10,000 files of a folder
    count, the nearest first.
    """
    folder = flow.working_dir
    own = {file.resolve() for file in flow.program.sources(folder)}
    is_folder = flow.definition_file is not None
    search = _Imports([str(folder), *sys.path])
    if flow.definition_file is not None:
        own.add(flow.definition_file.resolve())
    if flow.service is not None:
        arguments = (folder / argument for argument in flow.service.command if argument)
        own.update(file.resolve() for file in arguments if file.is_file())
    suffixes = TEXT_SUFFIXES | (OTHER_SOURCE_SUFFIXES if flow.service is not None else frozenset())
    is_prompt = isinstance(flow.program, Prompt)  # its template reads no other file
    sent = flow.program if isinstance(flow.program, Entry) else None
    modules = sent.modules if sent is not None else ()
    if not is_folder and not own and not modules:
        return FlowFiles(())  # an object of the interpreter
    kept = _is_source if is_prompt else _can_be_read
    below = list(_files_below(folder, suffixes, kept, _excluded(leave_out), warns=is_folder))
    for name in names:
        search.words.add_text(name)
    for module in modules:
        search.add_import(module)
    search.add_files(own)
    if is_folder:
        assert flow.definition_file is not None
        sure = [file for file in below if not _needs_name(file, suffixes)]
        search.add_files(sure)
        search.words.add_text(flow.definition_file.read_text(encoding="utf-8", errors="replace"))
        own.update(file.resolve() for file in sure)
    # A source that another source names can name more: a plugin with its prompts.
    waiting = [file for file in below if file.resolve() not in own]
    while named := [file for file in waiting if search.names(file, folder, suffixes)]:
        own.update(file.resolve() for file in named)
        search.add_files(named)
        done = set(named)
        waiting = [file for file in waiting if file not in done]
    if sent is not None and sent.is_of_main:
        own -= set(sent.sources(folder))
    packages = {name.split(".")[0] for name in flow.program.packages} | search.packages
    return FlowFiles(tuple(sorted(own | search.files)), tuple(sorted(packages)))


class _Words:
    """The texts in sources, cut into what can be the name of a file or folder."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._begins: set[str] = set()
        self._ends: set[str] = set()

    def add_text(self, text: str) -> None:
        parts = text.split()
        for part in parts:
            # Of a sentence, only what looks like a path.
            if len(parts) == 1 or re.search(r"/\w|\.\w", part):
                self._add(part)

    def _add(self, path: str) -> None:
        for word in re.split(r"[^\w.\-]+", path):
            # `..` and numbers name nothing.
            if not any(map(str.isalpha, word)):
                continue
            self._words |= {word, *word.split(".")[:-1]}
            if word[0] in "._-" and "." in word and word != ".py":
                self._ends.add(word)
            if word[-1] in "_-" and word[0] not in "_-":
                self._begins.add(word)

    def name(self, file: Path, *, without_suffix: bool) -> bool:
        """Whether they name a file, a folder that it is in, or one end of its name, as `*.txt` and `f"prompt_{n}"` do."""
        found = {file.name, *file.parts[:-1], *([file.stem] if without_suffix else [])} & self._words
        return bool(found) or file.name.startswith(tuple(self._begins)) or file.name.endswith(tuple(self._ends))


@dataclass
class _Imports:
    """Follows the imports of Python files, to local files and to names of installed packages."""

    folders: list[str]
    words: _Words = field(default_factory=_Words)
    files: set[Path] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    lists_texts: bool = False
    """Whether a source lists a folder that it does not name, such as its own."""
    imports_any: bool = False
    """Whether a source imports modules by names that it makes."""
    written: set[str] = field(default_factory=set)
    """Names of files that a source writes, as a marker or a cache."""
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _read: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        importlib.invalidate_caches()

    def add_files(self, files: Iterable[Path]) -> None:
        """Read files, and the local files that they import."""
        waiting = deque(file.resolve() for file in files)
        while waiting:
            file = waiting.popleft()
            if file in self._read:
                continue
            self._read.add(file)
            if file.suffix != ".py":
                self._add_text_of(file)
                continue
            for found in self._imported_by(file):
                self.files.add(found)
                waiting.append(found)

    def names(self, file: Path, folder: Path, texts: frozenset[str]) -> bool:
        """Whether the sources that were read so far can read a file below the flow's folder."""
        suffix = file.suffix.lower()
        if self.imports_any if suffix == ".py" else self.lists_texts and not _needs_name(file, texts):
            return True
        path = file.relative_to(folder)
        is_text = suffix in texts | DATA_SUFFIXES
        # Without a suffix, a prompt is written `PROMPT` or `prompts/system`.
        is_prompt = not suffix and (file.name.isupper() or len(path.parts) > 1)
        if not is_text and (file.name in self.written or not (is_prompt or suffix in ASSET_SUFFIXES)):
            return False
        # `name="model"` is no reason to compare `model.bin`.
        return self.words.name(path, without_suffix=is_text)

    def _add_text_of(self, file: Path) -> None:
        """A template or a yaml can name further files."""
        if file.suffix in TEXT_SUFFIXES and file.is_file() and file.stat().st_size <= _LARGEST_TEXT:
            self.words.add_text(file.read_text(encoding="utf-8", errors="replace"))

    def add_import(self, module: str) -> None:
        """Add the file of a module by name, and what it imports."""
        found = list(self._found(module, self.folders))
        self.files.update(found)
        self.add_files(found)

    def _imported_by(self, file: Path) -> Iterator[Path]:
        try:
            tree = parsed(file.read_bytes(), str(file))
        except (OSError, SyntaxError, ValueError, RecursionError):
            return  # a worker says so
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        yield from self._found(alias.name, self.folders)
                case ast.ImportFrom(module=module, names=names, level=level):
                    folders = self.folders if level == 0 else [str(file.parents[min(level, len(file.parents)) - 1])]
                    for alias in names:
                        yield from self._found(f"{module}.{alias.name}" if module else alias.name, folders)
                    if level and not module:
                        yield from self._found("__init__", folders)
                case ast.Constant(value=str() as text) if len(text) <= _LONGEST_TEXT:
                    self.words.add_text(text)
                case ast.Call() if _is_write(node):
                    self.written.update(Path(text).name for text in _texts_in(node))
                case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
                    self.lists_texts |= name in _LISTINGS and not _has_name(node)
                    self.imports_any |= name in _IMPORTS and not _has_name(node)

    def _found(self, module: str, folders: list[str]) -> Iterator[Path]:
        """The local files of a module and of the packages that it is in."""
        key = (module, folders[0])
        if key in self._seen:
            return
        self._seen.add(key)
        parts = module.split(".")
        if parts[0] in _OWN_NAMES:
            return
        for end in range(1, len(parts) + 1):
            found = search_module(".".join(parts[:end]), folders)
            if end == 1 and found is None and not _is_namespace(parts[0], folders):
                if parts[0] not in sys.stdlib_module_names:
                    self.packages.add(parts[0])  # installed by an import hook, or absent
                return
            if found is None:
                continue
            if _is_installed(found):
                if not _is_standard(found):
                    self.packages.add(parts[0])
                return
            if found.suffix == ".py":
                yield found


def _has_name(call: ast.Call) -> bool:
    """Whether a call has a text that can be the name of a file, unlike `"*"`."""
    return any(map(str.isalpha, "".join(_texts_in(call))))


def _is_write(call: ast.Call) -> bool:
    """Whether a call writes a file: `open(path, "a")`, `path.open("w")`, `path.touch()`."""
    match call.func:
        case ast.Attribute(attr=name) if name in _WRITES:
            return True
        case ast.Attribute(attr="open") | ast.Name(id="open"):
            modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
            return any(isinstance(mode, ast.Constant) and mode.value in _WRITE_MODES for mode in modes)
    return False


def _texts_in(node: ast.AST) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def _is_namespace(name: str, folders: list[str]) -> bool:
    return any(Path(folder, name).is_dir() for folder in folders)


def _is_installed(file: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or _is_below(file, _INSTALLED)


def _is_standard(file: Path) -> bool:
    return not {"site-packages", "dist-packages"} & set(file.parts) and _is_below(file, _STANDARD)


def _is_below(file: Path, folders: Iterable[Path]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


_STANDARD = tuple({Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib")})
_INSTALLED = (
    *_STANDARD,
    *{Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")},
    Path(site.getusersitepackages()).resolve(),
)


def _excluded(places: Collection[Path]) -> Callable[[Path], bool]:
    resolved = {Path(os.path.realpath(place)) for place in places}
    return resolved.__contains__


def _files_below(
    folder: Path,
    texts: frozenset[str],
    kept: Callable[[Path], bool],
    is_excluded: Callable[[Path], bool],
    *,
    warns: bool,
) -> Iterator[Path]:
    """Files below a folder, nearest first, in the same order on every file system; the limit is for texts and for others."""
    left = {True: SOURCE_FILE_LIMIT, False: SOURCE_FILE_LIMIT}
    folders = [Path(os.path.realpath(folder))]
    top = folders[0]
    for current in folders:
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError:
            continue  # gone, or not ours to read
        for entry in entries:
            path = current / entry.name
            if is_excluded(path):
                continue
            if entry.is_dir(follow_symlinks=False):
                if len(folders) < SOURCE_FILE_LIMIT and not left_out(entry) and not _is_written(path):
                    folders.append(path)
            elif kept(path) and entry.is_file():
                is_text = path.suffix.lower() in texts
                if left[is_text] == 0 and not is_text:
                    continue
                if left[is_text] == 0:
                    if warns:
                        warnings.warn(
                            f"{folder} has more than {SOURCE_FILE_LIMIT:,} source files. Files deeper than {current} do not "
                            "count for the flow's fingerprint: a resume does not notice when they change.",
                            stacklevel=3,
                        )
                    return
                left[is_text] -= 1
                yield folder / path.relative_to(top)


def _needs_name(file: Path, texts: frozenset[str]) -> bool:
    """Whether a file of a flow folder counts only if a source names it."""
    suffix = file.suffix.lower()
    return suffix not in texts or (suffix not in SOURCE_SUFFIXES and bool(_ABOUT.fullmatch(file.stem)))


def _is_source(path: Path) -> bool:
    return path.suffix.lower() in SOURCE_SUFFIXES


def _can_be_read(path: Path) -> bool:
    """Whether code can read a file, and does not write it. A hidden file without a suffix, such as `.env`, has secrets."""
    suffix = path.suffix.lower()
    if suffix in SOURCE_SUFFIXES:
        return True
    if suffix not in TEXT_SUFFIXES | DATA_SUFFIXES | ASSET_SUFFIXES and path.is_file() and not path.stat().st_size:
        return False  # a marker, such as `done`
    if path.name == _RESULT or suffix in _OWN_STATE or (path.name[0] == "." and suffix not in TEXT_SUFFIXES):
        return False
    return not _SCRATCH.fullmatch(path.stem)


def _is_written(folder: Path) -> bool:
    """Whether a folder is a run's or its outputs, or scratch that code writes for itself."""
    is_run = (folder / "manifest.json").is_file() and (folder / "records").is_dir()
    return is_run or (folder / _RESULT).is_file() or bool(_SCRATCH.fullmatch(folder.name))
