"""What to do where memory does not hold a batch."""

from __future__ import annotations

import gc
import traceback

import torch

from znorm.lab.datasets import Dataset
from znorm.lab.losses import LOSSES
from znorm.lab.spec import RunSpec
from znorm.lab.training.beginning import begin

__all__ = ["fitting_micro_batch", "is_out_of_memory"]


_SIGNS = ("out of memory", "alloc_failed", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or this machine had no memory left, as libraries say it in many ways."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS):
        return True
    # What ends a capture can hide it.
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def fitting_micro_batch(spec: RunSpec, dataset: Dataset, error: BaseException) -> int | None:
    """The largest half, quarter or so on of the images in memory at once of which a step fits.

    Parameters
    ----------
    spec : RunSpec
    dataset : Dataset
    error : BaseException
        What the run failed by; what it still holds is let go.

    Returns
    -------
    int or None
        None if not even two images fit.
    """
    traceback.clear_frames(error.__traceback__)
    size = min(spec.micro_batch or spec.batch_size, len(dataset.train)) // 2
    while size >= 2:
        if _fits(spec, dataset, size):
            return size
        size //= 2
    return None


def _fits(spec: RunSpec, dataset: Dataset, size: int) -> bool:
    device = torch.device(spec.device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        model, optimizer = begin(spec, dataset)
        some = dataset.train.take(torch.arange(size))
        images = some.images.to(device).float().contiguous(memory_format=torch.channels_last)
        with torch.autocast(spec.device, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            loss = LOSSES[spec.loss](model(images), some.targets.to(device))
        loss.backward()
        optimizer.step()
    except Exception as error:
        if is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)
            return False
        raise
    return True
