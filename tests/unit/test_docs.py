"""Every file, module, name and link that the pages speak of is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
    if path.exists()
]
TOPS = ("actors", "benchmarks", "conf", "docs", "examples", "k8s", "pipeline", "tests")
PACKAGES = ("actors", "benchmarks", "k8s", "pipeline")


def code_of(text: str) -> str:
    """Return all that stands in back-quotes or in fenced blocks, a line for each."""
    fences = re.findall(r"^ *```.*?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*fences, *re.findall(r"`([^`]+)`", rest)])


def missing_paths(code: str) -> list[str]:
    """Return the paths of this repository in `code` that do not exist.

    `energies/base.py` is taken below `pipeline/`, and `base.py` alone anywhere.
    """
    found = []
    for word in re.findall(r"(?<![\w.:/=-])[\w*-][\w.*-]*(?:/[\w.*-]+)*/?", code):
        word = word.replace("NAME", "*")
        first, *more = word.rstrip("/.").split("/")
        if more and first in TOPS:
            there = any(ROOT.glob(word.rstrip("/.")))
        elif word.endswith(".py") and more:
            there = any((ROOT / "pipeline").glob(word))
        elif word.endswith(".py"):
            there = any(any((ROOT / top).rglob(word)) for top in TOPS)
        else:
            continue
        if not there:
            found.append(word)
    return found


def module_of(name: str) -> Path | None:
    """Return the file of a module by its dotted name."""
    path = ROOT / name.replace(".", "/")
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None
    )


def missing_names(text: str) -> list[str]:
    """Return modules and names of this repository's packages that do not exist.

    A module is what follows `python -m`, and a name is `package.module.name`, in back-quotes.
    """
    packages = "|".join(PACKAGES)
    modules = re.findall(rf"python -m ((?:{packages})[\w.]*\w)", text)
    found = [name for name in modules if not module_of(name)]
    for name in re.findall(rf"`((?:{packages})(?:\.\w+){{2,}})`", text):
        module, _, last = name.rpartition(".")
        file = module_of(module)
        if not module_of(name) and not (file and re.search(rf"\b{last}\b", file.read_text())):
            found.append(name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    assert missing_paths(code_of(text)) == []
    assert missing_names(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        assert (page.parent / path).exists(), target
        if anchor:
            titles = re.findall(
                r"^#+ (.*)$", (page.parent / path if path else page).read_text(), re.MULTILINE
            )
            assert anchor in {
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
            }


def test_what_is_missing_is_found() -> None:
    code = code_of(
        "`python -m k8s.manifests`, `pipeline/gone.py` and `energies/mlp.py`\n```\ntests/no\n```\n"
    )
    assert missing_paths(code) == ["tests/no", "pipeline/gone.py"]
    assert missing_paths("gone.py https://x.org/docs/gone runs/digits k8s/overlays/gpu/") == [
        "gone.py"
    ]
    assert missing_names("python -m pipeline.gone, `pipeline.common.rng.none`") == [
        "pipeline.gone",
        "pipeline.common.rng.none",
    ]
