"""Every kernel beside a bare loop written by hand (`benchmarks.loops`).

    python -m benchmarks.kernels [--threads 1] [--pairs 9] [--only KERNEL[:ENERGY]]
        [--device cpu|cuda] [--json [FILE]]

Kernel and loop have the same weights, chains and step sizes. The result is {"rows": [...]}, a row
for each kernel and energy:

    transitions_per_second  of all `chains` at once
    ratio_to_loop           the kernel's speed over the loop's: the median over pairs of runs
    ess_per_second          of the chains' energies (on a ladder: of the model's rung), summed over
                            chains: the bulk ESS (Vehtari et al. 2021) of `ess_chains` chains over
                            `draws` transitions, times chains / ess_chains, at the speed above

Chains start from the energy's base law, and as many transitions adapt step sizes first. Chains are
independent, so `ess` never falls far below their number: where it is no more than that, a run of
`draws` transitions is too short to tell more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import harness, loops
from benchmarks.harness import say
from pipeline.common.process import keep_freed_memory
from pipeline.energies.base import Energy
from pipeline.energies.conv import ConvEnergy, Residual
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.energies.target import Target
from pipeline.evaluation.diagnostics import effective_sample_size
from pipeline.kernels import (
    gibbs,
    gibbs_with_gradients,
    hmc,
    mala,
    metropolis_hastings,
    random_walk,
    replica_exchange,
    single_site,
    ula,
)
from pipeline.kernels.adaptation import Ladder, StepSizes
from pipeline.kernels.base import Kernel

RUNGS = 8
SCALE = 1.0
HMC = {"leapfrog_steps": 5, "jitter": 0.2}
SECONDS = 0.3
"""One timed run takes about so long."""

Loop = Callable[[torch.Generator, loops.Tensors, int], tuple[loops.Tensors, Tensor]]


class Model(NamedTuple):
    """An energy and the chains that it is timed on.

    There are `chains` of them, on a ladder `rung` a rung. Every `share`-th one runs for its ESS.
    """

    make: Callable[[], Energy]
    chains: int
    rung: int
    share: int


def _mlp(dimension: int, width: int) -> Callable[[], Energy]:
    return lambda: MLPEnergy((dimension,), (width, width), base_scale=1.0, spectral_norm=False)


MODELS = {
    "2-D MLP": Model(_mlp(2, 128), 1024, 128, 8),
    "784-512-512-1 MLP": Model(_mlp(784, 512), 1024, 128, 8),
    "28x28 conv": Model(
        lambda: ConvEnergy(
            (28, 28), (16, 32, 64), hidden=128, scales=1, spectral_norm=False, base_scale=1.0
        ),
        64,
        8,
        4,
    ),
    "784x500 RBM": Model(lambda: BernoulliRBM((784,), hidden=500, weight_scale=0.05), 1000, 125, 5),
}
CONTINUOUS = ("2-D MLP", "784-512-512-1 MLP", "28x28 conv")


class Entry(NamedTuple):
    """A kernel and its loop, with what they run on.

    `draws` transitions give the ESS. `step_size` is where the adaptation to `acceptance` starts.
    """

    kernel: Kernel
    loop: Callable[..., tuple[loops.Tensors, Tensor]]
    models: tuple[str, ...]
    draws: int = 300
    step_size: float | None = None
    acceptance: float | None = None
    parameters: dict[str, Any] = {}  # noqa: RUF012 - never written to
    gradient_dtype: torch.dtype | None = None
    inner: str | None = None


DISCRETE = ("784x500 RBM",)
ENTRIES = {
    "random_walk": Entry(
        random_walk.kernel, loops.random_walk, CONTINUOUS, step_size=0.1, acceptance=0.3
    ),
    "metropolis_hastings": Entry(
        metropolis_hastings.with_proposal(metropolis_hastings.independence(SCALE)),
        loops.metropolis_hastings,
        CONTINUOUS,
    ),
    # without an accept step there is nothing to adapt to: a step size that biases little
    "ula": Entry(ula.kernel, loops.ula, CONTINUOUS, step_size=0.05),
    "mala": Entry(mala.kernel, loops.mala, CONTINUOUS, step_size=0.05, acceptance=0.57),
    "mala_bf16": Entry(
        mala.kernel,
        loops.mala,
        CONTINUOUS,
        step_size=0.05,
        acceptance=0.57,
        gradient_dtype=torch.bfloat16,
    ),
    "hmc": Entry(hmc.kernel, loops.hmc, CONTINUOUS, 100, 0.1, 0.8, HMC),
    "hmc_bf16": Entry(hmc.kernel, loops.hmc, CONTINUOUS, 100, 0.1, 0.8, HMC, torch.bfloat16),
    "gibbs": Entry(gibbs.kernel, loops.gibbs, DISCRETE),
    "gibbs_with_gradients": Entry(
        gibbs_with_gradients.kernel, loops.gibbs_with_gradients, DISCRETE
    ),
    "single_site": Entry(single_site.kernel, loops.single_site, DISCRETE),
    "replica_exchange(mala)": Entry(
        replica_exchange.over(mala.kernel, RUNGS, 1),
        loops.replica_exchange,
        CONTINUOUS,
        100,
        0.05,
        0.57,
        inner="mala",
    ),
    "replica_exchange(gibbs)": Entry(
        replica_exchange.over(gibbs.kernel, RUNGS, 1),
        loops.replica_exchange,
        DISCRETE,
        100,
        inner="gibbs",
    ),
}


class Pair:
    """A kernel and its loop, each over chains of its own, which it takes on from where they are.

    The loop's chains start where the kernel's are when it is made.
    """

    def __init__(
        self, entry: Entry, energy: Energy, count: int, generator: torch.Generator
    ) -> None:
        self._entry, self._energy, self.generator = entry, energy, generator
        self._rungs = RUNGS if entry.inner else 1
        self.step_sizes = [entry.step_size or 0.0] * self._rungs
        self.place(
            energy.sample_base(self._rungs * count, generator).to(next(energy.parameters()).dtype)
        )

    def place(self, position: Tensor) -> None:
        """Put the chains at `position` [R N, *shape]."""
        self.rows, self.count = len(position), len(position) // self._rungs
        beta = (
            Ladder(RUNGS, 0).betas.to(position).repeat_interleave(self.count)
            if self._entry.inner
            else None
        )
        self._target = Target(self._energy, beta, self._entry.gradient_dtype)
        self._state = self._entry.kernel.init(position, self._target)
        self.acceptance = position.new_ones(self.rows)

    def repeat(self, share: int) -> None:
        """Have every chain `share` times."""
        rungs = self._state.position.unflatten(0, (self._rungs, -1))
        self.place(rungs.repeat(1, share, *(1,) * (rungs.ndim - 2)).flatten(0, 1))

    def adapt(self, transitions: int) -> None:
        """Run so many transitions, and move step sizes to the entry's acceptance after each."""
        if self._entry.acceptance is None:
            self.ours(transitions)
            return
        assert self._entry.step_size is not None
        sizes = StepSizes(self._entry.step_size, self._rungs, self._entry.acceptance, None)
        for _ in range(transitions):
            self.ours(1)
            sizes.update(self.acceptance.view(self._rungs, -1).mean(1))
            self.step_sizes = sizes.values

    @property
    def _parameters(self) -> dict[str, Any]:
        """The parameters as the kernel takes them: on a ladder, a step size for every chain."""
        if self._entry.step_size is None:
            return self._entry.parameters
        if not self._entry.inner:
            return self._entry.parameters | {"step_size": self.step_sizes[0]}
        by_rung = torch.tensor(
            self.step_sizes, dtype=self.acceptance.dtype, device=self.acceptance.device
        )
        return self._entry.parameters | {"step_size": by_rung.repeat_interleave(self.count)}

    def ours(self, transitions: int) -> Tensor:
        """Run the kernel `transitions` times; return the positions."""
        step, state, parameters, total = (
            self._entry.kernel.step,
            self._state,
            self._parameters,
            torch.zeros_like(self.acceptance),
        )
        for _ in range(transitions):
            state, info = step(self.generator, state, self._target, **parameters)
            total += info.acceptance
        self._state, self.acceptance = state, total / transitions
        return state.position

    def energies(self, draws: int) -> Tensor:
        """Return the chains' energies after each of `draws` transitions, `[count, draws]`.

        On a ladder they are those of the model's rung.
        """
        values = []
        for _ in range(draws):
            self.ours(1)
            energy = (
                self._state.energy
                if hasattr(self._state, "energy")
                else self._target.energy(self._state.position)
            )
            values.append(energy[-self.count :])
        return torch.stack(values, 1)

    def loop(self) -> Callable[[int], Tensor]:
        """Return the loop as a function, `transitions -> positions`."""
        run, chains = self._loop(), tuple(field.clone() for field in self._state)

        def advance(transitions: int) -> Tensor:
            nonlocal chains
            chains, _ = run(self.generator, chains, transitions)
            return chains[0]

        return advance

    def _loop(self) -> Loop:
        entry, beta, parameters = self._entry, self._target.beta, self._parameters
        if entry.loop is loops.gibbs:
            weights = rbm_tensors(self._energy)
            return lambda generator, chains, n: loops.gibbs(generator, chains, n, *weights)
        of = functions(self._energy, beta)
        if entry.gradient_dtype is not None:
            of = loops.mixed(
                of, functions(self._energy, beta, entry.gradient_dtype), entry.gradient_dtype
            )
        if entry.inner == "gibbs":
            weight, visible, hidden = rbm_tensors(self._energy)
            inner = partial(
                loops.gibbs, transitions=1, weight=weight, visible=visible, hidden=hidden, beta=beta
            )
        elif entry.inner == "mala":
            inner = partial(loops.mala, transitions=1, of=of, **parameters)
        if entry.inner:
            return lambda generator, chains, n: loops.replica_exchange(
                generator, chains, n, of, RUNGS, inner
            )
        if entry.loop is loops.metropolis_hastings:
            parameters = {"scale": SCALE}
        return lambda generator, chains, n: entry.loop(generator, chains, n, of, **parameters)


def functions(
    energy: Energy, beta: Tensor | None, dtype: torch.dtype | None = None
) -> loops.Functions:
    """Return the loops' form of an energy, over copies of its weights as plain tensors."""

    def copied(tensor: Any) -> Tensor:
        return tensor.detach().clone().to(dtype or tensor.dtype)

    def plain(layer: nn.Module) -> loops.Layer:
        return copied(layer.weight), None if layer.bias is None else copied(layer.bias)

    if isinstance(energy, BernoulliRBM):
        return loops.rbm(*rbm_tensors(energy), beta)
    beta = beta if beta is None or dtype is None else beta.to(dtype)
    precision = 1 / energy.base_scale**2
    if isinstance(energy, MLPEnergy):
        return loops.mlp([plain(layer) for layer in energy.layers], precision, beta)
    assert isinstance(energy, ConvEnergy)
    network: Any = energy.networks[0]
    (stem, *stages), (_, _, hidden, _, last) = network
    blocks = [
        loops.Block(
            plain(stage.branch[1]),
            plain(stage.branch[3]),
            None if isinstance(stage.shortcut, nn.Identity) else plain(stage.shortcut),
        )
        for stage in stages
        if isinstance(stage, Residual)
    ]
    return loops.conv(plain(stem), blocks, plain(hidden), plain(last), precision, beta)


def rbm_tensors(energy: Energy) -> tuple[Tensor, Tensor, Tensor]:
    assert isinstance(energy, BernoulliRBM)
    return energy.weight.detach(), energy.visible_bias.detach(), energy.hidden_bias.detach()


def measure(name: str, model: str, pairs: int, device: str, seed: int = 0) -> dict[str, Any]:
    """Return one row, as the module's docstring describes it."""
    entry, (make, chains, rung, share) = ENTRIES[name], MODELS[model]
    torch.manual_seed(seed)
    pair = Pair(
        entry,
        make().to(device),
        (rung if entry.inner else chains) // share,
        torch.Generator(device).manual_seed(seed),
    )
    pair.adapt(entry.draws)
    energies = pair.energies(entry.draws).cpu().double()
    ess = float(effective_sample_size(energies.numpy())) * share
    pair.repeat(share)
    loop = pair.loop()
    loop(2)

    def timed(advance: Callable[[int], Tensor], transitions: int) -> float:
        return harness.seconds(partial(advance, transitions), device)

    transitions = harness.repetitions(partial(timed, pair.ours), SECONDS)
    ours, theirs = harness.alternate(
        pairs, *(partial(timed, side, transitions) for side in (pair.ours, loop))
    )
    speed = transitions / statistics.median(ours)
    return {
        "kernel": name,
        "energy": model,
        "transitions_per_second": speed,
        "ess_per_second": ess / entry.draws * speed,
        "ratio_to_loop": harness.median_ratio(theirs, ours),
        "threads": torch.get_num_threads(),
        "chains": pair.rows,
        "ess": ess,
        "ess_chains": len(energies),
        "draws": entry.draws,
        "step_size": pair.step_sizes[-1],
        "acceptance": float(pair.acceptance[-pair.count :].mean()),
        "ratios": [round(ratio, 4) for ratio in harness.ratios(theirs, ours)],
        "device": device,
    }


def rows() -> list[tuple[str, str]]:
    """Return (kernel, energy) of every row."""
    return [(name, model) for name, entry in ENTRIES.items() for model in entry.models]


def main() -> None:
    parser = harness.command_line(__doc__, "pairs", "device", "json")
    parser.add_argument("--threads", type=int, default=1)
    harness.add_only_row(parser, "kernel")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as a pool does, for kernel and loop alike
    made = []
    say(
        f"{'kernel':<25}{'energy':<19}{'chains':>7}{'transitions/s':>15}{'ESS/s':>12}{'to loop':>9}"
    )
    for name, model in harness.chosen(rows(), arguments.only, parser):
        row = measure(name, model, arguments.pairs, arguments.device)
        made.append(row)
        say(
            f"{name:<25}{model:<19}{row['chains']:7}{row['transitions_per_second']:15.1f}"
            f"{row['ess_per_second']:12.1f}{row['ratio_to_loop']:9.3f}"
        )
    harness.write({**harness.conditions("torch"), "rows": made}, arguments.json)


if __name__ == "__main__":
    main()
