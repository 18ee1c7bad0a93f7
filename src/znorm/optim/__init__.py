"""torch's optimizers with a gradient transform built in."""

from __future__ import annotations

from znorm.optim.adam import Adam, AdamW
from znorm.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW"]
