"""The part of a specification that says which images a run uses."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field, field_validator

from znorm.lab.datasets.augmentation import AUGMENTATIONS
from znorm.lab.registry import lookup

__all__ = ["DataSpec"]


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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    augment: str
    validation: float | None = Field(default=None, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    train: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    layout: str | None = None
    split: dict[str, tuple[str, ...]] | None = None

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, value: str) -> str:
        lookup("augmentation", value, dict.fromkeys(AUGMENTATIONS, 0))
        return value

    @property
    def key(self) -> str:
        """The same for the same images, whatever is done to them."""
        return json.dumps(self.model_dump(mode="json", exclude={"augment"}), sort_keys=True)
