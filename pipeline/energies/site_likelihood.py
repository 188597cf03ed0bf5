"""The pseudo-likelihood of a Potts model: all sites' conditionals and the gradient in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.energies.couplings import add_columns_, chosen, pulls_of
from pipeline.energies.letters import Letters, one_hot


class SiteLikelihood(torch.autograd.Function):
    """sum_n w_n sum_i log p(x_ni | the others) of a Potts model with fields h and couplings J,

        log p(x_i = a | the others) = h_i(a) + sum_j J_ij(a, x_j) - logsumexp_b (...),

    and its derivatives, worked out for some sites at a time, so that neither the logits of all
    sites nor the square J are ever there as a whole.
    """

    @staticmethod
    def forward(
        ctx: Any, letters: Letters, weights: Tensor | None, field: Tensor, coupling: Tensor
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad[2:])
        sites, levels = field.shape
        # of so many terms float32 would lose what a line search asks for
        total = field.new_zeros((), dtype=torch.float64)
        of_field, of_coupling = torch.zeros_like(field), None
        if wanted:
            of_coupling = torch.zeros_like(coupling)
        for first, last, pulls in pulls_of(letters, coupling):
            own = letters.x[:, first:last]
            logs = pulls.add_(field[first:last]).log_softmax(2)
            values = chosen(logs, own)
            total += (values if weights is None else values * weights[:, None]).sum(
                dtype=torch.float64
            )
            if of_coupling is None:
                continue
            # d/dlogits: [x = a] - p(a), and 0 where the letter is missing
            slopes = logs.exp_().neg_().mul_((own >= 0)[..., None])
            slopes += one_hot(own, levels, slopes.dtype)
            if weights is not None:
                slopes *= weights[:, None, None]
            of_field[first:last] = slopes.sum(0)
            part = letters.by_letter(slopes.flatten(1))
            add_columns_(of_coupling, part.view(sites, levels, last - first, levels), first, last)
        ctx.gradients = of_field, of_coupling
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, None, Tensor, Tensor]:
        of_field, of_coupling = ctx.gradients
        ctx.gradients = None
        return None, None, of_field.mul_(slope), of_coupling.mul_(slope)
