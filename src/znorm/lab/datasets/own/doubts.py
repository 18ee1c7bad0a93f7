"""Images of the user's that deserve a look before anything is trained on them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from znorm.lab.datasets.dataset import Dataset
from znorm.lab.datasets.own.contents import Contents
from znorm.lab.datasets.split import SPLITS

__all__ = ["Doubt", "doubts_of"]

# So much wider or higher than what it is resized to, a picture is squeezed to be seen.
_SQUEEZED = 1.5


@dataclass(frozen=True)
class Doubt:
    """Something about some images.

    Parameters
    ----------
    what : str
        In a few words.
    why : str
        A sentence: what it does to a result.
    groups : tuple of tuple of str
        The names of images; those of one tuple belong together.
    """

    what: str
    why: str
    groups: tuple[tuple[str, ...], ...]

    @property
    def count(self) -> int:
        return sum(map(len, self.groups))


def doubts_of(contents: Contents, dataset: Dataset) -> list[Doubt]:
    """List the doubtful images of a folder, the gravest first.

    Parameters
    ----------
    contents : Contents
    dataset : Dataset
        Its images, not limited in number.
    """
    images = _images(dataset)
    part_of = {
        item.name: part for item, part in zip(contents.listing.items, contents.parts, strict=True)
    }
    found = [
        *_copies(contents, images, part_of),
        _doubt(
            "the same in every pixel",
            "Nothing can be learned from an image without any content.",
            [name for name, image, _ in images if int(image.min()) == int(image.max())],
        ),
        _doubt(
            "marked as a whole",
            "A mask that marks every pixel is often an inverted or a wrong one.",
            [name for name, _, mask in images if mask is not None and bool((mask > 0).all())],
        ),
        _doubt(
            "squeezed",
            f"Their sides stand in a ratio that is {_SQUEEZED:g} times that of the size to which "
            "they are resized, or less.",
            _squeezed(contents),
        ),
        *_unmarked(contents, dataset),
    ]
    return [one for one in found if one is not None]


def _images(dataset: Dataset) -> list[tuple[str, Tensor, Tensor | None]]:
    """The name, image and mask of each case of all parts."""
    found: list[tuple[str, Tensor, Tensor | None]] = []
    for split in (dataset.train, dataset.validation, dataset.test):
        masks: Sequence[Tensor | None] = [None] * len(split.case_names)
        if split.has_masks:
            masks = split.cases(split.targets)
        found += zip(split.case_names, split.cases(split.images), masks, strict=True)
    return found


def _doubt(what: str, why: str, names: Sequence[str]) -> Doubt | None:
    return Doubt(what, why, tuple((name,) for name in names)) if names else None


def _copies(
    contents: Contents, images: Sequence[tuple[str, Tensor, Tensor | None]], part_of: dict[str, str]
) -> Iterator[Doubt]:
    """Images that are the same, pixel by pixel."""
    alike: defaultdict[bytes, list[str]] = defaultdict(list)
    masks: dict[str, bytes] = {}
    for name, image, mask in images:
        pixels = image.contiguous().numpy()
        if int(image.min()) < int(image.max()):
            alike[hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()] += [name]
        masks[name] = b"" if mask is None else mask.contiguous().numpy().tobytes()
    labels = {item.name: item.label for item in contents.listing.items}
    groups = [tuple(names) for names in alike.values() if len(names) > 1]
    in_parts = [one for one in groups if len({part_of[name] for name in one}) > 1]
    differing = [one for one in groups if len({(labels[name], masks[name]) for name in one}) > 1]
    others = [one for one in groups if one not in in_parts and one not in differing]
    learned = "class" if contents.listing.output == "classes" else "mask"
    for what, why, several in (
        (
            "the same image in two parts",
            "What was learned by heart counts as found: test scores are too high. Give both one "
            "group, or take one away.",
            in_parts,
        ),
        (
            f"the same image with another {learned}",
            f"One of each must have a wrong {learned}.",
            differing,
        ),
        ("the same image twice", "It counts twice in its part.", others),
    ):
        if several:
            yield Doubt(what, why, tuple(several))


def _squeezed(contents: Contents) -> list[str]:
    if contents.rule.overlap is not None:
        return []
    height, width = contents.rule.size
    names = []
    for item in contents.listing.items:
        facts = contents.facts[item.image]
        ratio = (facts.height / facts.width) / (height / width)
        if max(ratio, 1 / ratio) >= _SQUEEZED:
            names.append(item.name)
    return names


def _unmarked(contents: Contents, dataset: Dataset) -> Iterator[Doubt]:
    """Things that masks of a part never mark, whose scores there say nothing."""
    if contents.listing.output != "mask":
        return
    splits = (dataset.train, dataset.validation, dataset.test)
    for part, split in zip(SPLITS, splits, strict=True):
        counts = split.class_counts(len(contents.classes))
        for label, count in zip(contents.classes[1:], counts[1:], strict=True):
            if not count:
                yield Doubt(
                    f"{label} nowhere in the {part} part",
                    "It cannot be learned, or its score says nothing; give the parts by a column "
                    "of a table.",
                    (),
                )
