"""The figure of a receipt: what it shows is what the receipt holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from znorm import lab

VALUES = {"norm_before": 1e-3, "norm_after": 2.0, "mean": -1e-5, "std": 1e-3, "cosine": 0.9}


def receipt(layers: int, clipped: float = 0.0) -> dict[str, dict[str, float]]:
    return {
        f"layer{number}.weight": {**VALUES, "clipped": clipped, "steps": 1200}
        for number in range(layers)
    }


def test_names_titles_and_panels(tmp_path: Path) -> None:
    text = lab.draw_receipt(receipt(5), tmp_path / "few.svg").read_text()
    assert "Gradients by depth, means over 1,200 steps" in text
    assert all(f"layer{number}.weight" in text for number in range(5))
    assert "a clip acted" not in text
    text = lab.draw_receipt(receipt(90, clipped=0.25), tmp_path / "many.svg").read_text()
    assert "90 tensors, from layer0.weight to layer89.weight" in text
    assert "a clip acted" in text


def test_zeros_and_formats(tmp_path: Path) -> None:
    found = receipt(3)
    found["layer1.weight"].update(mean=0.0, norm_after=0.0, cosine=-0.2)
    with Image.open(lab.draw_receipt(found, tmp_path / "depth.png")) as picture:
        assert picture.size[0] > 600


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(lab.ConfigurationError, match="receipt: it is empty"):
        lab.draw_receipt({}, tmp_path / "depth.svg")
    with pytest.raises(lab.ConfigurationError, match=r"file: .*depth\.xyz: Format 'xyz'"):
        lab.draw_receipt(receipt(2), tmp_path / "depth.xyz")
