"""Pictures of sequences: what they show is what the model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.base import in_memory
from pipeline.data.fasta import Sequences
from pipeline.data.similarity import nearest
from pipeline.energies.base import Energy
from pipeline.energies.potts import PottsModel
from pipeline.energies.rbm import PottsRBM
from pipeline.evaluation.letter_pictures import mutation_panels, single_changes
from pipeline.evaluation.pictures import draw_samples

LETTERS = Sequences("ACGU", [9, 10, 11, 12, 14], "ACGUA", ["a"] * 8, np.ones(8), 0, ["a"] * 8)


def random_energy(kind: str) -> Energy:
    energy: Energy = (
        PottsModel((5,), levels=4)
        if kind == "potts"
        else PottsRBM((5,), hidden=3, levels=4, weight_scale=0.1)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in energy.parameters():
        parameter.data.normal_(generator=generator)
    return energy.requires_grad_(False)


@pytest.mark.parametrize("kind", ["potts", "potts_rbm"])
def test_changes_are_differences_of_energies(kind: str) -> None:
    energy, wild_type = random_energy(kind), torch.tensor([0.0, 3.0, 1.0, 2.0, 0.0])
    changes = single_changes(energy, wild_type)
    own = energy(wild_type[None]).item()
    for site in range(5):
        for letter in range(4):
            mutant = wild_type.clone()
            mutant[site] = letter
            expected = energy(mutant[None]).item() - own
            assert changes[site, letter] == pytest.approx(expected, abs=1e-4)


def test_a_site_without_a_letter_has_no_changes() -> None:
    changes = single_changes(random_energy("potts"), torch.tensor([0.0, -1.0, 1.0, 2.0, 0.0]))
    assert np.isnan(changes).all(1).tolist() == [False, True, False, False, False]


def test_a_sequence_is_not_its_own_neighbour() -> None:
    rows = np.array([[0, 1, 2], [0, 1, 1], [3, 3, 3]], np.int8)
    places, identity = nearest(rows[[1, 2]], rows, np.array([1, 2]))
    assert places.tolist() == [0, 0]
    assert identity == pytest.approx([2 / 3, 0])


def test_samples_stand_as_letters(tmp_path: Path) -> None:
    rows = torch.randint(4, (8, 5), generator=torch.Generator().manual_seed(1)).float()
    data = in_memory(rows[:6], rows[6:], 0.0)._replace(sequences=LETTERS)
    drawn = draw_samples(random_energy("potts"), rows[:3], data, "caption", str(tmp_path))
    assert drawn == {}
    assert (tmp_path / "samples.png").stat().st_size > 5000


@pytest.mark.parametrize("measured", [0, 6])
def test_a_map_of_mutations_has_a_cell_for_each(measured: int) -> None:
    energy, wild_type = random_energy("potts"), torch.tensor([0.0, 3.0, 1.0, 2.0, 0.0])
    known = np.arange(measured), np.arange(measured)
    figure = mutation_panels(energy, wild_type, LETTERS, known, "caption")
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown == pytest.approx(single_changes(energy, wild_type).T)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list("ACGU")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["10"]
    assert len(figure.axes) == (3 if measured else 2)  # with the scale of colours
