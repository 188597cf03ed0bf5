"""The optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.sections import Optimizer
from pipeline.energies.base import Energy


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then constant, or falling to 0
    linearly or as a cosine.
    """
    rate = optimizer.learning_rate
    if step < optimizer.warmup:
        return rate * (step + 1) / optimizer.warmup
    if optimizer.schedule == "constant":
        return rate
    done = min((step - optimizer.warmup) / max(1, steps - optimizer.warmup), 1.0)
    return rate * (
        1 - done if optimizer.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    )


def make_optimizer(
    config: Optimizer, energy: Energy, beside: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019), or SGD; the
    rate is set anew each step.

    `beside`: parameters of the objectives, which no decay touches. Parameters that are split among
    ranks are updated one operation after the other; others by torch's fused form, in one pass.
    """
    named = [
        (name, parameter)
        for name, parameter in energy.named_parameters()
        if parameter.requires_grad
    ]
    decayed = [parameter for name, parameter in named if name not in energy.undecayed]
    others = [*(parameter for name, parameter in named if name in energy.undecayed), *beside]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    fused = not any(hasattr(parameter, "full_tensor") for parameter in decayed) or None
    if config.name == "adam":
        betas = (config.momentum, config.beta2)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=fused)
    return torch.optim.SGD(groups, config.learning_rate, config.momentum, fused=fused)
