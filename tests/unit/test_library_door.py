"""What a user's own training loop may call between its steps: nothing changes the module given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.chains.pool import Pool
from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.common.types import Weights
from pipeline.energies.base import Energy
from pipeline.energies.composition import Conjunction, Disjunction, Negation
from pipeline.energies.conditional_mlp import ConditionalMLP
from pipeline.energies.custom import CustomEnergy
from pipeline.energies.frozen import frozen
from pipeline.energies.laws import Gaussian
from pipeline.energies.maxent.features import GivenFeatures
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.quadrature import MidpointRule
from pipeline.energies.rbm import BernoulliRBM
from pipeline.energies.target import Target
from pipeline.energies.weights import flatten, signature
from pipeline.evaluation import likelihood, search
from pipeline.evaluation.ais import log_partition
from pipeline.evaluation.conditional import log_likelihood
from pipeline.evaluation.paths import Bridge
from pipeline.evaluation.samples import draw_from_noise
from pipeline.kernels import gibbs, gibbs_with_gradients, hmc, mala, random_walk, single_site, ula
from pipeline.objectives.base import Batch, NegativeSide, PositiveSide
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.objectives.noise_contrastive import NoiseContrastive

BOX = (-3.0, 3.0)
ROWS = torch.randn(20, 2, generator=torch.Generator().manual_seed(9))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def spend(steps: Iterator[Any]) -> None:
    for _ in steps:
        pass


def perceptron() -> MLPEnergy:
    """Its spectral norms are iterated by every pass in training mode, which changes buffers."""
    return MLPEnergy((2,), (8, 8), spectral_norm=True, base_scale=1.0)


def kernel_of(module: Any, **parameters: Any) -> Callable[[Energy], object]:
    def use(energy: Energy) -> object:
        target = Target(energy)
        state = module.kernel.init(energy.sample_base(4, seeded()), target)
        return module.kernel.step(seeded(), state, target, **parameters)

    return use


def plan(module: Any, **parameters: Any) -> ChainPlan:
    return ChainPlan(module.kernel, parameters, 2, 0.0)


CONTINUOUS: dict[str, Callable[[Any], object]] = {
    "random_walk": kernel_of(random_walk, step_size=0.1),
    "ula": kernel_of(ula, step_size=0.1),
    "mala": kernel_of(mala, step_size=0.1),
    "hmc": kernel_of(hmc, step_size=0.1, leapfrog_steps=2, jitter=0.0, mass=1.0),
    "bfloat16": lambda energy: Target(energy, gradient_dtype=torch.bfloat16).gradient(ROWS),
    "sampler": lambda energy: Sampler(energy, plan(mala, step_size=0.1), 4, seeded()).advance(
        seeded(), 2
    ),
    "pool": lambda energy: Pool(
        energy, plan(mala, step_size=0.1), 4, pool=0, seed=0, device="cpu"
    ).advance(Weights(0, flatten(energy))),
    "draw_from_noise": lambda energy: spend(
        draw_from_noise(energy, plan(mala, step_size=0.1), 4, 8, seeded())
    ),
    "argmax": lambda energy: search.argmax(energy, seeded()),
    "ais": lambda energy: spend(log_partition(energy, 3, 4, seeded())),
    "bridge": lambda energy: spend(
        log_partition(Bridge(Gaussian.fit(ROWS, 0.0), energy), 3, 4, seeded(), ROWS)
    ),
    "quadrature": lambda energy: MidpointRule(*BOX, 10).precise_log_integral(energy),
    "exact": lambda energy: likelihood.exact(energy, 0.0, ROWS, ROWS),
    "log_ratio": lambda energy: pipeline.log_ratio(energy, ROWS, ROWS),
    "compositions": lambda energy: [
        kernel_of(mala, step_size=0.1)(make)
        for make in (
            Conjunction([energy, energy]),
            Disjunction([energy, energy]),
            Negation(energy, energy, 0.5),
        )
    ],
    "noise_contrastive": lambda energy: NoiseContrastive(2).initialise(energy, ROWS, seeded()),
    "log_partition": lambda energy: energy.log_partition(),
    "weights": lambda energy: (flatten(energy), signature(energy)),
}
DISCRETE: dict[str, Callable[[Any], object]] = {
    "gibbs": kernel_of(gibbs),
    "gibbs_with_gradients": kernel_of(gibbs_with_gradients),
    "single_site": kernel_of(single_site),
    "anneal": lambda energy: search.anneal(energy, seeded()),
    "argmax": lambda energy: search.argmax(energy, seeded()),
    "gibbs_ais": lambda energy: spend(log_partition(energy, 3, 4, seeded())),
    "log_partition": lambda energy: energy.log_partition(),
}
CONTEXT = torch.randn(4, 1, generator=torch.Generator().manual_seed(8))
CONDITIONAL: dict[str, Callable[[Any], object]] = {
    "bound": lambda energy: kernel_of(mala, step_size=0.1)(energy.given(CONTEXT)),
    "target": lambda energy: Target(energy, context=CONTEXT).gradient(ROWS[:4, :1]),
    "argmax_y": lambda energy: pipeline.argmax_y(energy, CONTEXT),
    "log_likelihood": lambda energy: log_likelihood(energy, ROWS[:4, :1], CONTEXT, BOX),
}
CASES = [
    *((perceptron, use) for use in CONTINUOUS.values()),
    *((lambda: BernoulliRBM((4,), 3, 0.5), use) for use in DISCRETE.values()),
    *((lambda: ConditionalMLP((1,), (1,), (8,), 1.0), use) for use in CONDITIONAL.values()),
]
NAMES = [*CONTINUOUS, *DISCRETE, *CONDITIONAL]


class Seen:
    """Everything of a module that its owner would miss, as it is now."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = copy.deepcopy(module.state_dict())
        self.gradients = {
            name: (parameter.requires_grad, copy.deepcopy(parameter.grad), parameter.data_ptr())
            for name, parameter in module.named_parameters()
        }
        self.places = [(tensor.device, tensor.dtype) for tensor in module.state_dict().values()]
        self.training = [part.training for part in module.modules()]

    def require(self, module: nn.Module) -> None:
        """Fails where `module` is not as it was seen."""
        now = Seen(module)
        assert now.training == self.training
        assert now.places == self.places
        for name, (asked, gradient, place) in self.gradients.items():
            assert now.gradients[name][::2] == (asked, place), name
            torch.testing.assert_close(now.gradients[name][1], gradient, rtol=0, atol=0)
        for name, tensor in self.tensors.items():
            assert torch.equal(now.tensors[name], tensor), name


@pytest.mark.parametrize(("make", "use"), CASES, ids=NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_as_it_was(
    make: Callable[[], Energy], use: Callable[[Energy], object], training: bool
) -> None:
    """Its tensors, gradients, modes and what asks for gradients; one parameter asks for none."""
    energy = make().train(training)
    next(iter(energy.parameters())).requires_grad_(False)
    for parameter in energy.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = Seen(energy)
    use(energy)
    before.require(energy)


def test_a_training_loop_goes_on_between_calls() -> None:
    """Steps with kernels, samples, search and AIS in between end where steps without them do."""
    ends = []
    for calls in ([], list(CONTINUOUS.values())):
        torch.manual_seed(0)
        energy = perceptron()
        optimizer, objective = torch.optim.Adam(energy.parameters()), ContrastiveDivergence(0.1)
        sampler = Sampler(energy, plan(mala, step_size=0.1), len(ROWS), seeded())
        for _ in range(3):
            for use in calls:
                use(energy)
            sampler.refresh()
            sampler.advance(seeded(), 2)
            optimizer.zero_grad()
            batch = _batch(ROWS, sampler.position)
            torch.stack(
                [p.weight * p.total for p in objective.parts(energy, batch)]
            ).sum().backward()
            optimizer.step()
        ends.append(flatten(energy))
    assert (ends[0] == ends[1]).all()


def _batch(positives: Tensor, negatives: Tensor) -> Batch:
    return Batch(PositiveSide(positives), NegativeSide(negatives))


def test_a_target_sees_weights_as_they_are_updated() -> None:
    """In place at once; given other memory, after `refresh`; of contexts encoded anew, as well."""
    energy = MLPEnergy((2,), (8,), spectral_norm=False, base_scale=1.0)
    target = Target(energy)
    with torch.no_grad():
        energy.layers[0].weight.mul_(2)  # type: ignore[union-attr, operator]
    assert torch.equal(target.energy(ROWS), energy(ROWS))
    for parameter in energy.parameters():
        parameter.data = parameter.data + 0.1
    target.refresh()
    assert torch.equal(target.energy(ROWS), energy(ROWS))
    assert not target.energy(ROWS).requires_grad
    conditional = ConditionalMLP((1,), (1,), (8,), 1.0)
    target = Target(conditional.given(CONTEXT))
    with torch.no_grad():
        conditional.from_context.weight.mul_(2)
    target.refresh()
    x = ROWS[:4, :1]
    assert torch.equal(target.energy(x), conditional.given(CONTEXT)(x))


class Radial(nn.Module):
    """A user's features, in training mode and with a parameter that is learned elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.centre).norm(dim=1, keepdim=True)


def test_modules_that_are_wrapped_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    before = Seen(network)
    energy = CustomEnergy((2,), network, None, 1.0, None)
    kernel_of(mala, step_size=0.1)(energy)
    before.require(network)
    function = Radial()
    before = Seen(function)
    features = GivenFeatures(function, ROWS, "radial")
    before.require(function)
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_a_frozen_replica_shares_its_memory() -> None:
    """No tensor is copied, however large the model: two names of one parameter stay one."""
    energy = perceptron()
    replica = frozen(energy)
    for own, theirs in zip(replica.parameters(), energy.parameters(), strict=True):
        assert own.data_ptr() == theirs.data_ptr()
        assert not own.requires_grad
    assert not any(part.training for part in replica.modules())
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    one, other = frozen(tied)
    assert one.weight is other.weight
