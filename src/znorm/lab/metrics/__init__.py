"""Scores, by the names of the published tables."""

from __future__ import annotations

from znorm.lab.metrics.classification import accuracy, correct

__all__ = ["accuracy", "correct"]
