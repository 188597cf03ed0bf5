"""The words for what a run found out about lag."""

from __future__ import annotations

from pipeline.common.types import LagChoice

TREATED = {
    "plain": "negatives one version old, as they are",
    "reweighted": "negatives one version old, reweighted",
    "moved": "negatives one version old, moved under the newest weights first",
}


def in_words(choice: LagChoice) -> str:
    """Tells a person what trainer.lag=auto found out, and what it ended with."""
    if choice.possible is None:
        return "lag: lock-step; the run was too short to look for anything else"
    if choice.gain is None and choice.settled:
        return f"lag: lock-step; at best lag would make {choice.possible:.2f} times its steps"
    if choice.settled:
        return f"lag: lock-step; lag was tried, and made {choice.gain:.2f} times its steps"
    if not choice.bias:
        return "lag: lock-step; the run ended while it looked at what lag would do"
    figures = ", ".join(f"{name} {ratio:.3f}" for name, ratio in choice.bias.items())
    found = f"bias^2 / variance of the gradient: {figures}"
    if choice.ess is not None:
        found += f"; ESS of the weights {choice.ess:.2f}"
    if choice.treatment == "none":
        return f"lag: lock-step; stale negatives were not free ({found})"
    speed = "" if choice.gain is None else f"; {choice.gain:.2f} times the steps of lock-step"
    return f"lag: {TREATED[choice.treatment]} ({found}){speed}"
