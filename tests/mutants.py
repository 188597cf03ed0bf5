"""Slips put into the code one at a time, to see that the tests catch each of them.

    python -m tests.mutants [NAME ...] [--docs docs]

A mutation is made in a copy of the tree, and the tests that should catch it run there. It is caught
where a test fails. Tests that cannot be collected, or of which none is left, prove nothing: such a
mutation counts as not caught. The tests that failed then run on the copy as it is, where they must
pass. With `--docs` the results are written to `mutants.json` there, and as a table to `mutants.md`.
The exit status is 0 where every mutation was caught.

The text that a mutation replaces must be in its file exactly once (`Mutant.apply`), so that the
list follows the code; `tests/unit/test_mutants.py` checks this in every run of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PARTS = (
    *("actors", "benchmarks", "conf", "docs", "examples", "k8s", "pipeline", "tests"),
    *("pyproject.toml", "README.md", "Makefile"),
)
SECONDS = 600.0
FAILED, PASSED = 1, 0  # exit statuses of pytest; all others mean that the tests did not run
KERNELS = "tests/statistics/test_kernels.py"
MATRICES = "tests/statistics/test_transition_matrices.py"
STALENESS = "tests/statistics/test_staleness.py"


class Mutant(NamedTuple):
    """`old` becomes `new` in `file`; blanks in `old` stand for any white space, or none. `tests`
    are what pytest is given.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str:
        """The file's text with the slip. Raises `ValueError` where `old` is not there exactly
        once.
        """
        pattern = r"\s*".join(map(re.escape, self.old.split()))
        changed, count = re.subn(pattern, lambda _: self.new, text)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} has {self.old!r} {count} times, not once")
        return changed


def mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, file, old, new, tests)


MUTANTS = [
    # -- kernels -----------------------------------------------------------------------------------
    mutant(
        "MALA: sign of the way back",
        "pipeline/kernels/mala.py",
        "- squared_norm(backward) / (4 * step_size)",
        "+ squared_norm(backward) / (4 * step_size)",
        KERNELS,
        "-k=leaves and mala-gaussian",
    ),
    mutant(
        "HMC: sign of the kinetic energy",
        "pipeline/kernels/hmc.py",
        "+ kinetic - squared_norm(momentum) / 2",
        "- kinetic + squared_norm(momentum) / 2",
        KERNELS,
        "-k=leaves and hmc-gaussian",
    ),
    mutant(
        "HMC: one leapfrog step too many",
        "pipeline/kernels/hmc.py",
        "range(leapfrog_steps - 1)",
        "range(leapfrog_steps)",
        "tests/system/test_benchmarks.py",
        "-k=same_chains and HMC",
    ),
    mutant(
        "random walk: accepted by the inverse ratio",
        "pipeline/kernels/random_walk.py",
        "state.energy - moved.energy",
        "moved.energy - state.energy",
        KERNELS,
        "-k=leaves and random_walk-gaussian",
    ),
    mutant(
        "Gibbs-with-gradients: proposals' ratio inverted",
        "pipeline/kernels/gibbs_with_gradients.py",
        "state.energy - moved.energy + (back - forward",
        "state.energy - moved.energy - (back - forward",
        MATRICES,
        "-k=balance and gradients-rbm",
    ),
    mutant(
        "single site: energies upside down",
        "pipeline/kernels/single_site.py",
        "Categorical(-energies)",
        "Categorical(energies)",
        MATRICES,
        "-k=rows and single_site-rbm",
    ),
    mutant(
        "replica exchange: sign of one rung's gain",
        "pipeline/kernels/replica_exchange.py",
        "gain[lower] + gain[lower + 1]",
        "gain[lower] - gain[lower + 1]",
        KERNELS,
        "-k=joint_law_as_it_is and rbm-",
    ),
    mutant(
        "replica exchange: odd pairs never swap",
        "pipeline/kernels/replica_exchange.py",
        "for first in (0, 1)",
        "for first in (0, 0)",
        KERNELS,
        "-k=joint_law_as_it_is and rbm-",
    ),
    mutant(
        "accept step: a ratio that is not a number accepts",
        "pipeline/kernels/base.py",
        "nan_to_num(nan=-torch.inf",
        "nan_to_num(nan=torch.inf",
        "tests/statistics/test_kernel_edges.py",
        "-k=not_finite",
    ),
    mutant(
        "step sizes: adapted the wrong way",
        "pipeline/kernels/adaptation.py",
        "gain * (rate - self._target)",
        "gain * (self._target - rate)",
        "tests/unit/test_sampler.py",
        "-k=step_sizes",
    ),
    mutant(
        "ladder: rungs gather where swaps succeed",
        "pipeline/kernels/adaptation.py",
        "increments = (1 - swaps)",
        "increments = swaps",
        "tests/unit/test_sampler.py",
        "-k=respacing",
    ),
    # -- energies ----------------------------------------------------------------------------------
    mutant(
        "RBM: sign of the free energy",
        "pipeline/energies/rbm.py",
        "field = self.hidden_field(self.features(x)) return self.visible_energy(x) -",
        "field = self.hidden_field(self.features(x))\n        return self.visible_energy(x) +",
        "tests/statistics/test_rbms.py",
        "-k=free_energy",
    ),
    mutant(
        "walls: folded to the wrong place",
        "pipeline/energies/base.py",
        "torch.where(mirrored, 2 * width - phase, phase) + low",
        "torch.where(mirrored, phase - width, phase) + low",
        "tests/statistics/test_kernel_edges.py",
        "-k=walls_reflect or wall_to_wall",
    ),
    mutant(
        "negation: a sign",
        "pipeline/energies/composition.py",
        "energies[0] - self.weight * energies[1]",
        "energies[0] + self.weight * energies[1]",
        "tests/statistics/test_composition.py",
    ),
    # -- objectives --------------------------------------------------------------------------------
    mutant(
        "contrastive divergence: sign of the negatives",
        "pipeline/objectives/contrastive.py",
        "self.of_energies(energies, weights, -1.0)",
        "self.of_energies(energies, weights, 1.0)",
        "tests/statistics/test_contrastive.py",
    ),
    mutant(
        "a step's gradient by hand: sign of the negatives",
        "pipeline/training/gradient.py",
        "-1.0 if negatives else 1.0",
        "1.0 if negatives else 1.0",
        "tests/unit/test_gradient.py",
    ),
    mutant(
        "fast weights: their sign",
        "pipeline/objectives/contrastive.py",
        "alpha=-self._rate",
        "alpha=self._rate",
        "tests/unit/test_fast_weights.py",
        "-k=by_hand",
    ),
    mutant(
        "score matching: sign of the trace",
        "pipeline/objectives/score_matching.py",
        'slope.square().sum() / 2, len(slope)) yield Part("trace", curvatures.sum(), '
        "curvatures.numel(), -1.0)",
        'slope.square().sum() / 2, len(slope))\n        yield Part("trace", curvatures.sum(), '
        "curvatures.numel(), 1.0)",
        "tests/statistics/test_score_matching.py",
        "-k=formulas and not slips",
    ),
    mutant(
        "finite differences: the middle counted once",
        "pipeline/objectives/score_matching.py",
        "ahead + behind - 2 * here",
        "ahead + behind - here",
        "tests/statistics/test_score_matching.py",
        "-k=formulas and not slips",
    ),
    mutant(
        "noise-contrastive estimation: sign of log P",
        "pipeline/objectives/noise_contrastive.py",
        "self.noise.log_density(u) - math.log(self._draws)",
        "self.noise.log_density(u) + math.log(self._draws)",
        "tests/statistics/test_noise_contrastive.py",
        "-k=log_odds",
    ),
    mutant(
        "conditional noise-contrastive estimation: inverse ratio",
        "pipeline/objectives/noise_contrastive.py",
        "softplus(here - there)",
        "softplus(there - here)",
        "tests/statistics/test_noise_contrastive.py",
        "-k=conditional_form",
    ),
    mutant(
        "chunks: shares of the wrong total",
        "pipeline/objectives/chunking.py",
        "(stop - start) / total",
        "(stop - start) / size",
        "tests/statistics/test_chunking.py",
        "tests/statistics/test_contrastive.py",
    ),
    mutant(
        "annealed importance sampling: sign of the weights",
        "pipeline/evaluation/ais.py",
        "log_weights += (state.energy - moved.energy)",
        "log_weights -= (state.energy - moved.energy)",
        "tests/statistics/test_ais.py",
        "-k=enumeration",
    ),
    # -- staleness ---------------------------------------------------------------------------------
    mutant(
        "importance weights: their sign",
        "pipeline/training/staleness.py",
        "energy_then.double() - energy_now.double()",
        "energy_now.double() - energy_then.double()",
        STALENESS,
        "-k=weight",
    ),
    mutant(
        "lag's controller: a bound swapped",
        "pipeline/training/staleness.py",
        "room and not self._left and self.bound < self._configured",
        "room and not self._left and self.bound > self._configured",
        STALENESS,
        "-k=controller",
    ),
    mutant(
        "lag's controller: above what is configured",
        "pipeline/training/staleness.py",
        "room and not self._left and self.bound < self._configured",
        "room and not self._left and self.bound <= self._configured",
        STALENESS,
        "-k=controller",
    ),
    mutant(
        "burn-in: young chains count",
        "pipeline/training/staleness.py",
        "then.masked_fill(~counts, -torch.inf)",
        "then",
        STALENESS,
        "-k=burn_in",
    ),
    # -- chains ------------------------------------------------------------------------------------
    mutant(
        "kept chains: lost when the table grows",
        "pipeline/chains/kept.py",
        "position[:before], age[:before] = self._position, self._age",
        "position[:before] = self._position",
        "tests/unit/test_contexts.py",
        "-k=kept or left_them",
    ),
    mutant(
        "batches: version and round exchanged",
        "pipeline/chains/batch.py",
        "column(np.full(rows, round)),\n        column(np.full(rows, version)),",
        "column(np.full(rows, version)),\n        column(np.full(rows, round)),",
        "tests/unit/test_negatives.py",
        "-m=not ray",
    ),
    mutant(
        "batches: the noise of a replay in another order",
        "pipeline/chains/batch.py",
        "_lists(noise.transpose(0, 1))",
        "_lists(noise)",
        "tests/statistics/test_improved.py",
    ),
    mutant(
        "a pool's state: ages are not taken up",
        "pipeline/chains/pool.py",
        'self._age = state["age"].to(self._device)',
        'self._age = torch.zeros_like(state["age"])',
        "tests/unit/test_chains.py",
        "tests/unit/test_checkpoint.py",
    ),
    mutant(
        "a pool's state: the next round's number",
        "pipeline/chains/pool.py",
        'self.round, self.incarnation = state["round"], state["incarnation"]',
        'self.round, self.incarnation = state["round"] + 1, state["incarnation"]',
        "tests/unit/test_chains.py",
        "tests/unit/test_checkpoint.py",
    ),
    mutant(
        "a revived pool: the stream that it had before",
        "pipeline/chains/pool.py",
        'self.generator = torch_generator( self._seed, "chains", self._pool, incarnation,',
        'self.generator = torch_generator(self._seed, "chains", self._pool, 0,',
        "tests/unit/test_chains.py",
        "-k=revived",
    ),
    mutant(
        "random streams: pools share one",
        "pipeline/common/rng.py",
        "(zlib.crc32(role.encode()), index)",
        "(zlib.crc32(role.encode()), 0)",
        "tests/unit/test_chains.py",
        "-k=streams_of_their_own",
    ),
    # -- training ----------------------------------------------------------------------------------
    mutant(
        "whose turn: one pool off",
        "pipeline/config/run.py",
        "first = step * self.batches_per_step",
        "first = (step + 1) * self.batches_per_step",
        "tests/unit/test_config.py",
        "-k=pools_in_turn",
    ),
    mutant(
        "learning rate: the warm-up begins at 0",
        "pipeline/training/optimizer.py",
        "rate * (step + 1) / optimizer.warmup",
        "rate * step / optimizer.warmup",
        "tests/unit/test_learner.py",
        "-k=schedules",
    ),
    mutant(
        "average: its shares exchanged",
        "pipeline/training/updates.py",
        "get_ema_multi_avg_fn(decay)",
        "get_ema_multi_avg_fn(1 - decay)",
        "tests/unit/test_learner.py",
        "-k=average",
    ),
    mutant(
        "versions: negatives' lag one too small",
        "pipeline/training/learner.py",
        "self.version - batch.version for batch in received",
        "max(0, self.version - batch.version - 1) for batch in received",
        "tests/unit/test_learner.py",
        "-k=lags",
    ),
    mutant(
        "exact lag: the newest weights instead of the oldest",
        "pipeline/runs/inline.py",
        "pools_of_step(step), self._window[0]",
        "pools_of_step(step), self._window[-1]",
        "tests/system/test_staleness_benchmark.py",
        "-k=exact_lag",
    ),
    mutant(
        "ranks: a share that is not of the mean",
        "pipeline/training/ranks.py",
        "self.size * rows / total",
        "rows / total",
        "tests/ray/test_ranks.py",
        "-k=two_ranks_are_one and rbm",
    ),
    mutant(
        "ranks: rows dealt anew, the last of each left out",
        "pipeline/training/ranks.py",
        "total * (rank + 1) // size",
        "total * (rank + 1) // size - 1",
        "tests/ray/test_ranks.py",
        "-k=dealt_anew",
    ),
    # -- data --------------------------------------------------------------------------------------
    mutant(
        "streamed rows: the last window left out",
        "pipeline/data/streaming.py",
        "place.window + 1 == len(windows)",
        "place.window + 2 >= len(windows)",
        "tests/unit/data/test_streaming.py",
        "-k=once_an_epoch",
    ),
    mutant(
        "streamed rows: every rank gets every part",
        "pipeline/data/streaming.py",
        "order[self._rank :: self._ranks]",
        "order[self._rank :]",
        "tests/unit/data/test_streaming.py",
        "-k=share_each_epoch",
    ),
    mutant(
        "rows in memory: resumed one row late",
        "pipeline/data/base.py",
        'self._cursor = state["cursor"]',
        'self._cursor = state["cursor"] + 1',
        "tests/unit/data/test_positives.py",
        "-k=resume",
    ),
    # -- storage -----------------------------------------------------------------------------------
    mutant(
        "checkpoints: checksums are not looked at",
        "pipeline/storage/checkpoint.py",
        "or hashlib.sha256(content).hexdigest() != part.sha256:",
        "or not content:",
        "tests/unit/test_checkpoint.py",
        "-k=damaged or changed_after",
    ),
    mutant(
        "checkpoints: the oldest are kept",
        "pipeline/storage/retention.py",
        "set(steps[-kept.newest :])",
        "set(steps[: kept.newest])",
        "tests/unit/test_checkpoint_retention.py",
        "-k=kept",
    ),
    # -- the driver --------------------------------------------------------------------------------
    mutant(
        "stale batches: one version too old is learned from",
        "actors/policy.py",
        "if version - batch.version <= bound]",
        "if version - batch.version <= bound + 1]",
        "tests/unit/test_policy.py",
        "-k=stale",
    ),
    mutant(
        "rounds in flight: one too many",
        "actors/policy.py",
        "rules.batches * steps - int(load.sum())",
        "rules.batches * steps - int(load.sum()) + 1",
        "tests/unit/test_policy.py",
        "-k=fills_the_room or than_the_steps_take",
    ),
    mutant(
        "a lost pool: its incarnation is the old one",
        "actors/pools.py",
        "pool.incarnation += 1",
        "pool.incarnation += 0",
        "tests/unit/test_pools.py",
        "-k=newest_batch",
    ),
    mutant(
        "a lost pool: all rounds but its own are given up",
        "actors/pools.py",
        "if round.pool != pool.number",
        "if round.pool == pool.number",
        "tests/unit/test_pools.py",
        "-k=newest_batch or its_time_is_over",
    ),
    mutant(
        "restarts: one fewer than the budget",
        "pipeline/common/restarts.py",
        "len(self._spent) <= self._allowed",
        "len(self._spent) < self._allowed",
        "tests/unit/test_policy.py",
        "-k=budget",
    ),
    mutant(
        "exact lag: rounds run under the version after theirs",
        "actors/policy.py",
        "return max(0, step - lag)",
        "return max(0, step - lag + 1)",
        "tests/unit/test_policy.py",
        "-k=asked_once",
    ),
]


# -- trying them -----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """The test that caught the mutation, None where it was not caught; what pytest said in its last
    line, and how long it took.
    """

    by: str | None
    said: str
    seconds: float

    @property
    def caught(self) -> bool:
        return self.by is not None


def copy_tree(target: Path) -> None:
    """What the tests need of the checkout."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, target / name)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, list[str]]:
    """Exit status of pytest in `tree`, and the lines that it prints."""
    # the interpreter's cache goes by a file's second and size, which a mutation may leave alone
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    return done.returncode, [line for line in done.stdout.splitlines() if line] or [done.stderr]


def try_out(tree: Path, slip: Mutant) -> Outcome:
    """The tests with the mutation made; the file is as it was afterwards."""
    before = time.monotonic()
    path = tree / slip.file
    original = path.read_text()
    path.write_text(slip.apply(original))
    try:
        status, lines = run_tests(tree, slip.tests)
    finally:
        path.write_text(original)
    failed = [line.split(" - ")[0] for line in lines if line.startswith("FAILED ")]
    by = failed[0].removeprefix("FAILED ") if status == FAILED and failed else None
    return Outcome(by, lines[-1], time.monotonic() - before)


def check_unbroken(tree: Path, outcomes: Sequence[Outcome]) -> None:
    """Raises `ValueError` where a test that caught something fails on the code as it is."""
    tests = sorted({outcome.by for outcome in outcomes if outcome.by is not None})
    if tests:
        status, lines = run_tests(tree, tests)
        if status != PASSED:
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            raise ValueError(f"without any mutation: {failed or lines[-1]}")


# -- what is written of it -------------------------------------------------------------------------


def record(slips: Sequence[Mutant], outcomes: Sequence[Outcome], folder: Path) -> None:
    """`mutants.json` and `mutants.md`; what the file said of an earlier suite (`before`) stays."""
    path = folder / "mutants.json"
    before = json.loads(path.read_text()).get("before") if path.exists() else None
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "make mutants",
        "seconds": round(sum(outcome.seconds for outcome in outcomes)),
        "before": before,
        "mutants": [
            {"name": slip.name, "file": slip.file, "caught": outcome.caught, "by": outcome.by}
            for slip, outcome in zip(slips, outcomes, strict=True)
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    (folder / "mutants.md").write_text(page(slips, content))


def page(slips: Sequence[Mutant], content: dict[str, Any]) -> str:
    """The table of what was caught, before the suite was changed and now."""
    before = content["before"] or {"commit": "none", "caught": {}}
    said = {True: "caught", False: "NOT CAUGHT", None: "-"}
    rows = [
        f"| {slip.name} | `{slip.file}` | `{slip.old}` | `{slip.new}` |"
        f" {said[before['caught'].get(slip.name)]} | {said[row['caught']]} |".replace("\n", " ")
        for slip, row in zip(slips, content["mutants"], strict=True)
    ]
    head = [
        "# Mutations of the code, and whether the tests catch them",
        "",
        f"Made by `{content['command']}` (`tests/mutants.py`) on {content['date']} in"
        f" {content['seconds']} s. Each mutation is",
        "made alone, in a copy of the tree, and is caught where one of its tests fails.",
        f'"Before" is the suite of commit {before["commit"]}, on its code; "-": no such code then.',
        "",
        "| mutation | file | text | becomes | before | now |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="parts of names; all mutations where none is given"
    )
    parser.add_argument("--docs", type=Path, help="folder for mutants.json and mutants.md")
    given = parser.parse_args(arguments)
    wanted = given.names or [""]
    slips = [slip for slip in MUTANTS if any(name in slip.name for name in wanted)]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree = Path(name)
        copy_tree(tree)
        for slip in slips:
            outcomes.append(try_out(tree, slip))
            caught = "caught" if outcomes[-1].caught else "NOT CAUGHT"
            print(f"{caught:<11} {slip.name}: {outcomes[-1].by or outcomes[-1].said}", flush=True)
        check_unbroken(tree, outcomes)
    if given.docs is not None:
        record(slips, outcomes, given.docs)
    print(f"{sum(outcome.caught for outcome in outcomes)} of {len(slips)} mutations caught")
    return 0 if all(outcome.caught for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
