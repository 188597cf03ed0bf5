"""Figures of a model that need no Z, taken every few steps while it is trained."""

from __future__ import annotations

import torch

from pipeline.common.rng import torch_generator
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy, site_log_likelihood

ROWS = 1024
"""Held-out rows that are looked at, at most, and as many training rows: chosen once, so that a
curve shows the model and not the choice. A likelihood from them is that of the held-out set where
it has no more."""


class Probe:
    """The same few held-out and training rows of a run, and what a model says of them.

    Rows have the data's noise, drawn once, and their contexts. Held-out rows have the noise that
    they are evaluated with in the end. Over levels each row has one site
    for the pseudo-likelihood, chosen once.
    """

    def __init__(self, config: RunConfig, data: DataSet, device: torch.device) -> None:
        self._every = config.metrics.held_out_every
        generator = torch_generator(config.data.split_seed, "probe")
        count = min(len(data.held_out), len(data.sample), ROWS)
        chosen = [
            torch.randperm(len(rows), generator=generator)[:count]
            for rows in (data.held_out, data.sample)
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
        size = rows[0].numel() if count else 1
        self._sites = torch.randint(size, (count,), generator=generator).to(device)

    def due(self, version: int) -> bool:
        """Returns whether figures are taken of this version."""
        return bool(self._every and self._count and version % self._every == 0)

    @torch.no_grad()
    def figures(self, energy: Energy) -> dict[str, float]:
        """Returns the mean energy of the `held_out` and of the `training` rows, nats, and over
        levels the mean `pseudo_log_likelihood` of the held-out ones: d log p(x_i | the others) at
        one site i a row (Besag 1975).

        What log Z is does not matter to the difference of the means: it rises where a model comes
        to prefer the rows that it was trained on. There are none of a model whose positions have
        latent columns.
        """
        if energy.data_shape != energy.shape:
            return {}
        dtype = next(energy.parameters()).dtype
        context = None if self._context is None else self._context.to(dtype)
        rows = energy.into_domain(self._rows.to(dtype))
        values = energy.given(context)(rows).double()
        held_out, training = values.split(self._count)
        found = {"held_out": held_out.mean(), "training": training.mean()}
        if energy.levels is not None:
            bound = energy.given(None if context is None else context[: self._count])
            sites = site_log_likelihood(bound, rows[: self._count], self._sites)
            found["pseudo_log_likelihood"] = energy.dimension * sites.mean()
        figures = torch.stack([*found.values()]).tolist()
        return dict(zip(found, map(float, figures), strict=True))
