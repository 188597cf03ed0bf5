"""Law 1: the mathematics knows no Ray, Ray knows no mathematics; and the direction of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "actors").rglob("*.py")])
ENTRY_POINTS = {"pipeline/train.py"}
# what may stand in no file of the package on the left
FORBIDDEN = {
    "pipeline/energies": ("pipeline.kernels", "pipeline.objectives", "pipeline.chains", "pipeline.learner", "pipeline.data"),
    "pipeline/kernels": ("pipeline.objectives", "pipeline.chains", "pipeline.learner", "pipeline.data", "pipeline.config"),
    "pipeline/objectives": ("pipeline.kernels", "pipeline.chains", "pipeline.learner", "pipeline.data", "pipeline.negatives"),
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether at the top level of the file) of every import statement."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module or "", id(node) in top


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_their_layer(path: Path) -> None:
    """ray in actors only; actors in entry points only, and lazily; packages blind to what they must not know."""
    name = path.relative_to(ROOT).as_posix()
    for module, top in imports(path):
        if name.startswith("pipeline/"):
            assert not within(module, "ray"), f"{name} imports ray"
            if within(module, "actors"):
                assert name in ENTRY_POINTS, f"{name} imports actors"
                assert not top, f"{name} imports actors at its top: cluster=inline needs no ray"
        for package, forbidden in FORBIDDEN.items():
            if name.startswith(package):
                assert not any(within(module, other) for other in forbidden), f"{name} imports {module}"


@pytest.mark.parametrize(
    "name", ["pipeline/chains.py", "pipeline/sampler.py", "pipeline/learner.py", "pipeline/loop.py", "actors"]
)
def test_what_carries_models_knows_none_of_them(name: str) -> None:
    """Chains, learner and actors import what all energies share, and no kind of them: what differs is in the energy."""
    paths = [ROOT / name] if name.endswith(".py") else sorted((ROOT / name).glob("*.py"))
    for path in paths:
        energies = {module for module, _ in imports(path) if within(module, "pipeline.energies")}
        assert energies <= {"pipeline.energies.base", "pipeline.energies.deep"}, f"{path.name} imports {energies}"


def test_no_formula_in_actors() -> None:
    """Actors call no torch mathematics: of torch they may set threads and wrap a start."""
    for path in (ROOT / "actors").glob("*.py"):
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
        }
        assert used <= {"set_num_threads", "tensor"}, f"{path.name} uses torch.{used}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pipeline.config, pipeline.compose; pipeline.compose.compose()", ("torch", "ray", "sklearn", "matplotlib")),
        ("import pipeline", ("torch", "ray")),
        ("import pipeline.loop, pipeline.run, pipeline.learner", ("ray",)),
    ],
)
def test_imports_stay_light(statement: str, absent: tuple[str, ...]) -> None:
    """Seen in a fresh interpreter: what a module must not load is not loaded."""
    check = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
