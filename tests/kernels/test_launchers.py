"""Triton's launchers, made without a GPU: each launch binds to the arguments of its kernel.

Neither the interpreter nor compiling ahead of time goes through them: Triton makes a Python
function of a kernel's arguments, in which a name of its own can collide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import znorm
from znorm.engine.receipts import Receipt
from znorm.kernels.base import Coefficients, StepContext
from znorm.layers import LayerSlice
from znorm.optim.adam import ADAM_RULE
from znorm.optim.sgd import SGD_RULE
from znorm.transforms.base import ZScore

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402

from znorm.kernels.triton import batch as batches  # noqa: E402
from znorm.kernels.triton import clamp, kernels  # noqa: E402
from znorm.kernels.triton.updates import RULES, Rule  # noqa: E402

KERNELS = {name: getattr(kernels, name) for name in ("measure", "merge", "finish")}
KERNELS |= {name: getattr(clamp, name) for name in ("clamp", "add_up")}
KERNELS |= {f"advance {name}": rule.advance for name, rule in RULES.items()}
# What a launch says to the compiler, not to the kernel.
COMPILER = {"num_warps"}


def launcher(kernel: Any) -> Callable[..., Any]:
    """What Triton calls at each launch: it gives arguments, their types, and what is left over."""
    from triton.backends.nvidia.compiler import CUDABackend

    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    made: Callable[..., Any] = create_function_from_signature(
        kernel.signature, kernel.params, backend
    )
    return made


@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel_has_a_launcher(name: str) -> None:
    if not isinstance(KERNELS[name], JITFunction):
        pytest.skip("this process runs Triton's interpreter")
    launcher(KERNELS[name])


def test_an_argument_called_options_has_none() -> None:
    @triton.jit
    def kernel(options):  # type: ignore[no-untyped-def]
        pass

    with pytest.raises(SyntaxError, match="options"):
        launcher(kernel)


class Launches:
    """Stands for kernels, and keeps how each was launched."""

    AFFINE = kernels.AFFINE

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def of(self, name: str) -> Any:
        class Grid:
            def __getitem__(_, grid: Any) -> Any:  # noqa: N805
                return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

        return Grid()

    def __getattr__(self, name: str) -> Any:
        assert name in KERNELS
        return self.of(name)


def test_what_is_launched_binds_by_number_name_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches()
    monkeypatch.setattr(batches, "kernels", launches)
    fake = {name: Rule(rule.kind, launches.of(f"advance {name}")) for name, rule in RULES.items()}
    monkeypatch.setattr(batches, "RULES", fake)
    for name in ("clamp", "add_up"):
        monkeypatch.setattr(batches, name, launches.of(name))
    shapes = [(4, 3), (5,)]
    tensors: list[Any] = [torch.randn(shape) for shape in shapes]
    slices = [(LayerSlice(None, (4, 3), (), 0),), ()]
    receipt = Receipt(znorm.Layout([("w", tensors[0])], znorm.ZNorm()))
    batch = batches.Batch([0, 1], tensors, slices, units=1)
    one, wide = torch.ones(1), torch.ones(1, dtype=torch.float64)
    coefficients = Coefficients(torch.zeros(1, dtype=torch.float64), wide)
    batch.measure(tensors, torch.zeros(2, 1, dtype=torch.float64))
    batch.apply_affine_(tensors, coefficients)
    batch.clamp_(tensors, 0.1)
    for context in (StepContext(), StepContext(wide, one, receipt)):
        batch.normalize_(tensors, ZScore(1e-10), context)
        for rule in (ADAM_RULE, SGD_RULE):
            states = [
                {name: torch.zeros(shape) for name in rule.state_names} | {"step": torch.zeros(())}
                for shape in shapes
            ]
            parameters = [torch.zeros(shape) for shape in shapes]
            batch.bind_state(rule, parameters, states, [0, 0], [False, False])
            numbers = [rule.hyperparameters(dict(rule.trial.group))]
            for decision in (ZScore(1e-10), coefficients):
                batch.update_(tensors, numbers, decision, context)
    assert {name for name, _, _ in launches.calls} == set(KERNELS)
    for name, args, kwargs in launches.calls:
        kernel = KERNELS[name]
        assert set(kwargs) - COMPILER <= set(kernel.arg_names), name
        if not isinstance(kernel, JITFunction):
            continue
        bound, _, left = launcher(kernel)(*args, **kwargs)
        assert set(left) <= COMPILER, name
        tables = {"addresses", "items", "rows", "spans", "groups", "initialized", "row_of_unit"}
        floats = {"partial", "moments", "sums", "z_score", "hyperparameters", "inv_scale"}
        types = dict.fromkeys(tables, torch.int64) | dict.fromkeys(floats, torch.float64)
        for argument, value in bound.items():
            if isinstance(value, torch.Tensor) and value is not batch._nothing:
                assert value.dtype == types.get(argument, torch.float32), (name, argument)
            elif argument in ("tensors", "units"):
                assert isinstance(value, int), (name, argument)
            elif argument == "bound":
                assert isinstance(value, float), (name, argument)
