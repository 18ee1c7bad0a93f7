"""The part of a specification that says which images a run uses."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from znorm.lab.datasets.augmentation import AUGMENTATIONS
from znorm.lab.registry import lookup

__all__ = ["DataSpec"]


_FIRST_KEYS = ("limit", "validation", "train", "test", "layout", "split")


class DataSpec(BaseModel):
    """The images that a run uses, and how they are changed.

    Parameters
    ----------
    augment : str
        "none", "flip", "crop_flip" or "dihedral"; see
        :func:`znorm.lab.datasets.augmentation.augment_`.
    validation : float or None
        The share of the training images that is set apart; None where the set has a split for it.
    limit : int or None
        At most so many images of each split.
    train, test : tuple of str or None
        Parts of a set that comes in parts, such as ("1", "2") and ("test",).
    layout : str or None
        The edition of a set that is read, where there are two.
    split : mapping or None
        The patients for "train", "validation" and "test".
    folder, table : str or None
        Of the user's own images: where they lie, and the CSV file that lists them.
    contents : str or None
        A digest of their names, labels, groups and parts: the same wherever the folder lies.
    size, channels, window : optional
        The rule by which they are read: height and width, 1 or 3, and the values that become 0 and
        255.
    overlap : float or None
        Pictures are cut into tiles of that size, of which neighbours share so much of their side.
    labels : mapping or None
        The values in masks of what they mark, by name, where it is not one thing.
    unit : "mm" or None
        Of distances; pixels where None.
    test_share : float or None
        The share of groups that is the test part.
    fold : int or None
        Which of the folds that is.
    folds : int or None
        Of how many, where each is tested in turn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    augment: str
    validation: float | None = Field(default=None, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    train: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    layout: str | None = None
    split: dict[str, tuple[str, ...]] | None = None
    folder: str | None = None
    table: str | None = None
    contents: str | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    window: tuple[float, float] | None = None
    overlap: float | None = None
    labels: dict[str, int] | None = None
    unit: Literal["mm"] | None = None
    test_share: float | None = None
    fold: int | None = None
    folds: int | None = None

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, value: str) -> str:
        lookup("augmentation", value, dict.fromkeys(AUGMENTATIONS, 0))
        return value

    @property
    def key(self) -> str:
        """The same for the same images, whatever is done to them."""
        content = self.model_dump(mode="json", exclude={"augment"})
        # What came later is left out where nobody sets it: names of files are made of this.
        shown = {k: v for k, v in content.items() if k in _FIRST_KEYS or v is not None}
        return json.dumps(shown, sort_keys=True)
