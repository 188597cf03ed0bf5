"""Each part by itself: kernels, objectives and annealed importance sampling for an energy of one's
own, a function or a module from positions `[N, *shape]` to nats `[N]`, without a configuration.

Nothing changes the module that is given: its tensors, its gradients, what asks for gradients, and
its modes stay as they are. A wrong argument is refused by `ArgumentError`, which names it.
"""

from pipeline.library.annealing import log_partition
from pipeline.library.losses import (
    conditional_nce,
    contrastive,
    denoising,
    finite_difference,
    hutchinson,
    nce,
    pseudo_likelihood,
    ratio_matching,
    score_matching,
    sliced,
)
from pipeline.library.sampling import Samples, sample

__all__ = [
    "Samples",
    "conditional_nce",
    "contrastive",
    "denoising",
    "finite_difference",
    "hutchinson",
    "log_partition",
    "nce",
    "pseudo_likelihood",
    "ratio_matching",
    "sample",
    "score_matching",
    "sliced",
]
