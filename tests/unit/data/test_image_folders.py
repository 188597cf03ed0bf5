"""Folders of images: their pixels, their labels, and what is refused of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.assembly.data import open_data
from pipeline.common.errors import PipelineError
from pipeline.config.compose import compose
from pipeline.data.base import DataSet

BINARY = ("energy=rbm", "kernel=gibbs", "data.noise=0")


def read(folder: Path, *overrides: str) -> DataSet:
    return open_data(
        compose(
            ["data=images", f"data.path={folder}", "trainer.batch_size=4", "energy=mlp", *overrides]
        )
    )


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def grey(number: int) -> np.ndarray:
    """An image of 6 by 4 pixels whose first one is its number."""
    return np.full((6, 4), 200) * (np.arange(24).reshape(6, 4) > 0) + number * (
        np.arange(24).reshape(6, 4) == 0
    )


def test_grey_images_and_their_labels(tmp_path: Path) -> None:
    """Grey levels become [-1, 1]; a sub-folder is a label, whatever lies in folders below it."""
    for number in range(30):
        folder = ["cat/kittens", "dog", "bird"][number % 3]
        save(tmp_path / folder / f"{number:02}.png", grey(number))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    save(tmp_path / ".thumbnails" / "1.png", grey(1))
    data = read(tmp_path, "data.held_out=6")
    assert (data.shape, data.rows, len(data.held_out)) == ((6, 4), 24, 6)
    number = ((data.sample[:, 0, 0] + 1) * 127.5).round().long()
    assert sorted(number.tolist()) == sorted(set(number.tolist()))
    torch.testing.assert_close(data.sample[:, 1, 1], torch.full((24,), 200 / 127.5 - 1))
    assert data.labels == {"folder": ["bird", "cat", "dog"]}
    assert data.context is not None
    assert torch.equal(data.context.sample, torch.tensor([1.0, 2.0, 0.0])[number % 3])


@pytest.mark.parametrize("channels", ["null", "3", "1"])
def test_colour(channels: str, tmp_path: Path) -> None:
    """Channels come first; a grey one is made of three where it is asked for; no folders, no
    labels.
    """
    for number in range(20):
        save(tmp_path / f"{number}.PNG", np.full((5, 5, 3), [255, 0, 51]))
    data = read(tmp_path, f"data.channels={channels}", "data.held_out=0.2")
    assert data.shape == ((5, 5) if channels == "1" else (3, 5, 5))
    assert (data.context, len(data.held_out)) == (None, 4)
    if channels == "1":  # ITU-R 601-2 luma, as Pillow has it
        wanted = torch.tensor(round(255 * 0.299 + 51 * 0.114) / 127.5 - 1)
    else:
        wanted = torch.tensor([1.0, -1.0, 51 / 127.5 - 1])[:, None, None].expand(3, 5, 5)
    torch.testing.assert_close(data.sample[0], wanted.expand(data.shape), atol=1 / 127, rtol=0)


def test_sizes_and_encodings(tmp_path: Path) -> None:
    """Images of several sizes are resized; every encoding of grey levels is there."""
    for number in range(20):
        save(tmp_path / f"{number}.jpg", np.full((5 + number % 2, 5), 255 * (number % 2)))
    data = read(tmp_path, "data.size=[4]", "data.encoding=binary", *BINARY)
    assert data.shape == (4, 4)
    assert data.sample.unique().tolist() == [0, 1]
    assert read(tmp_path, "data.size=[3,7]").shape == (3, 7)


def test_images_that_are_none(tmp_path: Path) -> None:
    """The file is named, and what to do."""
    for number in range(20):
        save(tmp_path / f"{number:02}.png", grey(number))
    cases = {
        "a.png": (b"\x89PNG\r\n\x1a\nno", "a.png: cannot be read as an image"),
        "b.png": ((tmp_path / "07.png").read_bytes()[:50], "b.png: cannot be read as an image"),
        "c.png": (np.zeros((6, 5)), "c.png: is 6 by 5 pixels, but "),
        "d.png": (np.zeros((6, 4), np.uint16), "d.png: has more than 8 bits a pixel"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(
                content if content.dtype == np.uint16 else content.astype(np.uint8)
            ).save(path)
        with pytest.raises(PipelineError, match=message):
            read(tmp_path)
        path.unlink()
    assert read(tmp_path).shape == (6, 4)
    with pytest.raises(PipelineError, match=r"00\.png: is a file; give a folder of images"):
        read(tmp_path / "00.png")
    with pytest.raises(PipelineError, match=r"nowhere: .*nothing there"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=r"no images there: \.png, \.jpg, \.jpeg files"):
        read(tmp_path / "empty")


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIL", "PIL.Image", "PIL.ImageOps"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PipelineError, match=r"data=images: .*pip install 'ebm-pipeline\[images\]'"):
        read(tmp_path)
