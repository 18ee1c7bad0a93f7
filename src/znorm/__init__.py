"""Gradient normalization for PyTorch: z-scores, centralization and clipping in any optimizer.

>>> import torch, znorm
>>> net = torch.nn.Linear(4, 2)
>>> optimizer = torch.optim.Adam(net.parameters())
>>> attachment = znorm.attach(optimizer, znorm.ZNorm(), model=net)
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from znorm import optim, receipts, transforms
    from znorm.attachment import Attachment, attach, attachment_of
    from znorm.backward import BackwardStepping, in_backward
    from znorm.functional import apply_, decide, measure, z_score_
    from znorm.layers import Layers
    from znorm.layout import Layout
    from znorm.moments import Affine, Moments
    from znorm.transforms import (
        AdaptiveClip,
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
    "AdaptiveClip",
    "Affine",
    "Attachment",
    "BackwardStepping",
    "Centralize",
    "ClipGlobalNorm",
    "ClipNorm",
    "ClipValue",
    "Layers",
    "Layout",
    "Moments",
    "UnitNorm",
    "ZNorm",
    "__version__",
    "apply_",
    "attach",
    "attachment_of",
    "chain",
    "decide",
    "in_backward",
    "measure",
    "optim",
    "receipts",
    "transforms",
    "z_score_",
]

_HOMES = {
    "attachment": ("Attachment", "attach", "attachment_of"),
    "backward": ("BackwardStepping", "in_backward"),
    "layers": ("Layers",),
    "layout": ("Layout",),
    "moments": ("Affine", "Moments"),
    "optim": ("optim",),
    "receipts": ("receipts",),
    "functional": ("apply_", "decide", "measure", "z_score_"),
    "transforms": (
        "AdaptiveClip",
        "Centralize",
        "ClipGlobalNorm",
        "ClipNorm",
        "ClipValue",
        "UnitNorm",
        "ZNorm",
        "chain",
        "transforms",
    ),
}


def __getattr__(name: str) -> Any:
    # On first use: torch takes seconds to import, in which the command line must be able to answer
    # Ctrl-C, and it can only do so once this package is imported.
    for home, names in _HOMES.items():
        if name in names:
            module = import_module(f"znorm.{home}")
            value = module if name == home else getattr(module, name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if "torch" in sys.modules:
    # torch.load reads transforms with weights_only once they are registered, which a script that
    # loads a checkpoint first expects of the import alone.
    import_module("znorm.transforms")


def __dir__() -> list[str]:
    return __all__
