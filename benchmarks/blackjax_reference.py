"""Random-walk Metropolis, MALA and HMC beside BlackJAX's, in float64.

    pip install -c constraints.txt -c constraints-reference.txt -e '.[reference]'
    python -m benchmarks.blackjax_reference [--chains 64] [--transitions 2000] [--repeats 8]
        [--json [FILE]]

Both libraries have the same laws, step sizes and starts in equilibrium. A row, for each law and
kernel, says how far the sampled means and variances lie from the exact ones, in Monte Carlo
standard errors; the mean acceptance; and the bulk ESS per transition (Vehtari et al. 2021),
averaged over the coordinates, by ArviZ for both alike. Standard errors are those over independent
repeats.

The benchmark fails where a ratio of ESS leaves 0.9 to 1.1, where two acceptances are more than
0.003 apart, or where a moment is off by more than 4 errors. The acceptance is the sharpest of the
three: near its best value a step size hardly shows in ESS.
"""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from arviz_stats.base.array import array_stats

from benchmarks import harness
from benchmarks.harness import say
from pipeline.energies.laws import LAWS, Gaussian, GaussianMixture
from pipeline.energies.target import Target
from pipeline.evaluation.diagnostics import effective_sample_size
from pipeline.kernels import hmc, mala, random_walk

OURS = {"random_walk": random_walk.kernel, "mala": mala.kernel, "hmc": hmc.kernel}
RATIO = (0.9, 1.1)
ACCEPTANCE_GAP = 0.003  # about five standard errors of the noisiest pair
LARGEST_Z = (
    4.0  # 168 z-scores in all: a correct pair of libraries exceeds it about once in a hundred runs
)
PACKAGES = ("blackjax", "jax", "jaxlib", "torch", "numpy", "scipy", "arviz-stats")

SCALES = np.geomspace(0.5, 2.0, 10)
# masses between 1 and the ideal 1 / scale^2, unequal so that a mass taken for its inverse would
# show
PARAMETERS: dict[str, dict[str, dict[str, Any]]] = {
    "gaussian": {
        "random_walk": {"step_size": 1.2},
        "mala": {"step_size": 0.4},
        "hmc": {"step_size": 0.6, "leapfrog_steps": 2, "mass": [1.0, 1.5]},
    },
    "scales": {
        "random_walk": {"step_size": 0.6},
        "mala": {"step_size": 0.2},
        "hmc": {"step_size": 0.6, "leapfrog_steps": 2, "mass": (1 / SCALES).tolist()},
    },
    "mixture": {
        "random_walk": {"step_size": 1.5},
        "mala": {"step_size": 0.4},
        "hmc": {"step_size": 0.6, "leapfrog_steps": 3, "mass": 1.0},
    },
}


class Run(NamedTuple):
    """One library's chains.

    `draws` is [chains, transitions, d]; `acceptance`, the accept probabilities, is
    [chains, transitions].
    """

    draws: np.ndarray
    acceptance: np.ndarray


class Components(NamedTuple):
    """The mixture sum_k w_k N(m_k, C_k).

    `weights` [K] sum to 1; `means` are [K, d], `covariances` [K, d, d].
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact mean and variance, each [d]."""
        mean = self.weights @ self.means
        within = np.diagonal(self.covariances, axis1=1, axis2=2)
        return mean, self.weights @ (within + (self.means - mean) ** 2)


def law_of(name: str) -> Gaussian | GaussianMixture:
    if name == "scales":
        return Gaussian(torch.linspace(-1, 1, len(SCALES)), torch.from_numpy(SCALES**2).diag())
    law = LAWS[name]()
    assert isinstance(law, Gaussian | GaussianMixture)
    return law


def components_of(law: Gaussian | GaussianMixture) -> Components:
    if isinstance(law, Gaussian):
        return Components(
            np.ones(1), law.mean.numpy()[None], (law.factor @ law.factor.T).numpy()[None]
        )
    return Components(
        (law.weights / law.weights.sum()).numpy(),
        law.means.numpy(),
        (law.factors @ law.factors.mT).numpy(),
    )


def run_ours(
    kernel: str,
    law: Gaussian | GaussianMixture,
    parameters: dict[str, Any],
    size: tuple[int, int, int],
    seed: int,
) -> Run:
    """Run this project's kernel. `size`: chains, transitions kept, transitions before them."""
    chains, transitions, warm_up = size
    generator = torch.Generator().manual_seed(seed)
    target = Target(law)
    state = OURS[kernel].init(law.sample(chains, generator), target)
    draws, acceptance = (
        torch.empty(chains, transitions, law.dimension),
        torch.empty(chains, transitions),
    )
    for index in range(-warm_up, transitions):
        state, info = OURS[kernel].step(generator, state, target, **parameters)
        if index >= 0:
            draws[:, index], acceptance[:, index] = state.position, info.acceptance
    return Run(draws.numpy(), acceptance.numpy())


def run_theirs(
    kernel: str,
    law: Gaussian | GaussianMixture,
    parameters: dict[str, Any],
    size: tuple[int, int, int],
    seed: int,
) -> Run:
    """Run BlackJAX's kernel, on a density of its own in JAX, as `run_ours` runs this project's."""
    chains, transitions, warm_up = size
    weights, means, covariances = components_of(law)
    log_weights = jnp.log(weights) - jnp.linalg.slogdet(covariances)[1] / 2
    precisions = jnp.linalg.inv(covariances)

    def log_density(x: jax.Array) -> jax.Array:
        centred = x - means
        return jax.scipy.special.logsumexp(
            log_weights - jnp.einsum("ki,kij,kj->k", centred, precisions, centred) / 2
        )

    step_size = parameters["step_size"]
    if kernel == "random_walk":
        # sigma is a standard deviation, or several, though its docstring calls it a covariance
        algorithm = blackjax.additive_step_random_walk.normal_random_walk(
            log_density, sigma=jnp.full(law.dimension, step_size)
        )
    elif kernel == "mala":
        algorithm = blackjax.mala(log_density, step_size)
    else:
        inverse_mass = jnp.broadcast_to(1 / jnp.asarray(parameters["mass"]), law.dimension)
        algorithm = blackjax.hmc(
            log_density, step_size, inverse_mass, num_integration_steps=parameters["leapfrog_steps"]
        )

    def transition(state: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        state, info = algorithm.step(key, state)
        return state, (state.position, info.acceptance_rate)

    def chain(key: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, warm_up + transitions)
        _, (draws, acceptance) = jax.lax.scan(transition, algorithm.init(start), keys)
        return draws[warm_up:], acceptance[warm_up:]

    starts = law.sample(chains, torch.Generator().manual_seed(seed)).numpy()
    draws, acceptance = jax.jit(jax.vmap(chain))(
        jax.random.split(jax.random.key(seed), chains), starts
    )
    return Run(np.asarray(draws), np.asarray(acceptance))


def summarise(run: Run, truth: Components, repeats: int) -> dict[str, Any]:
    """Return z-scores [d], acceptance [repeats] and bulk ESS per transition [repeats, d].

    The scores are from all chains, the others from each repeat's own.
    """
    mean, variance = truth.moments()
    assert run.draws.dtype == run.acceptance.dtype == np.float64

    def z_scores(values: np.ndarray, expected: np.ndarray) -> list[float]:
        errors = array_stats.mcse(values, chain_axis=0, draw_axis=1, method="mean")
        scores: list[float] = ((values.mean((0, 1)) - expected) / errors).tolist()
        return scores

    draws = np.split(run.draws, repeats)
    ess = np.stack([effective_sample_size(part) for part in draws])
    return {
        "mean_z": z_scores(run.draws, mean),
        "variance_z": z_scores((run.draws - mean) ** 2, variance),
        "acceptance": np.stack(np.split(run.acceptance, repeats)).mean((1, 2)),
        "ess": ess / draws[0][..., 0].size,
    }


def mean_and_error(by_repeat: np.ndarray) -> tuple[float, float]:
    return float(by_repeat.mean()), float(by_repeat.std(ddof=1) / len(by_repeat) ** 0.5)


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return one row. A figure with its standard error is a pair, and so are ours and theirs."""
    sides = (ours, theirs)
    acceptances = [mean_and_error(side["acceptance"]) for side in sides]
    by_repeat = [mean_and_error(side["ess"].mean(1)) for side in sides]
    (a, error_a), (b, error_b) = by_repeat
    ratio = a / b
    by_coordinate = ours["ess"].mean(0) / theirs["ess"].mean(0)
    acceptance_gap = abs(acceptances[0][0] - acceptances[1][0])
    largest_z = max(abs(z) for side in sides for z in side["mean_z"] + side["variance_z"])
    return {
        "mean_z": [side["mean_z"] for side in sides],
        "variance_z": [side["variance_z"] for side in sides],
        "acceptance": acceptances,
        "ess_per_transition": by_repeat,
        "ess_ratio": [ratio, ratio * ((error_a / a) ** 2 + (error_b / b) ** 2) ** 0.5],
        "ess_ratio_by_coordinate": by_coordinate.tolist(),
        "agrees": bool(
            RATIO[0] <= ratio <= RATIO[1]
            and acceptance_gap <= ACCEPTANCE_GAP
            and largest_z <= LARGEST_Z
        ),
    }


HEADER = (
    f"{'':<22} {'largest |z|':^21}   {'acceptance':^30}   {'bulk ESS per transition':^30}  "
    f" {'':^12}\n{'law':<9} {'kernel':<12} {'of means':>10} {'variances':>10}   {'ours':<14} "
    f" {'BlackJAX':<14}   {'ours':<14}  {'BlackJAX':<14}   {'ratio':<12}  agrees"
)


def show(row: dict[str, Any]) -> str:
    def largest(name: str) -> str:
        return " / ".join(f"{max(map(abs, z)):.1f}" for z in row[name])

    def pair(name: str) -> str:
        return "  ".join(f"{value:.4f} ±{error:.4f}" for value, error in row[name])

    ratio, error = row["ess_ratio"]
    return (
        f"{row['law']:<9} {row['kernel']:<12} {largest('mean_z'):>10} {largest('variance_z'):>10}  "
        f" {pair('acceptance')}   {pair('ess_per_transition')}   {ratio:.3f} ±{error:.3f} "
        f" {'yes' if row['agrees'] else 'NO'}"
    )


def rows_of(size: tuple[int, int, int], repeats: int, seed: int) -> list[dict[str, Any]]:
    """Return a row for each law and kernel, each shown as it is made."""
    rows: list[dict[str, Any]] = []
    for name, kernels in PARAMETERS.items():
        law = law_of(name)
        for kernel, parameters in kernels.items():
            # different seeds, so that the two are independent
            first = seed + 2 * len(rows)
            ours, theirs = (
                summarise(
                    run(kernel, law, parameters, size, first + offset),
                    components_of(law),
                    repeats,
                )
                for offset, run in enumerate((run_ours, run_theirs))
            )
            row = {"law": name, "kernel": kernel, "parameters": parameters}
            rows.append(row | compare(ours, theirs))
            say(show(rows[-1]))
    return rows


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    parser.add_argument("--chains", type=int, default=64, help="in each repeat")
    parser.add_argument("--transitions", type=int, default=2000)
    parser.add_argument(
        "--warm-up", type=int, default=200, help="transitions made first and dropped"
    )
    parser.add_argument("--repeats", type=int, default=8, help="independent ones, at least 2")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # the tensors are small
    size = (arguments.chains * arguments.repeats, arguments.transitions, arguments.warm_up)
    started = time.perf_counter()
    say(HEADER)
    rows = rows_of(size, arguments.repeats, arguments.seed)
    content = {
        "command": shlex.join(["python", "-m", "benchmarks.blackjax_reference", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        **harness.conditions(),
        "versions": harness.versions(*PACKAGES),
        "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    harness.write(content, arguments.json)
    if not all(row["agrees"] for row in rows):
        sys.exit("the two libraries do not agree")


if __name__ == "__main__":
    main()
