"""What frameworks keep for a whole process is made anew for each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _accelerate_begins_anew() -> Iterator[None]:
    before = dict(os.environ)
    yield
    # Until its fifth version transformers told accelerate of autocast in this way.
    for name in set(os.environ) - set(before):
        del os.environ[name]
    state = sys.modules.get("accelerate.state")
    if state is not None:
        # Otherwise the next accelerator has this one's autocast and accumulation.
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
