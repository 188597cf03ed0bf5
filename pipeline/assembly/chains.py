"""From a configuration to chains: the plan of all, and those of one pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.assembly.energies import make_energy
from pipeline.assembly.kernels import make_kernel
from pipeline.chains.dealing import Dealing
from pipeline.chains.pool import Pool
from pipeline.chains.sampler import ChainPlan
from pipeline.common.process import keep_freed_memory
from pipeline.config.kernels import KernelSection, ReplicaExchangeKernel, TunedKernel
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint


def make_plan(config: RunConfig) -> ChainPlan:
    """The run's kernel with its settings, and how chains begin and what they carry."""
    kernel, within = config.kernel, config.kernel.within
    ladder = kernel if isinstance(kernel, ReplicaExchangeKernel) else None
    tuned = within if isinstance(within, TunedKernel) else None
    start = config.contrastive.start if config.contrastive else None
    return ChainPlan(
        make_kernel(kernel),
        kernel.parameters,
        kernel.transitions,
        {"persistent": config.chains.restart, "noise": 1.0}.get(start or "", 0.0),
        rungs=ladder.rungs if ladder else 1,
        ladder_rounds=ladder.adapt_rounds if ladder else 0,
        target_acceptance=tuned.target_acceptance if tuned else None,
        adapt_rounds=tuned.adapt_rounds if tuned else None,
        gradient_dtype=gradient_dtype(within),
        replayed=getattr(config.contrastive, "replayed", 0),
        start_at_data=config.starts_at_data,
        batches_carry_rows=config.batches_carry_rows,
        per_context=config.chains.per_context,
        bridge_every=config.metrics.held_out_every if config.bridged else 0,
    )


def moving_plan(config: RunConfig) -> ChainPlan | None:
    """The way that the learner moves stale negatives: by the kernel that moves the chains, on the
    model's own law where those are on a ladder. None where they are not moved.
    """
    if not config.refresh:
        return None
    within = config.kernel.within
    tuned = within if isinstance(within, TunedKernel) else None
    return ChainPlan(
        make_kernel(within),
        within.parameters,
        config.refresh,
        restart=0.0,
        target_acceptance=tuned.target_acceptance if tuned else None,
        adapt_rounds=tuned.adapt_rounds if tuned else None,
        gradient_dtype=gradient_dtype(within),
    )


def gradient_dtype(kernel: KernelSection) -> torch.dtype | None:
    """The precision of a kernel's gradients, where it is not the energy's."""
    return torch.bfloat16 if getattr(kernel, "force", None) == "bfloat16" else None


def make_chains(
    config: RunConfig, shape: Sequence[int], pool: int, context_shape: Sequence[int] | None = None
) -> Pool:
    """The pool numbered `pool`: its chains start at the base law, in a stream of its own."""
    keep_freed_memory()
    energy, plan = make_energy(config, shape, context_shape), make_plan(config)
    return Pool(
        energy, plan, config.chains.per_pool, pool=pool, seed=config.seed, device=config.device
    )


def dealing_of(config: RunConfig, checkpoint: Checkpoint) -> Dealing:
    """The way that the chains of a `checkpoint` are dealt to this run's pools; nothing is read."""
    pools, per_pool = config.pools, config.chains.per_pool
    there = (checkpoint.pools, checkpoint.per_pool)
    return Dealing(*there, pools, per_pool, config.most_pools, checkpoint.step)


def stored_chains(
    config: RunConfig,
    checkpoint: Checkpoint,
    pool: int,
    read: Callable[[str], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The state that the pool numbered `pool` takes up from a `checkpoint`. `read` takes the place
    of `checkpoint.read`. Raises `DamagedError` where a part that it needs is damaged.
    """
    read, copying = read or checkpoint.read, config.chains.newcomers == "snapshot"
    return dealing_of(config, checkpoint).state(pool, lambda n: read(f"pool-{n}"), copying)
