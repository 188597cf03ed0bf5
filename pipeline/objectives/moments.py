"""Moment matching: the dual problem of maximum entropy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.energies.maxent.exponential_family import ExponentialFamily
from pipeline.energies.maxent.marginal_polytope import locate
from pipeline.objectives.base import NegativeSide, Objective, Part, PositiveSide


class MomentMatching(Objective):
    """The law nearest to the base measure h with E[phi] = mu is h(x) exp(lambda.phi(x)) / Z, lambda
    the minimum of

        L(lambda) = log Z(lambda) - lambda.mu + l1 |lambda|_1 + l2 |lambda|^2 / 2,
        grad (log Z - lambda.mu) = E[phi] - mu

    (Jaynes 1957; Wainwright & Jordan 2008, section 3.6). L is convex. l1 relaxes the moments to a
    box, |E[phi_i] - mu_i| <= l1, with equality of sign -lambda_i where lambda_i is not 0 (Dudik,
    Phillips & Schapire 2004, section 2); l2 to E[phi] = mu - l2 lambda, the posterior mode under a
    Gaussian prior (Chen & Rosenfeld 2000).

    mu [F] is given, or the mean of phi over the rows that the objective is started from, weighted
    where they have weights. This form has log Z exactly.
    """

    mu: Tensor

    def __init__(self, moments: Sequence[float] | None, l1: float, l2: float) -> None:
        super().__init__()
        self._given, self._l1, self._l2 = moments, l1, l2
        self.register_buffer("mu", torch.empty(0), persistent=False)

    def initialise(
        self,
        energy: Energy,
        rows: Tensor,
        generator: torch.Generator,  # noqa: ARG002
        weights: Tensor | None = None,
    ) -> None:
        """Takes the target moments. Raises `ArgumentError` for an energy that is no exponential
        family, moments that are not as many as its features, and where there is no log Z.
        """
        model = family_of(energy)
        self.mu = target_moments(model, self._given, rows, weights)
        self._check_log_z(model)

    def _check_log_z(self, model: ExponentialFamily) -> None:
        if model.support() is None:
            remedy = "log Z needs at most 2^20 states, or at most two real dimensions; use chains"
            raise ArgumentError("expectation", "exact", remedy)

    def check(self, energy: Energy, rows: Tensor, weights: Tensor | None = None) -> None:
        """Raises `ArgumentError` where it is certain that no law has the moments (within l1 of
        each), or none with a finite parameter. Under a ridge there is a minimum whatever they are:
        what is missed is seen in the residuals.
        """
        if self._l2:
            return
        model = family_of(energy)
        verdict = locate(model, target_moments(model, self._given, rows, weights), self._l1)
        value = (
            "null (the means of the training rows)" if self._given is None else list(self._given)
        )
        if verdict.kind == "outside":
            remedy = (
                f"no law has these moments: {verdict.reason}; correct them, or relax them by l1 or"
                " l2"
            )
            raise ArgumentError("moments", value, remedy)
        if verdict.kind == "boundary":
            remedy = (
                "on the boundary of what a law can have, where no finite parameter leads:"
                f" {verdict.reason}; relax them by l1 or l2, or leave out what is certain"
            )
            raise ArgumentError("moments", value, remedy)

    def of_positives(
        self,
        energy: Energy,
        positives: PositiveSide,  # noqa: ARG002
    ) -> Iterator[Part]:
        """Parts named positive (-lambda.mu), log_z, and l1 and l2 where there are such."""
        model = family_of(energy)
        yield from self._of_targets(model)
        value = model.log_sum()
        assert value is not None, "refused when the objective is initialised"
        yield Part("log_z", value, 1)

    def _of_targets(self, model: ExponentialFamily) -> Iterator[Part]:
        natural = model.natural
        yield Part("positive", -(natural @ self.mu.to(natural)), 1)
        if self._l1:
            yield Part("l1", natural.abs().sum(), 1, self._l1)
        if self._l2:
            yield Part("l2", natural.square().sum() / 2, 1, self._l2)


class ByChains(Objective):
    """Moments whose expectation under the model is over negatives."""

    consumes_chains = True

    def of_negatives(
        self,
        energy: Energy,  # noqa: ARG002
        negatives: NegativeSide,  # noqa: ARG002
        energies: Tensor,
        weights: Tensor,
    ) -> Iterator[Part]:
        """One part, negative: the mean energy of the negatives."""
        yield Part("negative", (weights * energies).sum(), len(energies), -1.0)


class MomentMatchingByChains(ByChains, MomentMatching):
    """The same gradient, with E[phi] over the negatives: -sum_j w_j E(x_j-) in the place of log Z,
    for grad_lambda -E(x) = phi(x). w is uniform, or the importance weights of stale negatives, and
    carries no gradient.
    """

    def _check_log_z(self, model: ExponentialFamily) -> None:
        """Chains need no log Z."""

    def of_positives(
        self,
        energy: Energy,
        positives: PositiveSide,  # noqa: ARG002
    ) -> Iterator[Part]:
        """Parts named positive (-lambda.mu), l1 and l2 where there are such."""
        yield from self._of_targets(family_of(energy))


class CouplingMoments(ByChains):
    """Boltzmann machine learning (Ackley, Hinton & Sejnowski 1985; Muntoni et al. 2021) of an
    energy E(x) = -theta.phi(x) of fields and couplings, where phi tells which letters stand at a
    site, and at each two:

        loss = -theta.mu - sum_j w_j E(x_j-) + l2 |J|^2 / 2,   grad loss = E[phi] - mu + l2 J

    with mu the mean of phi over the rows that the objective is started from, weighted where they
    have weights: worked out once, where PCD counts the letters of its positives at each step. w is
    uniform, or the importance weights of stale negatives, and carries no gradient.
    """

    def __init__(self, l2: float) -> None:
        super().__init__()
        self._l2 = l2
        self._mu: dict[str, Tensor] = {}

    def initialise(
        self,
        energy: Energy,
        rows: Tensor,
        generator: torch.Generator,  # noqa: ARG002
        weights: Tensor | None = None,
    ) -> None:
        """Takes the target moments. Raises `ArgumentError` for an energy without a way by hand."""
        model = copy.deepcopy(energy)
        found = model.energies_and_pull(rows)
        if found is None:
            remedy = "moments by chains are those of fields and couplings; use a Potts model"
            raise ArgumentError("energy", type(energy).__name__, remedy)
        shares = torch.ones_like(found[0]) if weights is None else weights.to(found[0])
        found[1](-shares / shares.sum())
        self._mu = {
            name: some.grad for name, some in model.named_parameters() if some.grad is not None
        }

    def of_positives(
        self,
        energy: Energy,
        positives: PositiveSide,  # noqa: ARG002
    ) -> Iterator[Part]:
        """Parts named positive (-theta.mu, the mean energy of the rows), and l2 where there is
        such.
        """
        named = dict(energy.named_parameters())
        terms = [-(named[name] * mu.to(named[name])).sum() for name, mu in self._mu.items()]
        yield Part("positive", torch.stack(terms).sum(), 1)
        if self._l2:
            held = [some for name, some in named.items() if name not in energy.undecayed]
            yield Part(
                "l2", torch.stack([some.square().sum() / 2 for some in held]).sum(), 1, self._l2
            )


def family_of(energy: Energy) -> ExponentialFamily:
    """The energy, if it is an exponential family. Raises `ArgumentError`."""
    if not isinstance(energy, ExponentialFamily):
        remedy = "moments are those of declared features; use an exponential family"
        raise ArgumentError("energy", type(energy).__name__, remedy)
    return energy


@torch.no_grad()
def target_moments(
    model: ExponentialFamily,
    given: Sequence[float] | None,
    rows: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """mu [F], float64: as `given`, else the mean of phi over `rows` [S, *shape], or the one under
    their `weights` [S]. Raises `ArgumentError`.
    """
    if given is None:
        features = model.features(rows).double()
        if weights is None:
            return features.mean(0)
        return (weights / weights.sum()).to(features) @ features
    if len(given) != len(model.names):
        shown = ", ".join(model.names[:12]) + (", ..." if len(model.names) > 12 else "")
        remedy = f"there are {len(model.names)} features, one moment each, in this order: {shown}"
        raise ArgumentError("moments", f"{len(given)} numbers", remedy)
    return torch.tensor(given, dtype=torch.float64)
