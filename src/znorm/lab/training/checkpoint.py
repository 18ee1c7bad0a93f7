"""Everything that a killed run needs to go on with the same bits."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from znorm.lab.errors import DataError
from znorm.lab.models.start import hash_state

__all__ = ["Position", "dump", "hash_state", "hash_weights", "load"]

MOST_THREADS = 4096  # OpenMP ends the process where it cannot make as many as it is told to


@dataclass
class Position:
    """The position of a run in its training.

    Parameters
    ----------
    epoch, step : int
        The next epoch, and the next step in it, both from 0.
    losses : list of float
        Of this epoch's steps so far.
    batches : str
        A running hash of the batches seen.
    initial_weights : str
        The hash of the weights that the run started from.
    history : list of dict
        One entry a finished epoch.
    receipt : dict
        Of this epoch's gradients so far, where it is asked for.
    seconds : float
        Time spent so far, in all processes that worked on the run.
    threads : int
        Of torch on a CPU, on whose number the last bits depend; 0 where an earlier version has not
        written it down.
    data : str
        The fingerprint of the images; empty where an earlier version has not written it down.
    best : dict or None
        The net's state after the epoch that was best on validation, where that is kept; on the CPU.
    batches_by_epoch : list of str
        The running hash at the end of each epoch, where runs may end early.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    batches: str = ""
    initial_weights: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    receipt: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    threads: int = 0
    data: str = ""
    best: dict[str, Any] | None = None
    batches_by_epoch: list[str] = field(default_factory=list)

    def saw(self, checksum: int) -> None:
        """Add a batch to the running hash."""
        self.batches = hashlib.sha256(f"{self.batches} {checksum}".encode()).hexdigest()


def dump(model: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> bytes:
    """The state of a run, torch's random state included."""
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "position": asdict(position),
        "random": {
            "cpu": torch.get_rng_state(),
            # Of the GPU that the run is on, whose number can be another one when it goes on.
            "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load(content: bytes, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Put a state back into the model, the optimizer and torch, and say where the run stands.

    Raises
    ------
    DataError
        If ``content`` is not the state of such a run.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["cpu"])
        if torch.cuda.is_available() and state["random"]["cuda"]:
            torch.cuda.set_rng_state(state["random"]["cuda"][0])
        position = TypeAdapter(Position).validate_python(state["position"])
        if not (0 <= position.threads <= MOST_THREADS and min(position.epoch, position.step) >= 0):
            raise ValueError("out of bounds")
        _check_best(position.best, model.state_dict())
        for number, entry in enumerate(position.history, start=1):
            if entry.get("epoch") != number:
                raise ValueError("epochs that do not follow each other")
    except Exception as error:
        # A file that was cut off or replaced fails in many ways; all of them mean the same.
        raise DataError(
            f"checkpoint.pt: not the state of this run ({type(error).__name__})"
        ) from None
    return position


def _check_best(best: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> None:
    if best is not None and {k: v.shape for k, v in best.items()} != {
        k: v.shape for k, v in state.items()
    }:
        raise ValueError("the best epoch's weights are of another net")


def hash_weights(model: nn.Module) -> str:
    """sha256 over the name, type, shape and bytes of each parameter and buffer."""
    return hash_state(model.state_dict())
