"""A framework's own clipping comes before the transform, which can make it void."""

from __future__ import annotations

import warnings

from znorm._torch_internals import users_level
from znorm.attachment import Attachment
from znorm.transforms.composition import transforms_of

__all__ = ["warn_if_void"]


def warn_if_void(attachment: Attachment, clip: str, further: str = "") -> None:
    """Warn if the transform sets anew the scale that a framework's clip by norm has set before.

    Parameters
    ----------
    attachment : Attachment
    clip : str
        The framework's option, as the user wrote it.
    further : str, default ""
        A sentence on what else the framework does there.
    """
    transform = attachment.transform
    several = transform if isinstance(transform, tuple) else (transform,)
    sets_scale = [
        one
        for part in several
        if part is not None
        for one in transforms_of(part)
        if "scale" in one.resets()
    ]
    if not sets_scale:
        return
    rows = attachment.describe().rows
    acts_on = sum(bool(row["transformed"]) for row in rows)
    others = len(rows) - acts_on
    shrunk = f", while the other {others} are shrunk by the norm of all" if others else ""
    warnings.warn(
        f"znorm: {clip} clips before {sets_scale[0]!r}, which sets the scale of {acts_on} of "
        f"{len(rows)} tensors anew: on those the clip has no effect{shrunk}. {further}Leave it "
        "out; to clip what is stepped on, attach znorm.chain(..., znorm.ClipGlobalNorm(c)) with "
        "c of the size of the receipt's norm_after",
        stacklevel=users_level(),
    )
