"""torch.compile: of a step that is attached, and of the functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import znorm
from kit import net


def images(step: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(step))


MAKERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "ours": lambda p: znorm.optim.Adam(p, lr=0.01),
}


def train(make: Any, transform: Any, compiled: bool, closed: bool) -> tuple[list[int], list[Any]]:
    """Compiled frames after each step, and the weights in the end."""
    torch._dynamo.reset()
    model = net(3)
    optimizer = make(model.parameters())
    if transform is not None:
        znorm.attach(optimizer, transform, model=model)
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
    frames = []
    for number in range(5):

        def backward(number: int = number) -> Tensor:
            model.zero_grad()
            loss = model(images(number)).square().mean()
            loss.backward()
            return loss

        if closed:
            step(backward)
        else:
            backward()
            step()
        frames.append(counter.frame_count)
    torch._dynamo.reset()
    return frames, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    "transform",
    [znorm.ZNorm(), znorm.chain(znorm.Centralize(), znorm.ClipValue(0.1))],
    ids=["znorm", "chain"],
)
@pytest.mark.parametrize("name", MAKERS)
def test_as_many_compiled_frames_as_the_bare_optimizer(name: str, transform: Any) -> None:
    make = MAKERS[name]
    bare, _ = train(make, None, compiled=True, closed=False)
    frames, weights = train(make, transform, compiled=True, closed=False)
    assert frames == bare
    assert len(set(frames[1:])) == 1
    _, expected = train(make, transform, compiled=False, closed=False)
    for one, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_with_a_closure_too(name: str) -> None:
    make = MAKERS[name]
    bare, _ = train(make, None, compiled=True, closed=True)
    frames, weights = train(make, znorm.ZNorm(), compiled=True, closed=True)
    assert frames == bare
    _, expected = train(make, znorm.ZNorm(), compiled=False, closed=True)
    for one, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="what dynamo can trace differs from version to version"
)
@pytest.mark.parametrize(
    "transform",
    [
        znorm.ZNorm(),
        znorm.ZNorm(granularity="channel"),
        znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    ],
    ids=["znorm", "channel", "chain"],
)
def test_the_functions_compile_to_one_graph(transform: Any) -> None:
    shapes = [(6, 5), (4, 3, 3), (7,)]
    gradients = [torch.randn(shape) for shape in shapes]
    layout = znorm.Layout([torch.zeros(shape) for shape in shapes], transform)

    def transformed(given: list[Tensor]) -> list[Tensor]:
        znorm.apply_(given, znorm.decide(transform, znorm.measure(given, layout)))
        return given

    expected = transformed([g.clone() for g in gradients])
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(transformed, backend=counter, fullgraph=True)
    for _ in range(3):
        found = compiled([g.clone() for g in gradients])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    assert counter.frame_count == 1
    torch._dynamo.reset()
