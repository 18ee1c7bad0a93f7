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
from znorm.layers import Layer, Layers
from znorm.receipts import Receipt
from znorm.rows import Row

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402

from znorm.kernels.cuda import loops, part  # noqa: E402

KERNELS = ("measure", "merge", "finish", "advance_adam", "advance_sgd")


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
    kernel = getattr(loops, name)
    if not isinstance(kernel, JITFunction):
        pytest.skip("this process runs Triton's interpreter")
    launcher(kernel)


def test_an_argument_called_options_has_none() -> None:
    @triton.jit
    def kernel(options):  # type: ignore[no-untyped-def]
        pass

    with pytest.raises(SyntaxError, match="options"):
        launcher(kernel)


class Launched:
    """Stands for the module of kernels, and keeps how each was launched."""

    AFFINE, ADAM, SGD = loops.AFFINE, loops.ADAM, loops.SGD

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        assert name in KERNELS

        class Grid:
            def __getitem__(_, grid: Any) -> Any:  # noqa: N805
                return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

        return Grid()


def test_what_is_launched_binds_by_number_name_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched()
    monkeypatch.setattr(part, "loops", launched)
    shapes = [(4, 3), (5,)]
    given: list[Any] = [torch.randn(shape) for shape in shapes]
    rows = [
        Row("w", (4, 3), (True,), "", Layers(1), (Layer(None, (4, 3), (), 0),), 1, ""),
        Row("b", (5,), (False,), "", Layers(1), (), 0, ""),
    ]
    receipt = Receipt(znorm.Layout([("w", given[0])], znorm.ZNorm()))
    served = part.Part([0, 1], rows, given, torch.device("cpu"), torch.float32)
    one = torch.ones(1)
    z_score = (1e-10, 1.0, 1.0, 0.0)
    served.measure(given, torch.zeros(2, 1, dtype=torch.float64))
    served.apply_(given, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    states = [{"a": torch.zeros(s), "b": torch.zeros(s), "step": torch.zeros(())} for s in shapes]
    served.begin([torch.zeros(s) for s in shapes], states, ["a", "b"], [0, 0], [False, False])
    for scale, skip, kept in ((None, None, None), (one, one, receipt)):
        served.z_score_(given, z_score, scale, kept, skip)
        for kind, several in (("ADAM", 7), ("SGD", 6)):
            values = [[0.0] * several]
            decided: Any
            for decided in (z_score, (torch.zeros(1), torch.ones(1))):
                served.step_(kind, given, values, decided, scale=scale, skip=skip, receipt=kept)
    assert {name for name, _, _ in launched.calls} == set(KERNELS)
    for name, args, kwargs in launched.calls:
        kernel = getattr(loops, name)
        assert set(kwargs) <= set(kernel.arg_names), name
        if not isinstance(kernel, JITFunction):
            continue
        bound, _, left = launcher(kernel)(*args, **kwargs)
        assert not left, name
        tables = {"addresses", "items", "rows", "groups", "begun"}
        floats = {"partial", "moments", "sums", "z_score", "hyperparameters"}
        for argument, value in bound.items():
            if isinstance(value, torch.Tensor) and value is not served._nothing:
                wide = {
                    **dict.fromkeys(tables, torch.int64),
                    **dict.fromkeys(floats, torch.float64),
                }
                expected = {"row_of_unit": torch.int64, **wide}.get(argument, torch.float32)
                assert value.dtype == expected, (name, argument)
            elif argument in ("first", "tensors", "units"):
                assert isinstance(value, int), (name, argument)
