"""The structure of the source in figures, read from its text alone; nothing of it is imported.

    python -m tests.house [ROOT]

The figures of `pipeline/` and `actors/` below ROOT (this checkout by default): files and folders,
imports among them, circles, and what the prose and the tests are held to.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("pipeline", "actors")
COLUMNS = 100
CLAUSE = re.compile(r"(What|Who|Which|How|Where|When|That|Those|Whether|As)\b")


class Import(NamedTuple):
    """Module `source` imports module `target`, at the top of its file or within a function."""

    source: str
    target: str
    top: bool


class House:
    """The modules of `PACKAGES` below `root`, by dotted name, and the imports among them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
        self.modules = {self._name(path): path for path in files}
        self.trees = {name: ast.parse(path.read_text()) for name, path in self.modules.items()}
        self.imports = [found for name in self.modules for found in self._imports_of(name)]

    def _name(self, path: Path) -> str:
        return ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")

    def _imports_of(self, source: str) -> Iterator[Import]:
        tree = self.trees[source]
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            for target in _targets(node):
                known = next((name for name in target if name in self.modules), None)
                if known is not None and known != source:
                    yield Import(source, known, id(node) in top)

    def folder(self, module: str) -> str:
        """The folder of a module's file, from the root: `pipeline/energies`."""
        return self.modules[module].parent.relative_to(self.root).as_posix()

    def circles(self) -> list[list[str]]:
        """Groups of files that import each other in a loop (strongly connected components)."""
        following: dict[str, set[str]] = {name: set() for name in self.modules}
        for found in self.imports:
            following[found.source].add(found.target)
        reached = {name: _reachable(name, following) for name in following}
        groups = {
            frozenset({name, *(other for other in reached[name] if name in reached[other])})
            for name in following
            if name in reached[name]
        }
        return sorted(sorted(group) for group in groups)

    def pairs(self) -> list[tuple[str, str]]:
        """Folders that import each other, the face of the package (its `__init__`) left out."""
        edges = {
            (self.folder(found.source), self.folder(found.target))
            for found in self.imports
            if self.modules[found.source].name != "__init__.py"
        }
        return sorted((a, b) for a, b in edges if a < b and (b, a) in edges)

    def functions(self) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """(module, definition) of every function and method."""
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield name, node

    def silent_about_errors(self) -> list[str]:
        """Public functions and methods that raise an error and do not say so in their docstring.

        A class's docstring speaks for its `__init__`.
        """
        found = []
        for name, tree in self.trees.items():
            for node, owner in _public(tree):
                raised = {error for error in _raised(node) if error != "NotImplementedError"}
                text = ast.get_docstring(node) or ""
                if owner is not None and node.name == "__init__":
                    text = ast.get_docstring(owner) or ""
                if raised and "Raises" not in text and "raises" not in text:
                    label = f"{owner.name}.{node.name}" if owner is not None else node.name
                    found.append(f"{name}.{label}: {', '.join(sorted(raised))}")
        return found

    def raising(self) -> int:
        """How many public functions and methods raise an error."""
        return sum(
            bool({error for error in _raised(node) if error != "NotImplementedError"})
            for tree in self.trees.values()
            for node, _ in _public(tree)
        )

    def clauses(self) -> list[str]:
        """Docstrings that open with a relative clause in the place of a sentence."""
        found = []
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    text = ast.get_docstring(node) or ""
                    if CLAUSE.match(text):
                        found.append(f"{name}.{getattr(node, 'name', '')}: {text[:60]!r}")
        return found


def _targets(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """For each name that an import brings, the modules that it may be, the longest first."""
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from ((f"{node.module}.{alias.name}", node.module) for alias in node.names)


def _reachable(start: str, following: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(following[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += following[name]
    return seen


def _public(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    """Public functions, and public methods with their class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, None
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                public = isinstance(member, ast.FunctionDef) and (
                    not member.name.startswith("_") or member.name == "__init__"
                )
                if isinstance(member, ast.FunctionDef) and public:
                    yield member, node


def _raised(function: ast.FunctionDef) -> Iterator[str]:
    """Names of the errors that the function's own body raises; a bare `raise` names none."""
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            error = node.exc.func
            yield error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")


def long_lines(root: Path, patterns: Iterable[str] = ("**/*.py",)) -> list[str]:
    """Lines of source over `COLUMNS` columns, `path:number`; hidden folders are left out."""
    found = []
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        inside = path.relative_to(root)
        if any(part.startswith(".") for part in inside.parts):
            continue
        lines = path.read_text().splitlines()
        found += [f"{inside}:{n}" for n, line in enumerate(lines, 1) if len(line) > COLUMNS]
    return found


def same_names(root: Path) -> tuple[int, int]:
    """How many modules have a test file of their name, and how many modules there are."""
    tests = {path.stem.removeprefix("test_") for path in (root / "tests").rglob("test_*.py")}
    modules = [name.rpartition(".")[2] for name in House(root).modules]
    own = [name for name in modules if name not in PACKAGES]
    return sum(name in tests for name in own), len(own)


def figures(root: Path) -> dict[str, object]:
    """The figures by name, as docs/architecture.md tells them."""
    house = House(root)
    lines = {name: len(path.read_text().splitlines()) for name, path in house.modules.items()}
    longest = max(lines, key=lambda name: lines[name])
    name, function = max(house.functions(), key=lambda found: _length(found[1]))
    top = [name for name in house.modules if house.folder(name) == "pipeline"]
    folders = Counter(house.folder(name) for name in house.modules)
    same, modules = same_names(root)
    return {
        "files": len(house.modules),
        "folders": len(folders),
        "files at the top of pipeline/": len(top),
        "imports between files": len({(found.source, found.target) for found in house.imports}),
        "circles": len(house.circles()),
        "pairs of folders that import each other": len(house.pairs()),
        "longest file": f"{longest}, {lines[longest]} lines",
        "longest function": f"{name}.{function.name}, {_length(function)} lines",
        "modules with a test file of their name": f"{same} of {modules}",
        "public functions that raise and say so": (
            f"{house.raising() - len(house.silent_about_errors())} of {house.raising()}"
        ),
        "docstrings that open with a relative clause": len(house.clauses()),
        "lines of Python over 100 columns": len(long_lines(root)),
    }


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    for key, value in figures(place).items():
        print(f"{key}: {value}")
