"""Gradient normalization for PyTorch: z-scores, centralization and clipping in any optimizer.

>>> import torch, znorm
>>> net = torch.nn.Linear(4, 2)
>>> optimizer = torch.optim.Adam(net.parameters())
>>> attachment = znorm.attach(optimizer, znorm.ZNorm(), model=net)
"""

from __future__ import annotations

from znorm import optim
from znorm.attachment import Attachment, attach
from znorm.layout import Layout
from znorm.moments import Affine, Moments
from znorm.step import apply_, decide, measure, z_score_
from znorm.transforms import (
    Centralize,
    ClipGlobalNorm,
    ClipNorm,
    ClipValue,
    UnitNorm,
    ZNorm,
    chain,
)

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Attachment",
    "Centralize",
    "ClipGlobalNorm",
    "ClipNorm",
    "ClipValue",
    "Layout",
    "Moments",
    "UnitNorm",
    "ZNorm",
    "__version__",
    "apply_",
    "attach",
    "chain",
    "decide",
    "measure",
    "optim",
    "z_score_",
]
