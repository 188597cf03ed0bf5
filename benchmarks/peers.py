"""Langevin and Gibbs transitions beside those of other libraries, and beside their matmuls alone.

    pip install -c constraints.txt -c constraints-peers.txt -e '.[peers]'
    python -m benchmarks.peers [--threads 1 2] [--pairs 9] [--json [FILE]]

All have the same weights, step sizes and starts, and each runs chains of its own through the
library's own sampler: torchebm and ebmkit unadjusted Langevin on networks, where autograd gives
them their gradients; ebmkit, rbms and scikit-learn block Gibbs on an RBM, scikit-learn with
weights in float32. Peers get networks whose parameters ask for no gradient, their fastest way.

`matmul` is no sampler: it is the matrix products of one transition and nothing else, forward and
back to the input for Langevin, two for Gibbs, as `linear`, `@` and `addmm` make them. Ours has
another way for the product with 2 columns (`pull_back` in `pipeline/energies/mlp.py`), which part
of its share of that limit comes from. The result is {"rows": [...]}, a row for each
energy, library and number of threads:

    transitions_per_second  of all chains at once
    ratio_to_ours           its speed over ours at as many threads
    share_of_matmul_limit   its speed over that of the matmuls at as many threads
    ess_per_second          of the chains' energies, as `benchmarks.kernels` has it, from
                            transitions of the library's own at the speed above

All sides of an energy, at every number of threads, are timed in alternation, and ratios are medians
over rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks import harness
from benchmarks.harness import say
from benchmarks.kernels import ENTRIES, MODELS, Pair
from pipeline.common.process import keep_freed_memory
from pipeline.energies.base import Energy
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.evaluation.diagnostics import effective_sample_size

Advance = Callable[[int], Tensor]
"""Runs so many transitions from where its chains are, and returns their positions."""

KERNELS = {"2-D MLP": "ula", "784-512-512-1 MLP": "ula", "784x500 RBM": "gibbs"}
PACKAGES = ("torch", "numpy", "scikit-learn", "torchebm", "ebmkit", "rbms")
OURS, LIMIT = "ours", "matmul"
SECONDS = 0.15
"""One timed run takes about so long."""


def module_of(energy: MLPEnergy) -> nn.Module:
    """Return the energy as its user would write it for another library, over the same weights."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for layer in energy.layers:
                layers += [layer, nn.SiLU()]
            self.net = nn.Sequential(*layers[:-1])

        def forward(self, x: Tensor) -> Tensor:
            base = x.square().sum(1) / (2 * energy.base_scale**2)
            return self.net(x).squeeze(1) + base

    return Network().requires_grad_(False)


def torchebm(energy: MLPEnergy, step_size: float, x: Tensor) -> Advance:
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.network = module_of(energy)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    sampler = LangevinDynamics(Model(), step_size=step_size)
    return going_on(lambda x, n: sampler.sample(x=x, n_steps=n), x)


def ebmkit_langevin(energy: MLPEnergy, step_size: float, x: Tensor) -> Advance:
    import ebm

    sampler, model = ebm.LangevinDynamics(step_size=step_size), module_of(energy)
    return going_on(lambda x, n: sampler.sample(model, x, steps=n), x)


def ebmkit_gibbs(energy: BernoulliRBM, x: Tensor) -> Advance:
    import ebm
    from ebm.nets import RBM

    model = RBM(energy.dimension, len(energy.hidden_bias))
    model.W, model.b, model.c = energy.weight, energy.visible_bias, energy.hidden_bias
    return going_on(lambda x, n: ebm.GibbsSampler(steps=n).sample(model, x), x)


def rbms(energy: BernoulliRBM, x: Tensor) -> Advance:
    from rbms.bernoulli_bernoulli.classes import BBRBM

    model = BBRBM(
        energy.weight.detach().T.contiguous(),
        energy.visible_bias.detach(),
        energy.hidden_bias.detach(),
    )

    def advance(x: Tensor, n: int) -> Tensor:
        chains = {"visible": x, "weights": x.new_ones(len(x))}
        for _ in range(n):
            model.sample_visibles(model.sample_hiddens(chains))
        return chains["visible"]

    return going_on(advance, x)


def scikit_learn(energy: BernoulliRBM, x: Tensor) -> Advance:
    from sklearn.neural_network import BernoulliRBM as Theirs

    model = Theirs(len(energy.hidden_bias), random_state=0)
    model.components_ = energy.weight.detach().numpy()
    model.intercept_visible_ = energy.visible_bias.detach().numpy()
    model.intercept_hidden_ = energy.hidden_bias.detach().numpy()
    v: Any = x.numpy()

    def advance(n: int) -> Tensor:
        nonlocal v
        for _ in range(n):
            v = model.gibbs(v)
        return torch.from_numpy(v).to(x.dtype)

    return advance


def going_on(sample: Callable[[Tensor, int], Tensor], x: Tensor) -> Advance:
    """Return `sample` as one that goes on from where it left its chains."""

    def advance(n: int) -> Tensor:
        nonlocal x
        x = sample(x, n)
        return x

    return advance


def matmuls(energy: Energy, x: Tensor) -> Advance:
    """Return the matrix products of a transition as if they were one; its positions stay."""
    if isinstance(energy, BernoulliRBM):
        weight, hidden = energy.weight.detach(), energy.hidden_bias.detach()
        visible, units = energy.visible_bias.detach(), torch.rand(len(x), len(hidden))

        def product() -> None:
            linear(x, weight, hidden)
            torch.addmm(visible, units, weight)
    else:
        assert isinstance(energy, MLPEnergy)
        modules: Any = energy.layers
        layers = [(layer.weight.detach(), layer.bias.detach()) for layer in modules]
        values = [x, *(torch.rand(len(x), len(bias)) for _, bias in layers)]

        def product() -> None:
            for value, layer in zip(values, layers, strict=False):
                linear(value, *layer)
            for value, (weight, _) in zip(values[1:], layers[:-1], strict=False):
                value @ weight

    def advance(n: int) -> Tensor:
        for _ in range(n):
            product()
        return x

    return advance


def sides(model: str, energy: Energy, pair: Pair, x: Tensor) -> dict[str, Advance]:
    """Return who runs chains of the `model`'s energy from `x` [N, d], by name, ours first."""
    if isinstance(energy, BernoulliRBM):
        peers: dict[str, Advance] = {
            "ebmkit": ebmkit_gibbs(energy, x),
            "rbms": rbms(energy, x),
            "scikit-learn": scikit_learn(energy, x),
        }
    else:
        assert isinstance(energy, MLPEnergy)
        step_size = ENTRIES[KERNELS[model]].step_size
        assert step_size is not None
        peers = {
            "torchebm": torchebm(energy, step_size, x),
            "ebmkit": ebmkit_langevin(energy, step_size, x),
        }
    return {OURS: pair.ours, **peers}


def with_threads(threads: int, advance: Advance, transitions: int) -> float:
    """Return what so many transitions take, seconds, with `threads` in torch and in NumPy.

    Some run untimed first: threads of the library before wait for work for a while, on the
    processors that this one needs.
    """
    torch.set_num_threads(threads)
    with threadpool_limits(threads, user_api="blas"):
        advance(1 + transitions // 3)
        return harness.seconds(partial(advance, transitions))


def ess(energy: Energy, advance: Advance, draws: int) -> float:
    """Return the ESS a transition of the chains' energies, summed over chains."""
    with torch.no_grad():
        values = torch.stack([energy(advance(1)) for _ in range(draws)], 1)
    return float(effective_sample_size(values.double().numpy())) / draws


def measure(model: str, threads: list[int], pairs: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the rows of one energy, as the module's docstring describes them."""
    torch.manual_seed(seed)
    make, chains, _, share = MODELS[model]
    energy, entry = make(), ENTRIES[KERNELS[model]]
    pair = Pair(entry, energy, chains // share, torch.Generator().manual_seed(seed))
    x = pair.ours(entry.draws).clone()
    found = {
        who: ess(energy, advance, entry.draws) * share
        for who, advance in sides(model, energy, pair, x).items()
    }
    pair.repeat(share)
    x = pair.ours(1).clone()
    all_sides = {**sides(model, energy, pair, x), LIMIT: matmuls(energy, x)}
    keys = [(who, count) for count in threads for who in all_sides]
    counts = {
        (who, count): harness.repetitions(partial(with_threads, count, all_sides[who]), SECONDS)
        for who, count in keys
    }
    taken = harness.alternate(
        pairs,
        *(partial(with_threads, count, all_sides[who], counts[who, count]) for who, count in keys),
    )
    each = {
        key: [seconds / counts[key] for seconds in times]
        for key, times in zip(keys, taken, strict=True)
    }
    return [
        {
            "energy": model,
            "kernel": KERNELS[model],
            "who": who,
            "threads": count,
            "chains": len(x),
            "transitions_per_second": 1 / statistics.median(each[who, count]),
            "ratio_to_ours": harness.median_ratio(each[OURS, count], each[who, count]),
            "share_of_matmul_limit": harness.median_ratio(each[LIMIT, count], each[who, count]),
            "ess_per_second": (
                found[who] / statistics.median(each[who, count]) if who in found else None
            ),
        }
        for who, count in keys
    ]


def main() -> None:
    parser = harness.command_line(__doc__, "pairs", "json")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    harness.add_only(parser, KERNELS)
    arguments = parser.parse_args()
    keep_freed_memory()  # as a pool does, for all alike
    rows = []
    say(
        f"{'energy':<19}{'who':<14}{'threads':>8}{'transitions/s':>15}{'to ours':>9}"
        f"{'of matmul':>11}{'ESS/s':>12}"
    )
    for model in arguments.only:
        for row in measure(model, arguments.threads, arguments.pairs):
            rows.append(row)
            say(
                f"{model:<19}{row['who']:<14}{row['threads']:8}"
                f"{row['transitions_per_second']:15.1f}{row['ratio_to_ours']:9.3f}"
                f"{row['share_of_matmul_limit']:11.3f}{row['ess_per_second'] or 0:12.1f}"
            )
    harness.write({**harness.conditions(*PACKAGES), "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
