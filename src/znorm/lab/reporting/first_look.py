"""The page on a folder of the user's that is there before anything is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import znorm
from znorm.lab.datasets import Dataset, DataSpec
from znorm.lab.datasets.own.contents import Contents
from znorm.lab.datasets.own.doubts import Doubt
from znorm.lab.datasets.split import SPLITS
from znorm.lab.reporting.figures import patches
from znorm.lab.reporting.page import templates
from znorm.lab.runs.files import write_atomically
from znorm.lab.spec import RunSpec
from znorm.lab.text import link

__all__ = ["write_first_look"]

NAME = "first-look.html"
# Names of doubtful images that the page shows of each kind.
_MOST = 100
_SIZES = 12


@dataclass(frozen=True)
class _Setting:
    """A setting of the runs, and how another is asked for."""

    name: str
    value: str
    how: str


def write_first_look(
    root: Path, spec: RunSpec, contents: Contents, dataset: Dataset, doubts: list[Doubt]
) -> Path:
    """Write ``first-look.html`` under ``root``.

    Parameters
    ----------
    root : Path
    spec : RunSpec
        Of one of the runs that are to be trained.
    contents : Contents
        Of the folder.
    dataset : Dataset
        Its images by the rule, all of them.
    doubts : list of Doubt
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    number = len(dataset.classes)
    counts = {part: split.class_counts(number) for part, split in splits.items()}
    groups = {
        part: len({contents.listing.items[place].group for place in contents.in_part(part)})
        for part in SPLITS
    }
    sizes = Counter((one.height, one.width) for one in contents.facts.values())
    places = {item.name: link(root, item.image.absolute()) for item in contents.listing.items}
    page = (
        templates()
        .get_template("first_look.html.j2")
        .render(
            contents=contents,
            listing=contents.listing,
            classes=dataset.classes,
            counts=counts,
            images={part: len(contents.in_part(part)) for part in SPLITS},
            groups=groups,
            sizes=sizes.most_common(_SIZES),
            more_sizes=max(0, len(sizes) - _SIZES),
            kinds=Counter(
                f"{one.kind}, {_channels(one.channels)}" for one in contents.facts.values()
            ),
            notes=dataset.notes,
            settings=_settings(spec),
            doubts=doubts,
            most=_MOST,
            places=places,
            patches=patches(dataset),
            version=znorm.__version__,
        )
    )
    path = root / NAME
    write_atomically(path, page.encode(errors="replace"))
    return path


def _channels(number: int) -> str:
    return "1 channel" if number == 1 else f"{number} channels"


def _test_part(data: DataSpec) -> str:
    if data.folds is not None:
        return f"each of {data.folds} folds in turn"
    return "your own" if data.test_share is None else f"{data.test_share:.3g} of the groups"


def _settings(spec: RunSpec) -> list[_Setting]:
    data = spec.data
    assert data.size is not None
    height, width = data.size
    window = "8 bits as they are" if data.window is None else "{:g} to {:g}".format(*data.window)
    settings = [
        _Setting("Model", spec.model, "--model NAME"),
        _Setting("Loss", spec.loss, "--set loss=NAME"),
        _Setting("Epochs", str(spec.epochs), "--epochs N"),
        _Setting("Images in a batch", str(spec.batch_size), "--batch-size N"),
        _Setting("Learning rate", f"{spec.learning_rate:g}, {spec.schedule}", "--lr, --schedule"),
        _Setting("Augmentation", data.augment, "--set data.augment=NAME"),
        _Setting("Size", f"{height}x{width} pixels", "--set data.size=[HEIGHT,WIDTH]"),
        _Setting("Channels", str(data.channels), "--set data.channels=1 or 3"),
        _Setting("Window of values", window, "--set data.window=[LOW,HIGH]"),
        _Setting("Test part", _test_part(data), "--set data.test_share=SHARE, or --folds N"),
        _Setting(
            "Validation part",
            "your own" if data.validation is None else f"{data.validation:.3g} of the rest",
            "--set data.validation=SHARE",
        ),
    ]
    if spec.loss != "cross_entropy":
        tiles = "resized" if data.overlap is None else f"in tiles, {100 * data.overlap:g} % shared"
        settings.append(_Setting("Larger pictures", tiles, "--set data.overlap=SHARE"))
    return settings
