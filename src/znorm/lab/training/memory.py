"""The memory that a step needs, and the pieces to take a batch in where that is too much."""

from __future__ import annotations

import gc
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError
from znorm.lab.spec import RunSpec
from znorm.lab.training.setup import first_images, set_up
from znorm.lab.training.step import forward_loss, take_step

__all__ = [
    "Need",
    "available",
    "check",
    "fitting_micro_batch",
    "is_out_of_memory",
    "let_go",
    "need",
]


_SIGNS = ("out of memory", "alloc_failed", "can't allocate memory")
# cuDNN tries its algorithms, and tells of none that had no memory.
_SIGNS_BESIDE_OTHERS = ("unable to find an engine",)


def is_out_of_memory(error: BaseException, *, beside_others: bool = False) -> bool:
    """Tell whether a GPU or this machine had no memory left, as libraries say it in many ways.

    ``beside_others``: whether others take memory, so that what may have another cause is more
    likely that.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = _SIGNS + (_SIGNS_BESIDE_OTHERS if beside_others else ())
    if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs):
        return True
    # What ends a capture can hide it.
    hidden = error.__context__
    return hidden is not None and is_out_of_memory(hidden, beside_others=beside_others)


def let_go(error: BaseException) -> None:
    """Free the tensors that an error, and what it came of, still refer to."""
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # after a capture that has failed
            torch.cuda.empty_cache()


def fitting_micro_batch(spec: RunSpec, dataset: Dataset, error: BaseException) -> int | None:
    """The largest half, quarter or so on of the images in memory at once of which a step fits.

    Parameters
    ----------
    spec : RunSpec
    dataset : Dataset
    error : BaseException
        The one that ended the run; the tensors that it still refers to are let go.

    Returns
    -------
    int or None
        None if not even two images fit.
    """
    let_go(error)
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
        model, optimizer = set_up(spec, dataset)
        take_step(spec, model, optimizer, *first_images(spec, dataset, size))
    except Exception as error:
        if is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)
            return False
        raise
    return True


# No net here keeps more than so many times the bytes of its float32 input for its backward.
_MOST_KEPT = 5_000


# Of what is kept, peaks were up to 1.6 times as much: what is advised leaves room for that.
_ROOM = 1.6
# Averages that an optimizer holds, each as large as the weights.
_AVERAGES = {"adam": 2, "adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class Need:
    """The memory that a training step keeps, at the least.

    Parameters
    ----------
    fixed : int
        Bytes of weights and of the optimizer's averages, and of what does not depend on images.
    each : int
        Bytes that the forward pass keeps of each image for the backward.
    """

    fixed: int
    each: int

    def of(self, images: int) -> int:
        """Bytes, with so many images in memory at once."""
        return self.fixed + images * self.each

    def advised(self, images: int, memory: float) -> int | None:
        """All of them if they fit at the least, else fewer that leave room for what is more."""
        return images if self.of(images) <= memory else self.fitting(images, memory / _ROOM)

    def fitting(self, images: int, memory: float) -> int | None:
        """The largest half, quarter or so on of ``images`` that fits; None if not even two do."""
        while images >= 2 and self.of(images) > memory:
            images //= 2
        return images if images >= 2 else None


def need(spec: RunSpec, dataset: Dataset) -> Need:
    """Measured on forward passes of two and of four images: what more images add, and the rest."""
    model, _ = set_up(spec, dataset)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    two, four = (_kept(spec, model, dataset, size) for size in (2, 4))
    each = max(0, four - two) // 2
    return Need((1 + _AVERAGES.get(spec.optimizer, 0)) * weights + max(0, two - 2 * each), each)


def _kept(spec: RunSpec, model: nn.Module, dataset: Dataset, size: int) -> int:
    """Bytes that a forward pass keeps beside the weights themselves."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            alive.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, targets = first_images(spec, dataset, size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward_loss(spec, model, images, targets)
    del loss
    return sum(kept.values())


def available() -> int | None:
    """Bytes that are free on this machine, or for this container; None if it does not say.

    Memory that holds copies of files is free: the system gives it up where it is needed.
    """
    free: list[int] = []
    with suppress(OSError, KeyError, ValueError):
        table = _table(Path("/proc/meminfo"))
        free.append(1024 * (table["MemAvailable:"] + table["SwapFree:"]))
    groups = Path("/sys/fs/cgroup")
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, KeyError, ValueError):
            most = int((groups / limit).read_text())
            cached = _table((groups / limit).with_name("memory.stat"))[files]
            free.append(most - int((groups / used).read_text()) + cached)
    return min(free) if free else None


def _table(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def check(spec: RunSpec, dataset: Dataset, jobs: int = 1) -> None:
    """Refuse a batch that this machine's memory cannot hold, so many times at once.

    A GPU says itself that it is full; a process on a CPU is killed without a word.

    Raises
    ------
    ConfigurationError
        With the micro-batch that fits.
    """
    free = available()
    size = min(spec.micro_batch or spec.batch_size, len(dataset.train))
    height, width = dataset.image_size
    most = size * dataset.channels * height * width * 4 * _MOST_KEPT
    if spec.device != "cpu" or free is None or jobs * most < free:
        return
    memory = free / jobs
    try:
        needed = need(spec, dataset)
    except Exception:  # a model that cannot be trained: its run says why
        return
    fits = needed.advised(size, memory)
    if fits == size:
        return
    advice = "not even two fit" if fits is None else f"--micro-batch {fits} fits"
    raise ConfigurationError(
        f"model {spec.model}: {size} images of {height}x{width} at once need at least "
        f"{needed.of(size) / 1e9:.1f} GB, {memory / 1e9:.1f} are free"
        f"{' for each job' if jobs > 1 else ''}; {advice}"
    )
