"""From a section to a kernel."""

from __future__ import annotations

from functools import partial

from pipeline.common import plugins
from pipeline.common.errors import ConfigError
from pipeline.config import parts
from pipeline.config.kernels import (
    KernelSection,
    MetropolisHastingsKernel,
    ReplicaExchangeKernel,
)
from pipeline.kernels import metropolis_hastings, replica_exchange
from pipeline.kernels.base import Kernel
from pipeline.kernels.metropolis_hastings import PROPOSALS
from pipeline.objectives.improved import Replay


def make_kernel(section: KernelSection) -> Kernel:
    """The kernel of a section. Raises `ConfigError` where an installed package is at fault."""
    make = parts.make_of("kernel", section.name)
    kernel: Kernel = make if isinstance(make, Kernel) else make(section)
    return kernel


def metropolis_hastings_of(section: MetropolisHastingsKernel) -> Kernel:
    """Metropolis-Hastings with the section's proposal. Raises `ConfigError` where there is none."""
    return metropolis_hastings.with_proposal(find_proposal(section))


def replica_exchange_of(section: ReplicaExchangeKernel) -> Kernel:
    """A ladder of the section's inner kernel."""
    inner = make_kernel(section.inner)
    return replica_exchange.over(inner, section.rungs, section.inner.transitions)


def find_proposal(section: MetropolisHastingsKernel) -> metropolis_hastings.Proposal:
    """The proposal given in code, one of this project's, or what an installed package's entry point
    makes.

    Raises `ConfigError` where no proposal is named, there is none of that name, or its options do
    not fit.
    """
    proposal: metropolis_hastings.Proposal | None = section._proposal
    if proposal is not None:
        return proposal
    if section.proposal is None:
        remedy = (
            f"name one of {', '.join(PROPOSALS)}, an entry point in the group pipeline.proposals,"
            " or give proposal= in code"
        )
        raise ConfigError("kernel.proposal", "null", remedy)
    make = PROPOSALS.get(section.proposal) or plugins.find(
        "pipeline.proposals", section.proposal, "kernel.proposal"
    )
    made: metropolis_hastings.Proposal = plugins.call(make, "kernel.options", section.options)
    return made


def replay_of(section: KernelSection) -> Replay:
    """A transition of the section's kernel as a function of the weights."""
    replay = make_kernel(section).replay
    assert replay is not None, (
        "improved contrastive divergence with another kernel is refused when a configuration is"
        " checked"
    )
    return partial(replay, **section.parameters)
