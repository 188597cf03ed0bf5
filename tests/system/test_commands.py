"""Every command of the pipeline that README.md and the pages print is run as it is printed, at
short sizes: in one process, with a few steps, on small files of the kind that the page speaks of.
"""

from __future__ import annotations

import gzip
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_wine

from pipeline.config.compose import compose
from tests.unit.data.test_idx import TRAIN, encoded, images, write

pytestmark = pytest.mark.usefixtures("coarse")
ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"python -m pipeline\.(\w+) ?(.*)$")
ELSEWHERE = ("cluster=kuberay", "trainer.replicas=2")  # what wants a cluster is composed alone
SHORT = {
    "train": (
        *("cluster=inline", "trainer.steps=2", "checkpoint.every=2", "chains.per_pool=8"),
        *("trainer.batch_size=8", "evaluation.samples=2", "evaluation.transitions=2"),
        *("evaluation.ais_temperatures=0", "metrics.port=0", "trainer.min_ess=0.2"),
    ),
    "sweep": ("cluster=inline", "trainer.steps=2", "chains.per_pool=8", "evaluation.samples=0"),
    "sample": ("samples=2", "transitions=2"),
    "evaluate": ("evaluation.samples=0", "evaluation.ais_temperatures=0"),
}
# which run stands for RUN, by what is asked of it
RUNS = {"given=3": "labelled_digits", "hmc": "digits", "clamp=table.csv": "table", "": "rbm"}


def commands() -> Iterator[tuple[str, str, str]]:
    """Yields page, door and arguments of each command in a block of a page, variables filled in."""
    for page in PAGES:
        text = page.read_text()
        names = dict(re.findall(r"`(\w)` stands for `([^`]*)`", text.replace("\n", " ")))
        for language, block in BLOCK.findall(text):
            for line in re.sub(r"\\\n\s*", "", block).splitlines() if not language else ():
                if found := re.match(r'^(\w)="(.*)"$', line):
                    names[found[1]] = found[2]
                if found := COMMAND.search(line.removeprefix("$ ")):
                    yield page.name, found[1], _filled(found[2], names)


def _filled(text: str, names: dict[str, str]) -> str:
    """The text with its variables filled in, and those within these."""
    while (more := re.sub(r"\$(\w)\b", lambda name: names[name[1]], text)) != text:
        text = more
    return text


COMMANDS = list(dict.fromkeys(commands()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files and runs that the commands speak of."""
    here = tmp_path_factory.mktemp("commands")
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(60, 3)), columns=list("abc"))
    table.to_csv(here / "table.csv", index=False)
    wine = load_wine(as_frame=True)
    cultivars = np.array(["barbera", "barolo", "grignolino"])[wine.target]
    wine.data.assign(cultivar=cultivars).to_csv(here / "wine.csv", index=False)
    bottles = wine.data[["alcohol", "proline", "hue", "ash"]].assign(
        cultivar=cultivars,
        colour=np.where(wine.data.color_intensity < 4, "pale", "deep"),
        organic=wine.data.malic_acid < 1.8,
    )
    bottles = bottles.astype(object)
    bottles.mask(random.random(bottles.shape) < 0.05).to_csv(here / "bottles.csv", index=False)
    bottles[:3].mask(random.random((3, 7)) < 0.5).to_csv(here / "some.csv", index=False)
    np.savez(here / "wine.npz", x=wine.data.to_numpy(np.float32), y=wine.target.to_numpy() + 1)
    for name, shape in (("figs", (8, 8)), ("col", (12, 10, 3))):
        for number in range(40):
            file = here / name / str(number % 10) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(file)
    (here / "mnist").mkdir()
    write(str(here / "mnist" / TRAIN), encoded(images(40, shape=(28, 28))))
    table.where(random.random(table.shape) < 0.5).to_csv(here / "holes.csv", index=False)
    rows = pd.DataFrame(random.integers(0, 2, (40, 64)), columns=[f"x{i}" for i in range(64)])
    rows.to_parquet(here / "rows.parquet")
    rows.where(random.random(rows.shape) < 0.5).to_csv(here / "rows.csv", index=False)
    (here / "family.fasta").write_text(aligned("-ACGU", random))
    family = aligned("-ACDEFGHIKLMNPQRSTVWY", random) + "\n>DYR_ECOLI/1-9\nMISLIAALA"
    for name in ("DHFR.a2m.gz", "WW.fasta.gz"):
        (here / name).write_bytes(gzip.compress(family.encode()))
    whole = aligned("ACDEFGHIKLMNPQRSTVWY", random)
    (here / "Lattice_Proteins.fasta.gz").write_bytes(gzip.compress(whole.encode()))
    (here / "structure.txt").write_text("1 9\n2 8\n")
    family = aligned("-ACGU", random)
    (here / "RF00379.fasta.gz").write_bytes(gzip.compress(family.encode()))
    (here / "mutants.csv").write_text("mutant,score\nM1L,0.5\nL4I:A9G,-1\nA7C,\n")
    return here


def aligned(letters: str, random: np.random.Generator) -> str:
    """Forty sequences of nine sites, as FASTA has them."""
    rows = random.choice(list(letters), (40, 9))
    return "\n".join(f">s{number}\n{''.join(row)}" for number, row in enumerate(rows))


def carry_out(door: str, arguments: list[str]) -> None:
    short = () if "--help" in arguments else SHORT.get(door, ())
    if "experiment=protein_potts" in arguments:  # which learns from all rows at once
        short = tuple(word for word in short if not word.startswith("trainer.batch_size="))
    if "init_what=all" in arguments:  # which begins at the other run's last step
        short = (*short, "trainer.steps=4")
    done = import_module(f"pipeline.{door}").main([*arguments, *short])
    assert done == 0, f"python -m pipeline.{door} {' '.join(arguments)}"


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The same, with runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, asked in {
            "family": [
                "experiment=protein_potts",
                "data.path=DHFR.a2m.gz",
                "data.focus=DYR_ECOLI",
                "data.held_out=2",
                "output=runs/family",
            ],
            "ww": [
                *("data=fasta", "data.path=WW.fasta.gz", "energy=potts", "kernel=gibbs"),
                *("objective=pcd", "data.held_out=2", "output=runs/ww"),
            ],
            "rbm": ["experiment=digits_rbm", "output=runs/rbm"],
            "digits": ["output=runs/digits"],
            "labelled_digits": ["experiment=conditional_label", "output=runs/labelled_digits"],
            "table": [
                "data=columns",
                "data.path=table.csv",
                "data.held_out=9",
                "output=runs/table",
            ],
        }.items():
            carry_out("train", [f"name={name}", *asked])
    return folder


def test_there_are_commands_on_the_pages() -> None:
    assert len(COMMANDS) > 40
    assert {"train", "sample", "evaluate", "report"} <= {door for _, door, _ in COMMANDS}


@pytest.mark.parametrize(("page", "door", "text"), COMMANDS)
def test_a_command_of_a_page_runs_as_it_is_printed(
    page: str,  # noqa: ARG001 - it names the test
    door: str,
    text: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    run = next(name for asked, name in RUNS.items() if asked in text)
    text = text.replace("run=RUN", f"run=runs/{run}").replace("run=dhfr", "run=runs/family")
    text = text.replace("clamp=table.csv", "clamp=holes.csv")
    text = text.replace("init_from=ww energy.edges=ww", "init_from=runs/ww energy.edges=runs/ww")
    text = text.replace("init_from=runs/latest", "init_from=runs/digits")
    text = text.replace("runs=[A,B]", "runs=[runs/digits,runs/digits]")
    text = re.sub(r"s3://[\w-]+/(?:runs/)?", "memory://commands/", text)
    text = text.replace("memory://commands/*.parquet", "rows.parquet")
    folder = "figs" if "images" in text else "mnist"
    arguments = shlex.split(text.replace("FOLDER", folder), comments=True)
    if any(word in arguments for word in ELSEWHERE):
        compose(arguments)
        return
    if door == "train" and "--help" not in arguments:
        if "data.path" in text and not any("held_out" in word for word in arguments):
            arguments.append("data.held_out=2")
        if not any(word.startswith("output=") for word in arguments):
            arguments.append(f"output=made/{len(list((trained / 'made').glob('*')))}")
    carry_out(door, arguments)
    assert "Traceback" not in capsys.readouterr().err
