"""Fixtures for tests of the GPU kernels: a GPU if there is one, else Triton's interpreter on a CPU.

``make test-gpu`` runs these on a GPU. The ordinary suite runs them in the interpreter, in a process
of its own (`tests/kernels/test_triton.py`), since that is chosen when Triton is first imported.
"""

from __future__ import annotations

import os

# Tests run in one process a core: each takes its share of the threads, and so does what it starts.
# Set before torch reads it.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

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
