"""Figures of a model that need no Z, taken every few steps while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.common.rng import torch_generator
from pipeline.common.types import Rows
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.row_weights import mean
from pipeline.energies.base import Energy, site_log_likelihood
from pipeline.training.covariances import Covariances
from pipeline.training.likeness import Likeness

ROWS = 1024
"""Held-out rows that are looked at, at most, and as many training rows: chosen once, so that a
curve shows the model and not the choice. A likelihood from them is that of the held-out set where
it has no more."""


COVARIANCES = 1 << 26
"""Of an alignment so many are looked at without being asked for, 256 MiB."""


def due(config: RunConfig, version: int) -> bool:
    """Returns whether figures are taken of a `version`, where there is somebody to take them."""
    every = config.metrics.held_out_every
    return bool(every and version % every == 0 and config.trainer.sharding == "none")


class Probe:
    """The same few held-out and training rows of a run, training rows alone where none are held
    out, and what a model says of them.

    Rows have the data's noise, drawn once, and their contexts. Held-out rows have the noise that
    they are evaluated with in the end. Over levels each row has one site for the pseudo-likelihood,
    chosen once.
    """

    def __init__(self, config: RunConfig, data: DataSet, device: torch.device) -> None:
        generator = torch_generator(config.data.split_seed, "probe")
        count = min(len(data.held_out), len(data.sample), ROWS)
        kept = count if len(data.held_out) else min(len(data.sample), ROWS)
        chosen = [
            torch.randperm(len(rows), generator=generator)[:number]
            for rows, number in ((data.held_out, count), (data.sample, kept))
        ]
        test, training = data.held_out, data.sample[chosen[1]]
        if data.noise:
            own = torch_generator(config.data.split_seed, "held-out-noise")
            test = test + data.noise * torch.randn(test.shape, generator=own)
            training = training + data.noise * torch.randn(training.shape, generator=generator)
        rows = torch.cat([test[chosen[0]], training])
        self._rows, self._count, self._context = rows.to(device), count, None
        if data.context is not None and config.energy.takes_context:
            of = data.context.held_out[chosen[0]], data.context.sample[chosen[1]]
            self._context = torch.cat(of).to(device)
        of_rows = zip(data.row_weights, chosen, strict=True)
        self._weights = [None if of is None else of[number].to(device) for of, number in of_rows]
        self._covariances: Covariances | None = None
        levels = config.energy.domain.levels
        pairs = (data.sample[0].numel() * (levels or 0)) ** 2 / 2 if len(data.sample) else 0
        told = data.sequences is not None and pairs <= COVARIANCES
        told = told or config.trainer.until_pearson is not None
        if told and levels and config.batches_per_step and not config.conditional:
            sample, weights = data.sample.flatten(1).to(device), data.row_weights.sample
            self._covariances = Covariances(sample, weights, levels)
        self._likeness: Likeness | None = None
        if config.batches_per_step and kept > 1:
            # chains of a model that knows contexts, but is not conditional, run under none
            context = self._context if config.conditional else None
            of_training = None if context is None else context[count:]
            self._likeness = Likeness(_joined(self._rows[count:], of_training), self._weights[1])
        size = rows[0].numel() if len(rows) else 1
        # the rows' energies when it last looked, and what they had changed by then
        self._before: Tensor | None = None
        self._change: Tensor | None = None
        self._sites = torch.randint(size, (count,), generator=generator).to(device)

    @torch.no_grad()
    def figures(self, energy: Energy, chains: Rows | None = None) -> dict[str, float]:
        """Returns the mean energy of the `held_out` and of the `training` rows, nats, and over
        levels the mean `pseudo_log_likelihood` of the held-out ones: sum_i log p(x_i | the others)
        (Besag 1975), or d times its term of one site i a row where a model does not have all at
        once (`Energy.pseudo_log_likelihood`). `told_apart` is the chance that a held-out row's
        energy is above a training row's, 1/2 where they are alike. Where no rows are held out these
        are left out, but for `training`.

        `turnover` is the standard deviation over rows of what their energies have changed by since
        the last look, in standard deviations of the energies: near 0 where a model rests, over 1
        where it is another one. `persistence` is the correlation over rows of that change with the
        one before: above 0 where a model goes somewhere, towards -1/2 where it goes to and fro. Of
        `chains` (positions [M, *shape], and contexts where those are theirs) it tells how like the
        training rows they are (`pipeline.training.likeness`), and of sequences how their
        covariances agree (`pipeline.training.covariances`).

        What log Z is does not matter to the difference of the means: it rises where a model comes
        to prefer the rows that it was trained on. Of a model whose positions have latent columns,
        rows have bounds of their energies (`Energy.of_rows`), and no pseudo-likelihood.
        """
        alike = {} if chains is None else self._of_chains(energy, chains)
        return self._of_rows(energy) | alike if len(self._rows) else alike

    def _of_chains(self, energy: Energy, chains: Rows) -> dict[str, float]:
        """Returns figures of the chains themselves, which need no energies of rows."""
        positions, found = energy.visible(chains.position), {}
        if self._likeness is not None:
            found = self._likeness.figures(_joined(positions, chains.context))
        if self._covariances is not None:
            found |= self._covariances.figures(positions.flatten(1))
        return found

    def _of_rows(self, energy: Energy) -> dict[str, float]:
        """The figures of held-out and training rows."""
        dtype = next(energy.parameters()).dtype
        context = None if self._context is None else self._context.to(dtype)
        rows = energy.into_domain(self._rows.to(dtype))
        values = energy.given(context).of_rows(rows).double()
        held_out, training = values[: self._count], values[self._count :]
        of_held_out, of_training = self._weights
        found = {"training": mean(training, of_training)}
        if self._count:
            above = held_out[:, None] > training
            apart = above.count_nonzero() / self._count**2
            if of_held_out is not None or of_training is not None:
                apart = mean(mean(above.double().T, of_training), of_held_out)
            found |= {"held_out": mean(held_out, of_held_out), "told_apart": apart}
        if self._before is not None:
            change = values - self._before
            found["turnover"] = change.std() / values.std()
            if self._change is not None:
                both = torch.stack([change, self._change])
                found["persistence"] = torch.corrcoef(both)[0, 1]
            self._change = change
        self._before = values
        if self._count and energy.levels is not None and energy.data_shape == energy.shape:
            bound = energy.given(None if context is None else context[: self._count])
            logs = bound.pseudo_log_likelihood(rows[: self._count])
            if logs is None:
                sites = site_log_likelihood(bound, rows[: self._count], self._sites)
                logs = energy.dimension * sites
            found["pseudo_log_likelihood"] = mean(logs.double(), of_held_out)
        figures = torch.stack([*found.values()]).tolist()
        return dict(zip(found, map(float, figures), strict=True))


def _joined(rows: Tensor, context: Tensor | None) -> Tensor:
    """Rows [N, ...], each with its context behind it, where there are any, `[N, d]`."""
    flat = rows.flatten(1).float()
    return (
        flat if context is None else torch.cat([flat, context.reshape(len(flat), -1).to(flat)], 1)
    )
