"""Contrastive divergence, its persistent form, and fast weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.objectives.base import NegativeSide, Objective, Part, PositiveSide


class ContrastiveDivergence(Objective):
    """The gradient of the negative log-likelihood, with its model expectation from chains (Hinton
    2002; Tieleman 2008):

        -grad log p(x) = grad E(x+) - E_{x ~ p}[grad E(x)]
        loss = mean_i E(x_i+) - sum_j w_j E(x_j-) + l2 (mean_i E(x_i+)^2 + sum_j w_j E(x_j-)^2)

    w is uniform, or the importance weights of stale negatives, and carries no gradient. CD-k, PCD
    and short runs differ only in where the chains start, which is the pools' affair. The l2 term
    keeps the energies' free constant, and so their magnitude, near zero (Du & Mordatch 2019,
    section 3.3: weight 0.1 to 1 for deep nets on images).
    """

    consumes_chains = True
    of_energies_alone = True

    def __init__(self, energy_l2: float) -> None:
        super().__init__()
        self.energy_l2 = energy_l2

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """Parts named positive and energy_l2."""
        values = energy.given(positives.context)(positives.position)
        yield from self.of_energies(values, positives.weights, 1.0)[0]

    def of_negatives(
        self,
        energy: Energy,  # noqa: ARG002
        negatives: NegativeSide,  # noqa: ARG002
        energies: Tensor,
        weights: Tensor,
    ) -> Iterator[Part]:
        """Parts named negative and energy_l2."""
        yield from self.of_energies(energies, weights, -1.0)[0]

    def of_energies(
        self, energies: Tensor, weights: Tensor | None, sign: float
    ) -> tuple[list[Part], Tensor]:
        """The derivative is w (sign + 2 l2 E)."""
        name, rows = "positive" if sign > 0 else "negative", len(energies)
        weighted = energies if weights is None else weights * energies
        parts = [Part(name, weighted.sum(), rows, sign)]
        slopes = torch.ones_like(energies) if weights is None else weights
        if not self.energy_l2:
            return parts, sign * slopes
        parts.append(Part("energy_l2", weighted @ energies, rows, self.energy_l2))
        return parts, (sign * slopes).add_(weighted, alpha=2 * self.energy_l2)


class FastWeights:
    """Weights phi laid over theta for the chains alone (Tieleman & Hinton 2009, "Using fast weights
    to improve persistent contrastive divergence", section 3):

        phi <- decay phi - rate grad_theta loss

    The chains sample from exp(-E(x; theta + phi)): where they dwell, the energy rises at once and
    is forgotten soon, which drives them on. What is learned, and evaluated, is theta.
    """

    def __init__(self, parameters: Sequence[Tensor], rate: float, decay: float) -> None:
        self._rate, self._decay = rate, decay
        self.values = [torch.zeros_like(parameter) for parameter in parameters]

    def update(self, gradients: Sequence[Tensor]) -> None:
        torch._foreach_mul_(self.values, self._decay)
        torch._foreach_add_(self.values, list(gradients), alpha=-self._rate)
