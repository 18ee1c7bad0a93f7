"""Fixtures for tests of the GPU kernels: a GPU if there is one, else Triton's interpreter on a CPU.

``make test-gpu`` runs these on a GPU. The ordinary suite runs them in the interpreter, in a process
of its own (`tests/kernels/test_triton.py`), since that is chosen when Triton is first imported.
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device() -> torch.device:
    """Where tensors are to lie."""
    if torch.cuda.is_available() and not INTERPRETED:
        return torch.device("cuda")
    if INTERPRETED and os.environ.get("ZNORM_KERNELS") == "triton":
        return torch.device("cpu")
    pytest.skip("there is no GPU, and TRITON_INTERPRET=1 ZNORM_KERNELS=triton are not set")


@pytest.fixture
def gpu() -> torch.device:
    """A real one."""
    if not torch.cuda.is_available() or INTERPRETED:
        pytest.skip("there is no GPU")
    return torch.device("cuda")
