"""A score as one object: its name, its definition, how it is computed and where tables show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from znorm.lab.metrics.classification import confusion_matrix
from znorm.lab.metrics.segmentation import Counts

__all__ = ["ClassPredictions", "ClassScore", "Column", "MaskScore"]


@dataclass(frozen=True)
class Column:
    """A column of the tables of results.

    Parameters
    ----------
    key : str
        The metric's name in result.json, such as "test_accuracy".
    title : str
    digits : int
        After the point.
    scale : float
        100 for a share that is shown in percent.
    optional : bool
        Whether there is no column where no finished run has the metric: as it was made by an
        earlier version, or has more classes than the metric is defined for.
    place : int
        Columns stand by rising place, the headline at 0, the train loss at 60.
    """

    key: str
    title: str
    digits: int
    scale: float = 1.0
    optional: bool = True
    place: int = 50

    def show(self, value: float) -> str:
        """The value as the tables print it."""
        return f"{value * self.scale:.{self.digits}f}"


@dataclass(frozen=True, eq=False)
class ClassPredictions:
    """The outputs of a classifier and the true classes, with what several scores need of them.

    Parameters
    ----------
    logits : Tensor of shape (N, classes), float64
    labels : Tensor of shape (N,), int64
    """

    logits: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def probabilities(self) -> Tensor:
        """The probability of each class: (N, classes)."""
        return self.logits.softmax(1)

    @cached_property
    def confusion(self) -> Tensor:
        """Cases by true class, in rows, and predicted class: (classes, classes), int64."""
        return confusion_matrix(self.logits.argmax(1), self.labels, self.classes)


@dataclass(frozen=True)
class ClassScore:
    """A score of class predictions.

    Parameters
    ----------
    name : str
        In result.json after the split's, as in "test_accuracy".
    definition : str
        A sentence that pages print.
    compute : callable (ClassPredictions) -> float
        nan where it is undefined, which leaves it out.
    two_classes : bool
        Whether it is for two classes alone.
    column : Column or None
        Where tables show it, if they do.
    """

    name: str
    definition: str
    compute: Callable[[ClassPredictions], float]
    two_classes: bool = False
    column: Column | None = None


@dataclass(frozen=True)
class MaskScore:
    """A score of masks that follows from counts of pixels.

    It is computed of all pixels pooled, of each slice (``_per_slice``) and, where patients are
    known, of each patient (``_per_patient``).

    Parameters
    ----------
    name : str
        In result.json after the split's, as in "test_f1".
    formula : str
        For the sentence that pages print, as "TP / (TP + FP + FN)".
    compute : callable (Counts) -> Tensor of shape (N,), float64
        1 where truth and prediction are both empty, 0 where one of them is.
    columns : tuple of Column
        Where tables show it, if they do.
    """

    name: str
    formula: str
    compute: Callable[[Counts], Tensor]
    columns: tuple[Column, ...] = ()
