from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest
import torch

from znorm.lab.datasets import Dataset, Split, pcam_mini
from znorm.lab.errors import DataError


@pytest.fixture(scope="module")
def data() -> Dataset:
    return pcam_mini.load(0.15)


def test_parts_have_the_stated_sizes_and_classes(data: Dataset) -> None:
    assert [len(p) for p in (data.train, data.validation, data.test)] == [1304, 230, 380]
    assert data.test.labels.bincount().tolist() == [190, 190]
    assert (data.train.labels.bincount() + data.validation.labels.bincount()).tolist() == [
        1034,
        500,
    ]
    assert data.validation.labels.bincount().tolist() == [155, 75]


def test_images_and_labels_are_those_of_the_file(data: Dataset) -> None:
    file = resources.files("znorm.lab.datasets").joinpath("pcam_mini.npz")
    with resources.as_file(file) as path, np.load(path) as archive:
        images, labels, ids = archive["images"], archive["labels"], archive["ids"]
        is_test = archive["is_test"]
    assert data.test.images.shape == (380, 3, 32, 32)
    assert data.test.images.dtype == torch.uint8
    expected = images[is_test].transpose(0, 3, 1, 2)
    assert np.array_equal(data.test.images.numpy(), expected)
    assert np.array_equal(data.test.labels.numpy(), labels[is_test])
    # The validation part written out: the lowest sha256 of the id, 15 % of each class.
    chosen = []
    for label in (0, 1):
        members = [i for i in range(len(ids)) if not is_test[i] and labels[i] == label]
        members.sort(key=lambda i: hashlib.sha256(bytes(ids[i])).hexdigest())
        chosen += members[: round(0.15 * len(members))]
    assert np.array_equal(
        data.validation.images.numpy(), images[sorted(chosen)].transpose(0, 3, 1, 2)
    )


def test_no_image_is_in_two_parts(data: Dataset) -> None:
    seen = [
        {image.numpy().tobytes() for image in part.images}
        for part in (data.train, data.validation, data.test)
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_a_limit_keeps_all_classes_and_is_noted(data: Dataset) -> None:
    few = data.limited(10)
    assert [len(p) for p in (few.train, few.validation, few.test)] == [10, 10, 10]
    for part in (few.train, few.validation, few.test):
        assert part.labels.bincount().tolist() == [5, 5]
    assert few.notes[-1].startswith("Limited to 10 images")
    assert data.limited(None) is data


def test_a_limit_spreads_over_a_part_and_fills_up_from_other_classes() -> None:
    labels = torch.tensor([0] * 8 + [1] * 3 + [0] * 8 + [2])
    part = Split(torch.arange(20, dtype=torch.uint8)[:, None, None, None], labels)

    def chosen(number: int) -> list[int]:
        found: list[int] = part.limited(number).images.flatten().tolist()
        return found

    assert chosen(2) == [0, 8]
    assert chosen(5) == [0, 8, 9, 11, 19]  # the ninth of the first class is number 11
    assert part.limited(10).labels.bincount().tolist() == [6, 3, 1]
    assert [len(chosen(number)) for number in range(1, 20)] == list(range(1, 20))
    assert part.limited(20) is part


def test_statistics_are_those_of_the_training_pixels(data: Dataset) -> None:
    mean, std = data.statistics
    pixels = data.train.images.numpy().astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), pixels.std((0, 2, 3)), rtol=1e-6)


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcam_mini, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="expected sha256 000000000000, found"):
        pcam_mini.load(0.15)
