"""The numbers that the paper prints in its Tables 1 to 3."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources

__all__ = ["published"]


@cache
def published() -> Mapping[tuple[str, str, str, str], float]:
    """All 162, by task, model, method and metric; one run each, as the paper has it.

    References
    ----------
    Yun and Kim, arXiv 2408.01215v4, Tables 1 to 3.

    Examples
    --------
    >>> published()["cifar10", "resnet56", "znorm", "test_accuracy"]
    0.812
    """
    text = resources.files(__package__).joinpath("published.csv").read_text()
    return {
        (row["dataset"], row["model"], row["method"], row["metric"]): float(row["value"])
        for row in csv.DictReader(text.splitlines())
    }
