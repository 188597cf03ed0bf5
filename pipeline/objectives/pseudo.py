"""Losses from a discrete energy's single-site conditionals, in which Z cancels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.potts import PottsModel
from pipeline.objectives.base import Objective, Part, PositiveSide


class _Sites(Objective):
    """An objective that draws sites, `sites` of the d for every row, or takes all of them
    (None).
    """

    def __init__(self, sites: int | None) -> None:
        super().__init__()
        self._sites = sites

    def draw(
        self, energy: Energy, positives: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Numbers of components, int64 `[P, N]`."""
        rows, device = len(positives), positives.device
        if self._sites is None:
            return (torch.arange(energy.dimension, device=device)[:, None].expand(-1, rows),)
        return (
            torch.randint(
                energy.dimension, (self._sites, rows), generator=generator, device=device
            ),
        )


class PseudoLikelihood(_Sites):
    """loss = -d mean_ip log p(x_s | x_-s), s the sites drawn (Besag 1975), from the energies of a
    site's q levels:

        log p(x_s | x_-s) = -E(x) - logsumexp_k -E(x with x_s = k)

    With all sites the negative pseudo-log-likelihood; with some of them an unbiased estimate of it.
    A Potts model has all conditionals at once. Of its fields h and couplings J

        (l2_fields sum_i |h_i|^2 + l2_couplings sum_{i<j} |J_ij|^2) / (sum of all rows' weights)

    is added (Ekeberg et al. 2013, equation 17).
    """

    def __init__(
        self, sites: int | None, l2_fields: float = 0.0, l2_couplings: float = 0.0
    ) -> None:
        super().__init__(sites)
        self._l2 = {"l2_fields": l2_fields, "l2_couplings": l2_couplings}

    def draw(
        self, energy: Energy, positives: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Numbers of components, int64 `[P, N]`; none of a Potts model's, where all are taken."""
        if self._sites is None and isinstance(energy, PottsModel):
            return ()
        return super().draw(energy, positives, generator)

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """A part named conditional, nats a row, and one for each penalty."""
        energy = energy.given(positives.context)
        if isinstance(energy, PottsModel):
            yield from self._penalties(energy)
            if self._sites is None:
                rows = positives.position
                value = -energy.site_log_likelihood(rows, positives.weights)
                yield Part("conditional", value, len(rows))
                return
        assert energy.levels is not None
        x, sites = positives.position.flatten(1), positives.drawn[0]
        here = energy(positives.position)
        others = torch.stack(
            [_energies(energy, x, sites, shift) for shift in range(1, energy.levels)]
        )
        # x's own level is the same for every site: it needs one evaluation
        values = -here - torch.logsumexp(torch.cat([-here.expand_as(others[:1]), -others]), 0)
        yield Part("conditional", -values.sum(), values.numel(), float(energy.dimension))

    def _penalties(self, energy: PottsModel) -> Iterator[Part]:
        of = {"l2_fields": energy.field, "l2_couplings": energy.coupling}
        for name, weight in self._l2.items():
            if weight:
                square = of[name].square().sum(dtype=torch.float64)
                yield Part(name, square, 1, weight / self.total_weight)


class RatioMatching(_Sites):
    """loss = d mean_ip sigma(E(x_i) - E(x_i flipped at s))^2 for x in {0, 1}^d (Hyvarinen 2007,
    equation 12)

    With p(x) / p(x flipped) = exp(E(flipped) - E(x)): the squared probability that the model gives
    to the flipped value.
    """

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """One part, ratio."""
        energy = energy.given(positives.context)
        here = energy(positives.position)
        flipped = _energies(energy, positives.position.flatten(1), positives.drawn[0], 1)
        values = torch.sigmoid(here - flipped).square()
        yield Part("ratio", values.sum(), values.numel(), float(energy.dimension))


def _energies(energy: Energy, x: Tensor, sites: Tensor, shift: int) -> Tensor:
    """E of the rows `x` [N, d] with each of the sites [P, N] moved on by `shift` levels,
    cyclically; [P, N].
    """
    assert energy.levels is not None
    moved = x.repeat(len(sites), 1)
    at = sites.reshape(-1, 1)
    moved.scatter_(1, at, (moved.gather(1, at) + shift) % energy.levels)
    return energy(moved.view(-1, *energy.shape)).view(sites.shape)
