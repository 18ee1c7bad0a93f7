"""What holds for every data set, of those that are built in also for their images."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from znorm.lab import data, tasks
from znorm.lab.datasets import DataSpec, Origin
from znorm.lab.datasets.augmentation import AUGMENTATIONS
from znorm.lab.errors import MissingDataError
from znorm.lab.optimizers import check_schedule
from znorm.lab.spec import resolve
from znorm.lab.tasks import sets

BUILT_IN = [name for name, task in sets().items() if task.data.origin is None]
PUBLIC = [name for name in sets() if name not in BUILT_IN]


@pytest.mark.parametrize("name", sets())
def test_a_set_says_what_the_lab_asks_about_it(name: str) -> None:
    task = sets()[name]
    assert task.data.name == name
    assert set(task.data.keys) <= set(DataSpec.model_fields) - {"augment", "limit"}
    task.check(task.model, task.loss)
    check_schedule(task.schedule)
    assert task.augment in AUGMENTATIONS
    assert task.epochs >= 1
    assert task.batch_size >= 2
    assert task.learning_rate > 0
    for text in (task.label, task.about, task.data.about):
        assert text
        assert "\n" not in text
    row = next(row for row in data.listing() if row["name"] == name)
    assert row["state"] == ("built in" if task.data.origin is None else "missing")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_set_that_is_missing_says_what_to_put_where(name: str) -> None:
    source = sets()[name].data
    assert source.origin is not None
    assert source.state().state == "missing"
    with pytest.raises(MissingDataError) as caught:
        resolve({"task": name})
    text = str(caught.value)
    assert text.startswith(f"{name}: no data in {source.origin.path}; ")
    assert ("znorm data get" in text) == bool(source.origin.downloads)
    assert text.endswith(f"znorm data verify {name} then checks them")
    assert "{" not in text
    assert all(getattr(source.origin, one.name) is not None for one in fields(Origin))


@pytest.mark.parametrize("name", BUILT_IN)
def test_images_of_a_built_in_set_are_as_the_loop_takes_them(name: str) -> None:
    spec = resolve({"task": name, "device": "cpu"})
    dataset = tasks.load(name, spec.data)
    shape = dataset.train.images.shape[1:]
    names: list[str] = []
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (len(split), *shape)
        if sets()[name].output == "mask":
            assert split.targets.dtype == torch.uint8
            assert split.targets.shape == (len(split), *shape[1:])
            assert set(split.targets.unique().tolist()) <= {0, 1}
        else:
            assert split.targets.dtype == torch.int64
            assert split.targets.shape == (len(split),)
            assert int(split.targets.min()) >= 0
            assert int(split.targets.max()) < len(dataset.classes)
        assert len(split.names) in (0, len(split))
        assert len(split.patients) in (0, len(split))
        names += split.names
    assert len(dataset.train) >= 2
    assert len(dataset.test) >= 1
    assert len(names) == len(set(names))  # no image is in two splits
    train, validation, test = (
        {*split.patients} for split in (dataset.train, dataset.validation, dataset.test)
    )
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert tasks.load(name, spec.data).fingerprint == dataset.fingerprint
    assert sets()[name].data.is_whole(dataset)
