"""The house keeps its shape: no circles, one direction of imports, each package blind to others."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import House, long_lines

ROOT = Path(__file__).resolve().parent.parent.parent
HOUSE = House(ROOT)
# folders from the ground up: a file imports from its own folder and from those before it alone
FLOORS = (
    "pipeline/common",
    "pipeline/config",
    "pipeline/energies",
    "pipeline/energies/maxent",
    "pipeline/kernels",
    "pipeline/objectives",
    "pipeline/storage",
    "pipeline/data",
    "pipeline/chains",
    "pipeline/training",
    "pipeline/assembly",
    "pipeline/diagnosis",
    "pipeline/evaluation",
    "pipeline/library",
    "pipeline/runs/recorders",
    "pipeline/runs",
    "actors",
    "pipeline/estimators",
    "pipeline",
)
# the packages on the left know nothing of those on the right
BLIND = {
    "pipeline/energies": ("pipeline.kernels", "pipeline.objectives", "pipeline.data"),
    "pipeline/kernels": ("pipeline.objectives", "pipeline.data"),
    "pipeline/objectives": ("pipeline.kernels", "pipeline.data"),
    "pipeline/chains": ("pipeline.objectives", "pipeline.data", "pipeline.config"),
}
# what all energies share
SHARED_ENERGIES = {
    f"pipeline.energies.{name}" for name in ("base", "target", "weights", "deep", "letters")
}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_no_file_is_in_a_circle() -> None:
    assert HOUSE.circles() == []


def test_no_two_folders_import_each_other() -> None:
    """But for the face of the package, which hands on names from anywhere."""
    assert HOUSE.pairs() == []


def test_imports_go_down() -> None:
    """Every folder has a floor, and imports from lower ones alone; the face may look anywhere."""
    assert {HOUSE.folder(name) for name in HOUSE.modules} == set(FLOORS)
    upward = [
        f"{found.source} imports {found.target}"
        for found in HOUSE.imports
        if FLOORS.index(HOUSE.folder(found.target)) > FLOORS.index(HOUSE.folder(found.source))
        and HOUSE.modules[found.source].name != "__init__.py"
    ]
    assert upward == []


def test_only_doors_stand_at_the_top() -> None:
    """Nothing imports an entry point, and there are at most 14 files beside them."""
    top = {name for name in HOUSE.modules if HOUSE.folder(name) == "pipeline"}
    assert len(top) <= 14
    assert not [found for found in HOUSE.imports if found.target in top]


def test_packages_are_blind_to_what_they_must_not_know() -> None:
    seen = [
        f"{found.source} imports {found.target}"
        for found in HOUSE.imports
        for package, forbidden in BLIND.items()
        if HOUSE.folder(found.source).startswith(package)
        and any(within(found.target, other) for other in forbidden)
    ]
    assert seen == []


def test_ray_stays_in_actors() -> None:
    """Law 1. Entry points import actors within a function: cluster=inline needs no ray."""
    for name, tree in HOUSE.trees.items():
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if within(name, "pipeline"):
                assert not any(within(module, "ray") for module in modules), f"{name} imports ray"
    top = [found for found in HOUSE.imports if within(found.target, "actors") and found.top]
    assert {found.source.partition(".")[0] for found in top} <= {"actors"}


def test_files_are_reached_at_one_place() -> None:
    """Whoever imports fsspec goes past the retries, and past the words for what went wrong."""
    found = [
        name
        for name, tree in HOUSE.trees.items()
        for node in ast.walk(tree)
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if within(module, "fsspec")
    ]
    assert set(found) == {"pipeline.storage.files"}


@pytest.mark.parametrize("package", ["pipeline.chains", "pipeline.training", "actors"])
def test_what_carries_models_knows_none_of_them(package: str) -> None:
    """Chains, learner and actors import what all energies share, and no kind of them: what differs
    is in the energy.
    """
    known = {
        found.target
        for found in HOUSE.imports
        if within(found.source, package) and within(found.target, "pipeline.energies")
    }
    assert known <= SHARED_ENERGIES


@pytest.mark.parametrize("folder", ["energies", "kernels", "objectives"])
def test_the_mathematics_knows_no_configuration_key(folder: str) -> None:
    """It raises `ValueError`s about its own arguments; who assembles it adds the keys."""
    files = (ROOT / "pipeline" / folder).rglob("*.py")
    assert not [path.name for path in files if "ConfigError" in path.read_text()]


def test_no_formula_in_actors() -> None:
    """Actors call no torch mathematics: of torch they may set threads and wrap a start."""
    for name, tree in HOUSE.trees.items():
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
        }
        if within(name, "actors"):
            assert used <= {"set_num_threads", "tensor"}, f"{name} uses torch.{used}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import pipeline.config.run, pipeline.config.compose as c; c.compose()",
            ("torch", "ray", "sklearn", "matplotlib"),
        ),
        ("import pipeline, pipeline.common.types", ("torch", "ray")),
        ("import pipeline.runs.inline, pipeline.runs.run, pipeline.training.learner", ("ray",)),
        (
            "from pipeline.train import run; from pipeline.config.compose import compose;"
            " import tempfile; run(compose(['trainer.steps=2', 'cluster=inline', 'metrics.port=0',"
            " 'evaluation.transitions=8', 'evaluation.ais_temperatures=0',"
            " f'output={tempfile.mkdtemp()}/run']))",
            ("torch._dynamo", "sklearn", "pandas", "scipy.stats", "arviz_stats", "ray"),
        ),
    ],
)
def test_imports_stay_light(statement: str, absent: tuple[str, ...]) -> None:
    """Seen in a fresh interpreter: what a module must not load is not loaded."""
    check = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_docstrings_are_sentences_that_name_errors() -> None:
    """No docstring opens with a relative clause, and what a public function raises is said."""
    assert HOUSE.clauses() == []
    assert HOUSE.silent_about_errors() == []


def test_lines_have_at_most_100_columns() -> None:
    """Those too that a linter leaves out, for the remark at their end."""
    assert long_lines(ROOT) == []
