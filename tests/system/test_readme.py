"""README.md's lines for a table in hand, run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.sklearn import EBM, EnergyDetector, RBMFeatures

README = Path(__file__).resolve().parent.parent.parent / "README.md"
BLOCK = re.compile(r"^## A table in hand.*?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_a_table_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps than by default. Rows far away have the smallest p-value there is."""
    draw = np.random.default_rng(0).normal
    frame = pd.DataFrame(draw([5, 0, 100], [1, 0.1, 30], (200, 3)), columns=list("abc"))
    new = pd.concat([frame.sample(10, random_state=0), frame.head(10) + 1000])
    frame.to_csv(tmp_path / "table.csv", index=False)
    new.to_csv(tmp_path / "new.csv", index=False)
    monkeypatch.chdir(tmp_path)
    for estimator in (EBM, EnergyDetector, RBMFeatures):
        monkeypatch.setitem(estimator.__init__.__kwdefaults__, "steps", 40)  # type: ignore[misc]
    names: dict[str, Any] = {}
    (block,) = BLOCK.findall(README.read_text())
    exec(block, names)
    assert np.allclose(names["p_values"][10:], 1 / 41)  # a fifth of the rows calibrates
    assert names["p_values"][:10].mean() > 0.2
    assert names["samples"].shape == (100, 3)
    assert names["features"].shape == (200, 64)
