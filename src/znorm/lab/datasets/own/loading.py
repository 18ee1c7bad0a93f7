"""The images of a folder of the user's, decoded by its rule: a data set in three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.decoded import Pixels, decoded, fits_in_memory
from znorm.lab.datasets.own.contents import Contents
from znorm.lab.datasets.own.masks import numbered
from znorm.lab.datasets.own.notes import notes_of
from znorm.lab.datasets.own.reading import read_slice
from znorm.lab.datasets.split import SPLITS
from znorm.lab.datasets.tiles import Tiles

__all__ = ["dataset_of"]


def dataset_of(contents: Contents) -> Dataset:
    """The images, labels or masks of a folder.

    Raises
    ------
    DataError
        For a file that cannot be decoded or does not fit the others.
    """
    tiles = _tiles(contents)
    whole = _pixels(contents, len(contents.listing.items) if tiles is None else len(tiles.picture))
    train, validation, test = (_split(contents, whole, tiles, part) for part in SPLITS)
    return Dataset(train, validation, test, contents.classes, tuple(notes_of(contents)))


def _split(contents: Contents, whole: torch.Tensor, tiles: Tiles | None, part: str) -> Split:
    """A part of all images by the rule, behind whose channels the masks stand."""
    listing, rule = contents.listing, contents.rule
    items = contents.in_part(part)
    index = torch.tensor(items, dtype=torch.int64)
    if tiles is not None:
        index = torch.isin(tiles.picture, index).nonzero().flatten()
        tiles = tiles.take(index)
        items = tiles.picture.tolist()
    chosen = whole[index]
    is_mask = listing.output == "mask"
    names = [listing.items[place].name for place in items]
    if tiles is not None:
        corners = tiles.corner.tolist()
        names = [f"{name}@{y},{x}" for name, (y, x) in zip(names, corners, strict=True)]
    patients = [listing.items[place].group for place in items] if listing.grouped else []
    return Split(
        chosen[..., : rule.channels].permute(0, 3, 1, 2),
        chosen[..., rule.channels] if is_mask else torch.tensor(contents.strata)[index],
        tuple(names),
        tuple(patients),
        not fits_in_memory(tuple(whole.shape)),
        _spacing(contents, items),
        tiles,
    )


def _tiles(contents: Contents) -> Tiles | None:
    """The places of all tiles, the pictures in order of the listing."""
    if contents.rule.overlap is None:
        return None
    sizes, pictures, corners = [], [], []
    for number, item in enumerate(contents.listing.items):
        of_image = contents.facts[item.image]
        sizes.append((of_image.height, of_image.width))
        places = contents.rule.places(*sizes[-1]) or []
        pictures += [number] * len(places)
        corners += places
    items = contents.listing.items
    return Tiles(
        torch.tensor(pictures),
        torch.tensor(corners),
        tuple(sizes),
        tuple(item.name for item in items),
    )


def _spacing(contents: Contents, items: Sequence[int]) -> torch.Tensor | None:
    """Millimetres from pixel to pixel, as large as the rule makes them."""
    if contents.unit is None:
        return None
    rows = []
    for place in items:
        of_image = contents.facts[contents.listing.items[place].image]
        assert of_image.spacing is not None
        there = (of_image.height, of_image.width)
        sides = there if contents.rule.overlap is not None else contents.rule.size
        pairs = zip(of_image.spacing, there, sides, strict=True)
        rows.append([one * before / after for one, before, after in pairs])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


def _pixels(contents: Contents, count: int) -> torch.Tensor:
    """All images by the rule, and behind their channels the masks: (N, H, W, channels)."""
    listing, rule = contents.listing, contents.rule
    shape = (count, *rule.size, rule.channels + (listing.output == "mask"))

    def fill(pixels: Pixels) -> None:
        row = 0
        for item in listing.items:
            images = rule.pictures(read_slice(item.image, item.slice))
            rows = slice(row, row + len(images))
            pixels[rows, ..., : rule.channels] = images
            if item.mask is not None:
                of_image = contents.facts[item.image]
                size = (of_image.height, of_image.width)
                numbers = numbered(item.mask, item.slice, rule.labels, size)
                pixels[rows, ..., rule.channels] = rule.masks(numbers)
            row += len(images)

    digest = hashlib.sha256(f"{rule} {listing.folder}".encode()).hexdigest()[:8]
    return decoded(f"own-{digest}", listing.files, shape, fill)
