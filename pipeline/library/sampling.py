"""Markov chains on an energy of one's own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.assembly.kernels import make_kernel
from pipeline.common.errors import ArgumentError
from pipeline.config import parts
from pipeline.config.energies import Domain
from pipeline.config.groups import settings_of
from pipeline.config.kernels import KernelSection, TunedKernel
from pipeline.energies.base import Energy
from pipeline.energies.function import Function
from pipeline.energies.target import Target
from pipeline.kernels.adaptation import StepSizes
from pipeline.kernels.base import Kernel
from pipeline.library.arguments import check_finite, check_whole, on_domain, source_of

ACCEPTANCE = 0.574
"""The mean acceptance of MALA's best step size in many dimensions (Roberts & Rosenthal 1998), for
a kernel whose defaults name none.
"""
ELSEWHERE = {
    "metropolis_hastings": (
        "needs a proposal; give the Kernel that"
        " pipeline.kernels.metropolis_hastings.with_proposal makes"
    ),
    "replica_exchange": "needs a ladder, which pipeline.chains.sampler.Sampler has",
}


class Samples(NamedTuple):
    """Draws of N chains: `positions` [draws, N, *shape]; their `energies` [draws, N], nats; each
    chain's mean `acceptance` [N] after the warm-up, a probability; and the `step_size`, of a kernel
    that has one.
    """

    positions: Tensor
    energies: Tensor
    acceptance: Tensor
    step_size: float | None


@torch.no_grad()
def sample(
    energy: Energy | Function,
    kernel: str | Kernel,
    start: Tensor | np.ndarray | int,
    *,
    draws: int = 1000,
    warm_up: int = 500,
    thin: int = 1,
    levels: int | None = None,
    box: tuple[float, float] | None = None,
    generator: torch.Generator | int = 0,
    target_acceptance: float | None = None,
    **parameters: Any,
) -> Samples:
    """Draws from p(x) = exp(-E(x)) / Z by N Markov chains; every `thin`-th position is kept.

    `energy` maps positions `[N, *shape]` to nats `[N]`: minus a log density, up to a constant. It
    is a function or a module on {0, ..., `levels` - 1}^d, in the `box` (low, high), or else on R^d;
    or an `Energy`, which has a domain of its own. `start` [N, *shape] is where chains begin; an
    `Energy` may be given a number of chains, which begin at draws of its base law.

    `kernel` is a name of docs/kernels.md, or a `Kernel`. `parameters` are those of its step, such
    as `leapfrog_steps`; of a named one, those left out have their defaults. A `step_size` that is
    given stays. Where none is, the named kernel's is adapted in the warm-up, to
    `target_acceptance`, or to the mean acceptance that suits it; where both are given, it is
    adapted from there. `ula` accepts all, so that its step size stays.

    `warm_up` counts transitions, as `thin` does. `generator` is one, or a seed. The memory is that
    of the positions kept.

    Raises `ArgumentError` where an argument is not what it should be, and where energy or gradient
    are not finite at the start.
    """
    check_whole(draws=draws, thin=thin)
    check_whole(0, warm_up=warm_up)
    source = None
    if isinstance(start, int):
        start, source = _from_base(energy, start, generator)
    model, position = on_domain(energy, start, "start", levels, box)
    source = source or source_of(generator, position.device)
    mover, parameters, wanted = _kernel(kernel, model, parameters, target_acceptance)
    sizes = None
    if wanted is not None and warm_up:
        largest = math.inf if model.box is None else model.box[1] - model.box[0]
        sizes = StepSizes(parameters["step_size"], 1, wanted, warm_up, largest)
    target = Target(model)
    state = mover.init(position, target)
    check_finite("start", _energies(state, target), getattr(state, "gradient", None))
    kept = position.new_empty((draws, *position.shape))
    energies = _energies(state, target).new_empty((draws, len(position)))
    acceptance = torch.zeros_like(energies[0])
    for index in range(-warm_up, draws * thin):
        if sizes is not None and index <= 0:
            parameters["step_size"] = sizes.values[0]
        state, info = mover.step(source, state, target, **parameters)
        if index < 0:
            if sizes is not None:
                sizes.update(info.acceptance.mean()[None])
            continue
        acceptance += info.acceptance
        if (index + 1) % thin == 0:
            kept[index // thin] = state.position
            energies[index // thin] = _energies(state, target)
    return Samples(kept, energies, acceptance / (draws * thin), parameters.get("step_size"))


def _energies(state: Any, target: Target) -> Tensor:
    """`[N]`, of a kernel's state."""
    if hasattr(state, "energy"):
        found: Tensor = state.energy
        return found
    return target.energy(state.position)


def _from_base(energy: Any, count: int, generator: Any) -> tuple[Tensor, torch.Generator]:
    """So many draws of an `Energy`'s base law, and the generator that made them. Raises
    `ArgumentError` where it has none.
    """
    if not isinstance(energy, Energy):
        remedy = "should be positions [N, *shape]: a function has no law that chains could begin at"
        raise ArgumentError("start", count, remedy)
    check_whole(start=count)
    tensor = next(energy.parameters(), torch.zeros(()))
    source = source_of(generator, tensor.device)
    return energy.sample_base(count, source), source


def _kernel(
    kernel: str | Kernel, energy: Energy, given: dict[str, Any], wanted: float | None
) -> tuple[Kernel, dict[str, Any], float | None]:
    """The kernel, all parameters of its step, and the mean acceptance that its step size is to be
    adapted to, None where it stays. Raises `ArgumentError`.
    """
    if wanted is not None and not (isinstance(wanted, float) and 0 < wanted < 1):
        remedy = "should be a probability between 0 and 1"
        raise ArgumentError("target_acceptance", wanted, remedy)
    if isinstance(kernel, Kernel):
        if wanted is not None and "step_size" not in given:
            remedy = "give the step_size too, which it is adapted from"
            raise ArgumentError("target_acceptance", wanted, remedy)
        return kernel, dict(given), wanted
    section = _section(kernel, given)
    _check_domain(section, energy)
    if wanted is not None and not isinstance(section, TunedKernel):
        remedy = f"leave it out: {kernel} has no step size that an acceptance could tell of"
        raise ArgumentError("target_acceptance", wanted, remedy)
    if isinstance(section, TunedKernel) and "step_size" not in given and wanted is None:
        wanted = section.target_acceptance or ACCEPTANCE
    return make_kernel(section), section.parameters, wanted


def _section(name: Any, given: dict[str, Any]) -> KernelSection:
    """The settings of a kernel, its defaults but for those `given`. Raises `ArgumentError` where
    there is none of that name, or it has none such.
    """
    there = [each for each in parts.names("kernel") if each not in ELSEWHERE]
    if name not in there:
        remedy = ELSEWHERE.get(name, "") if isinstance(name, str) else ""
        remedy = remedy or f"should be a Kernel, or one of {', '.join(there)}"
        raise ArgumentError("kernel", name, remedy)
    kind = parts.section_of("kernel", name)
    settings = settings_of("kernel", name)
    known = kind.model_validate(settings).parameters  # type: ignore[attr-defined]
    for key in given:
        if key not in known:
            remedy = f"{name} has {', '.join(known) or 'no parameters'}; no such parameter"
            raise ArgumentError(key, given[key], remedy)
    try:
        section = kind.model_validate(settings | given)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].replace("Input should", "should")
        raise ArgumentError(str(first["loc"][0]), first["input"], said) from error
    assert isinstance(section, KernelSection)
    return section


def _check_domain(section: KernelSection, energy: Energy) -> None:
    """Raises `ArgumentError` where the kernel does not move on the energy's domain."""
    domain = Domain(energy.levels, energy.box, energy.kinds is not None)
    discrete = energy.levels is not None
    if section.needs_conditionals and not energy.blocks:
        remedy = "draws from conditionals, which this energy has not; use another kernel"
        raise ArgumentError("kernel", section.name, remedy)
    if domain.mixed and section.domain != "any":
        remedy = f"does not move {domain}; use gibbs"
        raise ArgumentError("kernel", section.name, remedy)
    if section.domain == "continuous" and discrete:
        remedy = f"moves on R^d, and positions are over {domain}; use single_site"
        raise ArgumentError("kernel", section.name, f"{remedy} or gibbs_with_gradients")
    if section.domain == "discrete" and not discrete:
        remedy = f"moves over levels, and positions are on {domain}; give levels=, or use mala"
        raise ArgumentError("kernel", section.name, remedy)
    mass = section.parameters.get("mass")
    if isinstance(mass, tuple) and len(mass) != energy.dimension:
        remedy = f"should be one number, or {energy.dimension}, one for each component"
        raise ArgumentError("mass", f"{len(mass)} numbers", remedy)
