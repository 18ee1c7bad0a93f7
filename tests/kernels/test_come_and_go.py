"""Gradients that come and go from step to step, as those of experts do.

Kernels are made for all that has been seen: what is missing in a step costs no new tables, and
leaves nothing of an earlier step behind. Float64, which no compiled kernel takes, has the numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import znorm
from znorm.kernels import registry

SHAPES = [(4, 5), (3, 2, 2), (7,), (6, 8)]
TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "channel": znorm.ZNorm(granularity="channel"),
    "global": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "adaptive": znorm.AdaptiveClip(0.05),
    "value": znorm.ClipValue(0.1),
    "three readings": znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0), znorm.ClipGlobalNorm(2.0)),
}
MAKERS: dict[str, Any] = {
    "attach": lambda p, t: attached(torch.optim.Adam(p, lr=0.01), t),
    "adam": lambda p, t: znorm.optim.Adam(p, lr=0.01, transform=t),
    "sgd": lambda p, t: znorm.optim.SGD(p, lr=0.01, momentum=0.9, transform=t),
}
# Which are there at each step: all at first, then each alone is missing, several, all again.
THERE = [(0, 1, 2, 3), (0, 2, 3), (0, 1, 2, 3), (1,), (0, 1, 3), (1, 2), (0, 1, 2, 3)] * 2


def attached(optimizer: Any, transform: Any) -> Any:
    znorm.attach(optimizer, transform)
    return optimizer


class Counted:
    """A backend that counts the batches that it makes."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.made = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        self.made += 1
        return self._backend.batch(*args, **kwargs)


def trained(make: Any, transform: Any, dtype: torch.dtype, there: Any = THERE) -> Any:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    optimizer = make(parameters, transform)
    for step, present in enumerate(there):
        torch.manual_seed(step + 1)
        for place, parameter in enumerate(parameters):
            gradient = (torch.randn(parameter.shape) + 0.3).to(dtype)
            parameter.grad = gradient if place in present else None
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_is_missing_leaves_nothing_of_an_earlier_step(make: str, transform: str) -> None:
    (ours, mine), (theirs, right) = (
        trained(MAKERS[make], TRANSFORMS[transform], dtype)
        for dtype in (torch.float32, torch.float64)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5)
    receipts = [znorm.attachment_of(optimizer).receipt() for optimizer in (mine, right)]  # type: ignore[union-attr]
    assert list(receipts[0]) == list(receipts[1])
    for name, fields in receipts[1].items():
        assert receipts[0][name] == pytest.approx(fields, rel=1e-5, abs=1e-6)
    places = {len(shape): place for place, shape in enumerate(SHAPES)}
    for name, fields in receipts[0].items():
        place = int(name.split("parameter ")[1].split()[0])
        assert fields["steps"] == sum(place in present for present in THERE), places


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_tables_are_made_anew(
    make: str, transform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = registry.backend_for()
    if backend is None:
        pytest.skip("the compiled kernels are turned off")
    trained(MAKERS[make], TRANSFORMS[transform], torch.float32)  # the self-test is behind us
    made = []
    for there in (THERE[:1], THERE):
        counted = Counted(backend)
        monkeypatch.setitem(registry._loaded, "cpu", counted)  # type: ignore[arg-type]
        trained(MAKERS[make], TRANSFORMS[transform], torch.float32, there)
        made.append(counted.made)
    assert made[0] == made[1]


def test_what_has_never_been_there_is_taken_in() -> None:
    for make in MAKERS.values():
        there = [(0, 2), (0, 2), (0, 1, 2, 3), (1,), (0, 1, 2, 3)]
        (ours, _), (theirs, _) = (
            trained(make, znorm.ZNorm(), dtype, there) for dtype in (torch.float32, torch.float64)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5)
