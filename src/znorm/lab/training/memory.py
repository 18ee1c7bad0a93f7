"""What to do where memory does not hold a batch."""

from __future__ import annotations

import gc
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError
from znorm.lab.losses import LOSSES
from znorm.lab.spec import RunSpec
from znorm.lab.training.beginning import begin

__all__ = ["Need", "available", "check", "fitting_micro_batch", "is_out_of_memory", "need"]


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


# No net here keeps more than so many times the bytes of its float32 input for its backward.
_MOST_KEPT = 5_000


@dataclass(frozen=True)
class Need:
    """What a training step keeps in memory, at the least.

    Parameters
    ----------
    fixed : int
        Bytes of weights, gradients and the optimizer's averages.
    each : int
        Bytes that the forward pass keeps of each image for the backward.
    """

    fixed: int
    each: int

    def of(self, images: int) -> int:
        """Bytes, with so many images in memory at once."""
        return self.fixed + images * self.each

    def fitting(self, images: int, memory: int) -> int | None:
        """The largest half, quarter or so on of ``images`` that fits; None if not even two do."""
        while images >= 2 and self.of(images) > memory:
            images //= 2
        return images if images >= 2 else None


def need(spec: RunSpec, dataset: Dataset) -> Need:
    """Measured on a forward pass of two images."""
    model, _ = begin(spec, dataset)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # alive, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    some = dataset.train.take(torch.arange(2))
    images = some.images.to(spec.device).float().contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(spec.device, torch.bfloat16, enabled=spec.precision == "bfloat16"),
    ):
        loss = LOSSES[spec.loss](model(images), some.targets.to(spec.device))
    del loss
    # Adam's two averages; other optimizers keep less.
    fixed = 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    # Casts of weights to bfloat16 are kept, too, once for all images.
    casts = fixed // 8 if spec.precision == "bfloat16" else 0
    return Need(fixed, max(0, sum(kept.values()) - casts) // 2)


def available() -> int | None:
    """Bytes of memory and swap that are free on this machine, or for this container; None if it
    does not say.
    """
    free: list[int] = []
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = {key: int(rest.split()[0]) for key, _, rest in (x.partition(":") for x in lines)}
        free.append(1024 * (table["MemAvailable"] + table["SwapFree"]))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        free.append(limit - int((group / "memory.current").read_text()))
    return min(free) if free else None


def check(spec: RunSpec, dataset: Dataset) -> None:
    """Refuse a batch that this machine's memory cannot hold.

    A GPU says itself that it is full; a process on a CPU is killed without a word.

    Raises
    ------
    ConfigurationError
        With the micro-batch that fits.
    """
    memory = available()
    size = min(spec.micro_batch or spec.batch_size, len(dataset.train))
    height, width = dataset.image_size
    most = size * dataset.channels * height * width * 4 * _MOST_KEPT
    if spec.device != "cpu" or memory is None or most < memory:
        return
    found = need(spec, dataset)
    if found.of(size) <= memory:
        return
    fits = found.fitting(size, memory)
    advice = "not even two fit" if fits is None else f"--micro-batch {fits} fits"
    raise ConfigurationError(
        f"model {spec.model}: {size} images of {height}x{width} at once need at least "
        f"{found.of(size) / 1e9:.1f} GB, {memory / 1e9:.1f} are free; {advice}"
    )
