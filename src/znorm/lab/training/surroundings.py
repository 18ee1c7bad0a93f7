"""The settings that torch keeps for the whole process, put in place while a run has its turn."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Surroundings"]


class _Settings(NamedTuple):
    threads: int
    deterministic: bool
    warns_only: bool
    random: Tensor
    random_of_gpu: torch.Generator | None
    stream: torch.cuda.Stream | None


class Surroundings:
    """Entered for each turn of a run: what it changed is its own, and put back when it is left.

    Threads, torch's choice of algorithms, random states and the current stream. A run that takes
    turns with others then computes what it computes alone, and the caller finds all as it was.

    Parameters
    ----------
    device : torch.device
    stream : torch.cuda.Stream, optional
        On which all of the run's work is queued; by default on the caller's.
    tries_algorithms : bool
        Whether a GPU's convolutions are by whatever algorithm is fastest when tried.
    """

    def __init__(
        self,
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
        *,
        tries_algorithms: bool = False,
    ) -> None:
        self._on_gpu = device.type == "cuda"
        self._stream = stream
        self._tries_algorithms = tries_algorithms and self._on_gpu
        self._own: _Settings | None = None

    def __enter__(self) -> Surroundings:
        self._outer = self._read()
        if self._own is not None:
            self._write(self._own)
        else:
            if self._stream is not None:
                torch.cuda.set_stream(self._stream)
            if self._on_gpu:
                generator = _generator_of_gpu()
                generator.graphsafe_set_state(generator.clone_state())
        self._flags = self._algorithms()
        self._flags.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flags.__exit__(kind, error, trace)
        self._own = self._read()
        self._write(self._outer)

    def _algorithms(self) -> AbstractContextManager[None]:
        cudnn = torch.backends.cudnn
        if not self._tries_algorithms:
            return nullcontext()
        # By torch's own context: to set one of these flags by itself can be forbidden.
        return cudnn.flags(enabled=cudnn.enabled, benchmark=True, allow_tf32=cudnn.allow_tf32)

    def _read(self) -> _Settings:
        return _Settings(
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_rng_state(),
            _generator_of_gpu().graphsafe_get_state() if self._on_gpu else None,
            torch.cuda.current_stream() if self._stream is not None else None,
        )

    def _write(self, settings: _Settings) -> None:
        if settings.threads != torch.get_num_threads():
            torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(settings.deterministic, warn_only=settings.warns_only)
        torch.set_rng_state(settings.random)
        if settings.random_of_gpu is not None:
            _generator_of_gpu().graphsafe_set_state(settings.random_of_gpu)
        if settings.stream is not None:
            torch.cuda.set_stream(settings.stream)


def _generator_of_gpu() -> torch.Generator:
    """The current GPU's generator, whose state is exchanged, not copied.

    Graphs read where their numbers begin from the state that was there when they were captured: of
    one that several runs share, each would overwrite what another's graph still reads.
    """
    generator: torch.Generator = torch.cuda.default_generators[torch.cuda.current_device()]
    return generator
