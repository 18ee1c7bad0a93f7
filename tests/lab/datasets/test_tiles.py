"""Tiles against the whole pictures that they were cut from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from znorm.lab.datasets.own.rule import Rule
from znorm.lab.datasets.tiles import Tiles, corners

SIZES = [(8, 8), (8, 20), (21, 13), (5, 30), (3, 3)]


def tiles_of(rule: Rule) -> Tiles:
    places = [rule.places(*size) or [] for size in SIZES]
    numbers = [number for number, one in enumerate(places) for _ in one]
    return Tiles(
        torch.tensor(numbers),
        torch.tensor([corner for one in places for corner in one]),
        tuple(SIZES),
        tuple("abcde"),
    )


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
def test_what_is_cut_and_put_together_is_the_same(overlap: float) -> None:
    rule = Rule(1, None, (8, 8), overlap)
    random = np.random.default_rng(0)
    whole = [random.integers(0, 256, size).astype(np.uint8) for size in SIZES]
    cut = torch.from_numpy(np.concatenate([rule.masks(one) for one in whole]))
    tiles = tiles_of(rule)
    assert len(cut) == len(tiles.picture)
    for values in (cut, cut.float()):
        for pieces in ([values], values.split(3)):
            joined = dict(tiles.joined(pieces))
            assert list(joined) == list(range(len(SIZES)))
            for number, one in joined.items():
                np.testing.assert_allclose(one.numpy(), whole[number], rtol=1e-6)


def test_neighbours_share_what_is_asked_and_all_is_covered() -> None:
    for overlap in (0.0, 0.3, 0.5):
        starts = sorted({left for _, left in corners(16, 107, (16, 16), overlap)})
        assert starts[0] == 0
        assert starts[-1] == 107 - 16
        steps = np.diff(starts)
        assert max(steps) <= 16 * (1 - overlap) + 1


def test_the_middle_of_a_tile_counts_more_than_its_edge() -> None:
    tiles = Tiles(torch.tensor([0, 0]), torch.tensor([[0, 0], [0, 2]]), ((1, 6),), ("a",))
    first, second = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    ((_, whole),) = tiles.joined([torch.stack([first, second])])
    # Weights 1 2 2 1: where the tiles overlap, 2 of the first's to 1 of the second's, then 1 to 2.
    assert whole.flatten().tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])
