"""What a backend promises: it is tried before it is used, and a rule that it lacks is said."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import znorm
from znorm.kernels import registry
from znorm.kernels.base import Backend, Coefficients, StepContext
from znorm.kernels.selftest import fault
from znorm.optim.adam import ADAM_RULE, ADAMW_RULE
from znorm.optim.sgd import SGD_RULE
from znorm.transforms.base import ZScore

CPU = torch.device("cpu")


@pytest.fixture
def backend() -> Backend:
    found = registry.backend_for()
    if found is None:
        pytest.skip("the compiled kernels are turned off")
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_there_is_right(backend: Backend, dtype: torch.dtype) -> None:
    assert fault(backend, dtype, CPU) is None
    for rule in (ADAM_RULE, ADAMW_RULE, SGD_RULE):
        assert rule.name in backend.update_rules
        assert fault(backend, dtype, CPU, rule) is None


class Broken:
    """A backend one method of whose batches does something else."""

    def __init__(self, backend: Backend, method: str, change: Any) -> None:
        self._backend, self._method, self._change = backend, method, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        made: Any = self._backend.batch(*args, **kwargs)
        right = getattr(made, self._method)
        setattr(made, self._method, lambda *given: self._change(right, *given))
        return made


def test_no_memory_to_try_them_in_says_nothing_of_kernels(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tried again, and then serve."""
    kinds = [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ]
    for error in kinds:

        def full(*args: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setitem(registry._loaded, "cpu", Broken(backend, "measure", full))  # type: ignore[arg-type]
            patched.setattr(registry, "_tried", {})
            with pytest.raises(RuntimeError, match="out of memory"):
                znorm.z_score_([torch.randn(8)])
            patched.setitem(registry._loaded, "cpu", backend)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                znorm.z_score_([torch.randn(8)])
            assert all(registry._tried.values())


def raising(*args: Any) -> None:
    raise RuntimeError("no such\ninstruction")


def twice(right: Any, moments_of: Any, moments: Tensor) -> None:
    right(moments_of, moments)
    moments.mul_(2)


BREAKS: dict[str, tuple[str, Any, Any, str]] = {
    "raises": ("measure", raising, None, "^no such instruction$"),
    "measures wrong": ("measure", twice, None, r"^moments came out as \[6.0, 28.0\]"),
    "does not center": (
        "normalize_",
        lambda right, tensors, z_score, context: right(
            tensors, replace(z_score, center=False), context
        ),
        None,
        "a centered tensor came out as",
    ),
    "forgets the center": (
        "apply_affine_",
        lambda right, tensors, c: right(tensors, Coefficients(c.center * 0, c.scale)),
        None,
        "an affine map came out as",
    ),
    "steps the other way": (
        "update_",
        lambda right, gradients, *rest: right([-gradients[0]], *rest),
        ADAM_RULE,
        "weights after a step of adam came out as",
    ),
    "forgets Nesterov": (
        "update_",
        lambda right, gradients, numbers, *rest: right(
            gradients, [[*numbers[0][:4], 0.0, numbers[0][5]]], *rest
        ),
        SGD_RULE,
        "weights after a step of sgd came out as",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_told(backend: Backend, what: str) -> None:
    method, change, rule, message = BREAKS[what]
    broken: Any = Broken(backend, method, change)
    reason = fault(broken, torch.float32, CPU, rule)
    assert reason is not None
    assert re.search(message, reason)
    assert "\n" not in reason


def test_a_backend_that_is_wrong_warns_once_and_is_not_used(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: Any = Broken(backend, *BREAKS["measures wrong"][:2])
    monkeypatch.setattr(registry, "_loaded", {"cpu": broken})
    monkeypatch.setattr(registry, "_tried", {})
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        znorm.attach(optimizer, znorm.ZNorm())
        for _ in range(2):
            parameter.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
            optimizer.step()
    (warning,) = [w for w in caught if "znorm" in str(w.message)]
    assert "the CPU kernels for float32 cannot be used (moments came out as" in str(warning.message)
    assert parameter.grad is not None
    assert float(parameter.grad[0, 0]) == pytest.approx(-1.5 / 1.25**0.5)


def test_a_rule_that_a_backend_lacks_is_refused_and_said(backend: Backend) -> None:
    unknown = replace(SGD_RULE, name="lion")
    batch = backend.batch([0], [torch.zeros(3)], [()], units=0, measures=False)
    with pytest.raises(ValueError, match=r"the cpu kernels have no update rule 'lion'; they have"):
        batch.bind_state(unknown, [torch.zeros(3)], [{}], [0], [True])
    assert not registry.can_update(unknown, batch, torch.float32)
    reason = registry.why_not(CPU, torch.float32, rule=unknown)
    assert reason == "the cpu kernels have no update rule 'lion'"


def test_a_dtype_that_a_backend_lacks_is_left_to_the_reference_and_said(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Single:
        """Takes one dtype of those that others take."""

        dtypes = (torch.float32,)

        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

    monkeypatch.setattr(registry, "_loaded", {"cpu": Single()})
    assert registry.why_not(CPU, torch.float32) is None
    for load in (True, False):
        reason = registry.why_not(CPU, torch.bfloat16, load=load)
        assert reason == "the compiled kernels take float32, not bfloat16"
    layout = znorm.Layout([torch.zeros(2, 2, dtype=torch.bfloat16)], znorm.ZNorm())
    assert layout.describe().rows[0]["kernel"] == "reference"


def test_triton_refuses_it_too() -> None:
    pytest.importorskip("triton")
    from znorm.kernels.triton import BACKEND

    batch = BACKEND.batch([0], [torch.zeros(3)], [()], units=0, measures=False)
    with pytest.raises(ValueError, match=r"the triton kernels have no update rule 'lion'"):
        batch.bind_state(replace(SGD_RULE, name="lion"), [torch.zeros(3)], [{}], [0], [True])


def test_every_backend_has_the_arithmetic_of_every_rule() -> None:
    pytest.importorskip("triton")
    from znorm.kernels.cpu import BACKEND as CPU_BACKEND
    from znorm.kernels.triton import BACKEND as TRITON_BACKEND

    names = {rule.name for rule in (ADAM_RULE, ADAMW_RULE, SGD_RULE)}
    assert names == set(CPU_BACKEND.update_rules) == set(TRITON_BACKEND.update_rules)


def test_the_z_score_of_kernels_is_that_of_the_formula(backend: Backend) -> None:
    """Each form of it, on moments that make it matter: a large mean, a constant, one element."""
    torch.manual_seed(0)
    for gradient in (torch.randn(100) + 1000, torch.full((5,), 3.0), torch.tensor([2.0])):
        for center in (True, False):
            for scale in (True, False):
                for correction in (0, 1):
                    transform = znorm.ZNorm(1e-3, center, scale, correction, select="all")
                    object.__setattr__(transform, "skips_single_elements", False)
                    layout = znorm.Layout([gradient], transform)
                    form = layout.fused_form
                    assert isinstance(form, ZScore)
                    affine = znorm.decide(transform, znorm.measure([gradient], layout))
                    right = (gradient.double() - affine.center) * affine.scale
                    batch = backend.batch([0], [gradient], layout.slices, units=1, measures=True)
                    written = gradient.clone()
                    batch.normalize_([written], form, StepContext())
                    assert (
                        written.double() - right
                    ).abs().max() <= 2e-6 * right.abs().max() + 1e-30
