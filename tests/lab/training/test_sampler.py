from __future__ import annotations

import numpy as np
import pytest
import torch

from znorm.lab.datasets.augmentation import augment_, draws
from znorm.lab.training.sampler import batches, order


def test_order_is_a_permutation_and_a_function_of_seed_and_epoch() -> None:
    one = order(3, 5, 100)
    assert sorted(one.tolist()) == list(range(100))
    assert torch.equal(one, order(3, 5, 100))
    assert not torch.equal(one, order(3, 6, 100))
    assert not torch.equal(one, order(4, 5, 100))
    # Frozen: another order would change the numbers of every run.
    assert order(0, 0, 8).tolist() == [3, 4, 7, 6, 5, 2, 0, 1]


@pytest.mark.parametrize(
    ("size", "sizes"), [(10, [4, 4, 2]), (9, [4, 4]), (8, [4, 4]), (3, [3]), (1, [1])]
)
def test_batches_cover_the_epoch_but_for_a_lone_last_image(size: int, sizes: list[int]) -> None:
    found = batches(0, 0, size, 4)
    assert [len(batch) for batch in found] == sizes
    seen = torch.cat(found).tolist()
    assert len(set(seen)) == len(seen)


def test_augmentation_does_not_depend_on_the_batch() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    index = torch.arange(50)
    together = images.clone()
    augment_(together, "dihedral", 1, 2, index)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for part in shuffled.split(7):
        apart = images[part]
        augment_(apart, "dihedral", 1, 2, part)
        assert torch.equal(apart, together[part])


def test_each_image_is_turned_as_its_draw_says() -> None:
    images = torch.randint(0, 256, (64, 3, 5, 5), dtype=torch.uint8)
    index = torch.arange(64)
    turned = images.clone()
    augment_(turned, "dihedral", 0, 0, index)
    for number, before, after in zip(
        draws(0, 0, index), images.numpy(), turned.numpy(), strict=True
    ):
        expected = np.rot90(before, int(number) % 4, (1, 2))
        if int(number) & 4:
            expected = expected[:, :, ::-1]
        assert np.array_equal(after, expected)


def test_draws_are_uniform_over_the_eight_turns_and_differ_between_epochs() -> None:
    index = torch.arange(80_000)
    counts = np.bincount((draws(0, 0, index) & np.uint64(7)).astype(np.int64), minlength=8)
    # Standard deviation of a count: sqrt(80000 * 1/8 * 7/8) = 94.
    assert np.abs(counts - 10_000).max() < 5 * 94
    same = (draws(0, 0, index) & np.uint64(7)) == (draws(0, 1, index) & np.uint64(7))
    assert abs(same.mean() - 1 / 8) < 0.01


def test_masks_are_moved_as_their_images() -> None:
    images = torch.randint(0, 256, (64, 1, 12, 12), dtype=torch.uint8)
    for kind in ("flip", "crop_flip", "dihedral"):
        pictures, masks = images.clone(), images[:, 0].clone()
        augment_(pictures, kind, 0, 0, torch.arange(64), masks)
        assert torch.equal(pictures[:, 0], masks), kind
        assert not torch.equal(pictures, images), kind


def test_half_are_flipped_and_shifts_reach_four_pixels_each_way() -> None:
    images = torch.zeros(4000, 1, 11, 11, dtype=torch.uint8)
    images[:, 0, 5, 4] = 1
    flipped = images.clone()
    augment_(flipped, "flip", 0, 0, torch.arange(4000))
    assert 0.45 < flipped[:, 0, 5, 6].double().mean() < 0.55
    assert (flipped.flatten(1).sum(1) == 1).all()
    shifted = images.clone()
    augment_(shifted, "crop_flip", 0, 0, torch.arange(4000))
    rows, columns = shifted[:, 0].nonzero()[:, 1], shifted[:, 0].nonzero()[:, 2]
    assert sorted(set(rows.tolist())) == list(range(1, 10))
    assert sorted(set(columns.tolist())) == list(range(0, 11))
    assert np.bincount(rows.numpy(), minlength=10)[1:].min() > 300


def test_none_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    before = images.clone()
    augment_(images, "none", 0, 0, torch.arange(4))
    assert torch.equal(images, before)
