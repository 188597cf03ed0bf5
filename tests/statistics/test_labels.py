"""The classifier in a joint energy: its loss from energies alone, its gradient, and labels that do
not fit it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.energies.label_mlp import LabelMLP
from pipeline.objectives.labels import LabelLikelihood
from tests.statistics.trainable import sides


def model() -> LabelMLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        energy = LabelMLP(
            (3,), (), hidden=[8], classes=4, class_conditional=False, base_scale=1.0
        ).double()
        for parameter in energy.parameters():
            torch.nn.init.normal_(parameter)
    return energy


def test_the_loss_is_that_of_the_energies_of_every_label() -> None:
    """-log p(y | x) = E(x, y) + log sum_k exp(-E(x, k)), and its gradient in every parameter, by
    autograd of those energies.
    """
    energy, generator = model(), torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (20,), generator=generator).double()
    (part,) = LabelLikelihood().parts(energy, sides(x, context=labels))
    every = torch.stack(
        [energy.of_class(torch.full((20,), float(k), dtype=torch.float64))(x) for k in range(4)], 1
    )
    own = every.gather(1, labels.long()[:, None])[:, 0]
    by_hand = (own + torch.logsumexp(-every, 1)).sum()
    assert (part.name, part.rows) == ("label", 20)
    torch.testing.assert_close(part.total, by_hand)
    for one, other in zip(
        torch.autograd.grad(part.total, list(energy.parameters())),
        torch.autograd.grad(by_hand, list(energy.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    (wrong,) = LabelLikelihood().parts(energy, sides(x, context=labels.roll(1)))
    assert abs(float((wrong.total - by_hand).detach())) > 1, (
        "labels do not matter here: this tests nothing"
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], r"energy\.classes=2: the labels reach to 2; use 3"),
        ([0, 1, 0.5], r"data\.context=\['label'\]: a label is 0\.5"),
        ([0, -1, 1], r"data\.context=\['label'\]: a label is -1"),
    ],
)
def test_labels_that_are_none_are_refused(
    tmp_path: Path, labels: list[float], message: str
) -> None:
    """Beyond `energy.classes`, between two of them, or below 0."""
    values = np.tile(np.array(labels, np.float32), 10)
    pq.write_table(
        pa.table({"a": values, "b": -values, "label": values}), tmp_path / "rows.parquet"
    )
    config = [
        *("data=columns", f"data.path={tmp_path}/rows.parquet", "data.context=[label]"),
        *("data.held_out=5", "energy=label_mlp", "energy.classes=2", "trainer.batch_size=8"),
    ]
    with pytest.raises(ConfigError, match=message):
        open_data(compose(config))
