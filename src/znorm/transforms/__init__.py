"""Gradient transforms: frozen dataclasses whose formulas are written on moments."""

from __future__ import annotations

import torch

from znorm.layers import Layers
from znorm.transforms.adaptive import AdaptiveClip
from znorm.transforms.centralize import Centralize
from znorm.transforms.clip import ClipGlobalNorm, ClipNorm, ClipValue
from znorm.transforms.composition import Chain, Transform, chain
from znorm.transforms.zscore import UnitNorm, ZNorm

__all__ = [
    "AdaptiveClip",
    "Centralize",
    "Chain",
    "ClipGlobalNorm",
    "ClipNorm",
    "ClipValue",
    "Transform",
    "UnitNorm",
    "ZNorm",
    "chain",
]

# A transform is numbers and names: torch.load may read it with weights_only, in a checkpoint's
# hyperparameters for example.
torch.serialization.add_safe_globals(
    [
        AdaptiveClip,
        Centralize,
        Chain,
        ClipGlobalNorm,
        ClipNorm,
        ClipValue,
        Layers,
        UnitNorm,
        ZNorm,
    ]
)
