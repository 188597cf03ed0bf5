"""From a section to a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from pipeline.common import plugins
from pipeline.common.errors import ConfigError
from pipeline.config import kernels as kernel_sections
from pipeline.config.kernels import KernelConfig
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
from pipeline.kernels.base import Kernel
from pipeline.kernels.metropolis_hastings import PROPOSALS
from pipeline.objectives.improved import Replay


class Registered(NamedTuple):
    """A kernel from its section, and the laws (of `tests/statistics/laws.py`) that it is proven on."""

    make: Callable[[Any], Kernel]
    laws: tuple[str, ...]


CONTINUOUS = ("gaussian", "mixture", "box")
DISCRETE = ("rbm", "potts_rbm", "lattice")
KERNELS = {
    "random_walk": Registered(lambda _: random_walk.kernel, (*CONTINUOUS, "rings")),
    "metropolis_hastings": Registered(
        lambda section: metropolis_hastings.with_proposal(find_proposal(section)), CONTINUOUS
    ),
    "ula": Registered(lambda _: ula.kernel, ("gaussian", "box")),
    "mala": Registered(lambda _: mala.kernel, (*CONTINUOUS, "rings")),
    "hmc": Registered(lambda _: hmc.kernel, (*CONTINUOUS, "funnel")),
    "gibbs": Registered(lambda _: gibbs.kernel, ("rbm", "gaussian_rbm", "potts_rbm")),
    "gibbs_with_gradients": Registered(lambda _: gibbs_with_gradients.kernel, DISCRETE),
    "single_site": Registered(lambda _: single_site.kernel, DISCRETE),
    "replica_exchange": Registered(
        lambda section: replica_exchange.over(
            make_kernel(section.inner), section.rungs, section.inner.transitions
        ),
        ("mixture", "gaussian", "rbm"),
    ),
}


def find_proposal(
    section: kernel_sections.MetropolisHastingsKernel,
) -> metropolis_hastings.Proposal:
    """The proposal given in code, one of this project's, or what an installed package's entry point
    makes.
    """
    if section._proposal is not None:
        return section._proposal
    if section.proposal is None:
        remedy = (
            f"name one of {', '.join(PROPOSALS)}, an entry point in the group pipeline.proposals,"
            " or give proposal= in code"
        )
        raise ConfigError("kernel.proposal", "null", remedy)
    make = PROPOSALS.get(section.proposal) or plugins.find(
        "pipeline.proposals", section.proposal, "kernel.proposal"
    )
    proposal: metropolis_hastings.Proposal = plugins.call(make, "kernel.options", section.options)
    return proposal


def make_kernel(section: KernelConfig) -> Kernel:
    return KERNELS[section.name].make(section)


def replay_of(section: KernelConfig) -> Replay:
    replay = make_kernel(section).replay
    assert replay is not None, (
        "improved contrastive divergence with another kernel is refused when a configuration is"
        " checked"
    )
    return partial(replay, **section.parameters)
