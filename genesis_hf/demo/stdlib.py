"""The running interpreter's standard library: sources, docstrings and documentation topics.

Everything is read with `ast`. Nothing is imported: `import this` prints, `import antigravity` opens a browser.
"""

import ast
import inspect
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from genesis_hf.errors import UserError

SKIPPED_FOLDERS = {
    *("test", "tests", "site-packages", "dist-packages", "__pycache__"),
    # IDLE, 2to3 and turtle demos are programs beside the library, and not everywhere installed.
    *("idlelib", "lib2to3", "turtledemo"),
    # Generated tables.
    *("encodings", "pydoc_data"),
}
SKIPPED_FILES = re.compile(r"_sysconfigdata.*|entities\.py|sitecustomize\.py|usercustomize\.py")
TOPICS_FILE = "pydoc_data/topics.py"
MAX_DEFAULT = 24
"""Characters of a default value that a signature still shows."""


@dataclass(frozen=True)
class Entry:
    """One documented module, class, function or method."""

    name: str
    """Qualified with its module: `json.JSONDecoder.decode`."""
    module: str
    kind: str
    """module, class, function, method or property"""
    parameters: tuple[str, ...]
    """As in a signature, `self` and `cls` left out: `("obj", "*", "indent=None")`."""
    doc: str
    """The docstring, its indentation removed."""
    file: str

    @property
    def signature(self) -> str:
        """`json.dumps(obj, *, indent=None)`; a module's or a property's name alone."""
        if self.kind in ("module", "property"):
            return self.name
        return f"{self.name}({', '.join(self.parameters)})"

    @property
    def public(self) -> bool:
        """No part of the name begins with an underscore."""
        return not any(part.startswith("_") for part in self.name.split("."))


@dataclass(frozen=True)
class Module:
    """A source file and what it documents."""

    file: str
    """Relative to the library's folder, with forward slashes: `json/decoder.py`."""
    source: str
    entries: tuple[Entry, ...]


def library_folder() -> Path:
    """The standard library of the interpreter that runs this; in a virtual environment, its base's."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(folder: Path) -> list[str]:
    """The library's own .py files, relative and sorted; no tests, no generated tables, nothing installed later."""
    names = []
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        inside = relative.parts[:-1]
        skipped = SKIPPED_FOLDERS.intersection(inside) or (inside and inside[0].startswith("config-"))
        if not skipped and not SKIPPED_FILES.fullmatch(relative.name) and path.is_file():
            names.append(relative.as_posix())
    return sorted(names)


def read_modules(folder: Path) -> list[Module]:
    """Every readable source file with its documented entries.

    Raises:
        UserError: no source file there (an interpreter that ships bytecode or a zip archive only).
    """
    modules = []
    for name in tqdm(source_files(folder), desc="reading the standard library", unit="file"):
        try:
            with tokenize.open(folder / name) as file:  # honours a coding cookie
                source = file.read()
            tree = ast.parse(source)
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue
        if source.strip():
            modules.append(Module(name, source, tuple(find_entries(tree, name))))
    if not modules:
        raise UserError(f"{folder}: no source of Python's standard library here; use an interpreter that has it")
    return modules


def read_topics(folder: Path) -> dict[str, str]:
    """The language reference's topics that `help("lambda")` shows, by name; empty where they are not installed."""
    try:
        tree = ast.parse((folder / TOPICS_FILE).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return dict(sorted(ast.literal_eval(node.value).items()))
    return {}


# ---------------------------------------------------------------------------------------------------------
# Docstrings
# ---------------------------------------------------------------------------------------------------------

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def module_name(file: str) -> str:
    """`json/__init__.py` → `json`, `json/decoder.py` → `json.decoder`."""
    parts = file.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def find_entries(tree: ast.Module, file: str) -> Iterator[Entry]:
    """What has a docstring at the module's top level and inside its classes, in the file's order, each name once."""
    module = module_name(file)
    if doc := ast.get_docstring(tree):
        yield Entry(module, module, "module", (), doc, file)
    seen = {module}
    for node, name, kind in definitions(tree.body, module, "function"):
        doc = ast.get_docstring(node)
        if doc and name not in seen:
            seen.add(name)
            yield Entry(name, module, kind, find_parameters(node, kind), inspect.cleandoc(doc), file)


def definitions(
    body: list[ast.stmt], prefix: str, kind: str
) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str, str]]:
    """(node, qualified name, kind) of classes and functions, also those under `if` and `try`."""
    for node in body:
        if isinstance(node, FUNCTIONS):
            yield node, f"{prefix}.{node.name}", "property" if is_property(node) else kind
        elif isinstance(node, ast.ClassDef):
            yield node, f"{prefix}.{node.name}", "class"
            yield from definitions(node.body, f"{prefix}.{node.name}", "method")
        elif isinstance(node, (ast.If, ast.Try)):
            yield from definitions([*node.body, *node.orelse], prefix, kind)


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Decorated with `property`, `cached_property`, `x.setter` and their like."""
    names = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    return bool(re.search(r"property\b|\.(setter|getter|deleter)\b", names, re.IGNORECASE))


def find_parameters(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, kind: str) -> tuple[str, ...]:
    """Parameters of a function, or of a class's own `__init__`; the instance or class left out."""
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, FUNCTIONS) and inner.name == "__init__":
                return find_parameters(inner, "method")
        return ()
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    shown = [show_parameter(a.arg, default) for a, default in zip(positional, defaults, strict=True)]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    if kind in ("method", "property") and not static:
        shown = shown[1:]
    if arguments.vararg:
        shown.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        shown.append("*")
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    shown.extend(show_parameter(a.arg, default) for a, default in named)
    if arguments.kwarg:
        shown.append(f"**{arguments.kwarg.arg}")
    return tuple(shown)


def show_parameter(name: str, default: ast.expr | None) -> str:
    """`indent=None`; a long default becomes `…`."""
    if default is None:
        return name
    text = ast.unparse(default)
    return f"{name}={text if len(text) <= MAX_DEFAULT else '...'}"
