"""The combinations that make sense of negatives that are older than the weights they teach."""

from __future__ import annotations

from pipeline.common.errors import ConfigError
from pipeline.config.objectives import ObjectiveSection
from pipeline.config.run import LEAST_PER_CONTEXT, RunConfig


def check_staleness(config: RunConfig, objective: ObjectiveSection) -> None:
    """Old negatives are used only where they may be; `objective` is the one that consumes them.
    Raises `ConfigError`.
    """
    _check_weights(config, objective)
    _check_refresh(config, objective)
    _check_choice(config)


def _check_weights(config: RunConfig, objective: ObjectiveSection) -> None:
    """Negatives are reweighted only where that is valid, and are not old where it is not."""
    trainer, per_context = config.trainer, config.chains.per_context
    if trainer.reweight is True and not config.reweightable:
        invariant = config.kernel.leaves_invariant(config.energy)
        if config.conditional and objective.equilibrium_negatives and invariant:
            remedy = (
                "weights are normalised over one context's chains; use"
                f" chains.per_context={LEAST_PER_CONTEXT} or more"
            )
            raise ConfigError("chains.per_context", per_context, remedy)
        remedy = f"{_not_at_equilibrium(config, objective)}; use auto"
        raise ConfigError("trainer.reweight", "true", remedy)
    most = 1 if config.conditional and objective.equilibrium_negatives else 2
    if config.lag > most and not config.reweightable:
        raise ConfigError(
            "trainer.lag", trainer.lag, f"these negatives cannot be reweighted; use at most {most}"
        )


def _not_at_equilibrium(config: RunConfig, objective: ObjectiveSection) -> str:
    """Says whose negatives are not from exp(-E), where they are not."""
    culprit = (
        f"objective={objective.name}"
        if config.kernel.leaves_invariant(config.energy)
        else f"kernel={config.kernel.name} with its noise, or in a box"
    )
    return f"not valid for {culprit}: its negatives are not from exp(-E)"


def _check_refresh(config: RunConfig, objective: ObjectiveSection) -> None:
    """Stale negatives are moved only where there are any, and where that makes them newer."""
    trainer = config.trainer
    if not trainer.refresh:
        return
    remedy = None
    if trainer.lag == 0:
        remedy = "at trainer.lag=0 no negatives are stale; use null, or a lag of 1 or more"
    elif not config.at_equilibrium:
        remedy = f"{_not_at_equilibrium(config, objective)}; use null"
    elif trainer.reweight is True:
        remedy = "negatives that are moved get no weights; use trainer.reweight=auto, or null"
    elif trainer.sharding == "fsdp":
        remedy = "under trainer.sharding=fsdp no rank has the whole model to move them by; use null"
    if remedy is not None:
        raise ConfigError("trainer.refresh", trainer.refresh, remedy)


def _check_choice(config: RunConfig) -> None:
    """A run that is to choose its lag can, and may."""
    trainer = config.trainer
    if trainer.lag != "auto":
        return
    if trainer.lag_mode == "exact":
        remedy = "trainer.lag=auto is a bound; use bound, or give the lag"
        raise ConfigError("trainer.lag_mode", "exact", remedy)
    if trainer.reweight is True:
        remedy = (
            "trainer.lag=auto finds out what stale negatives need; use auto, or false for never"
        )
        raise ConfigError("trainer.reweight", "true", remedy)
    if trainer.sharding == "fsdp":
        remedy = "under trainer.sharding=fsdp no rank has the whole model to find out by; use 0"
        raise ConfigError("trainer.lag", "auto", remedy)
