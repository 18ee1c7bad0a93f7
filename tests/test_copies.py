"""Models and optimizers that are moved, loaded, copied, saved and resumed."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as checkpoints
from torch.testing._internal.two_tensor import TwoTensor

import oracle
import znorm
from kit import net


def backward(model: nn.Module) -> None:
    dtype = next(model.parameters()).dtype
    images = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    (model(images) - images[:, :1]).square().mean().backward()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def attached(model: nn.Module) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    return optimizer


def ours(model: nn.Module) -> Any:
    return znorm.optim.SGD(model.parameters(), lr=0.1, transform=znorm.ZNorm(), model=model)


class InBackward:
    """Steps in backward, with the face of an optimizer."""

    def __init__(self, model: nn.Module) -> None:
        self.handle = znorm.in_backward(model, lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm())

    def step(self) -> None: ...
    def zero_grad(self) -> None: ...


WAYS: list[Callable[[nn.Module], Any]] = [attached, ours, InBackward]


def train(model: nn.Module, optimizer: Any) -> None:
    backward(model)
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def swapping() -> Iterator[None]:
    """torch then swaps tensors in place of setting their data, as it does for subclasses."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "to the same": lambda m: m.to(torch.float32),
    "to float64 and back": lambda m: m.double().float(),
    "load": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("swapping")
def test_a_model_can_still_be_moved_and_loaded_where_torch_swaps_tensors(
    way: Any, change: str
) -> None:
    model, plain = net(), net()
    optimizer, reference = way(model), attached(plain)
    for _ in range(2):
        train(model, optimizer)
        CHANGES[change](model)
        train(plain, reference)
    train(model, optimizer)
    train(plain, reference)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_holds_a_tensor_subclass_can_be_moved_and_loaded(way: Any) -> None:
    """torch swaps a subclass of several tensors whatever it is told."""
    model = net()
    fixed = TwoTensor(torch.randn(3, 3), torch.randn(3, 3))
    model.register_parameter("fixed", nn.Parameter(fixed, requires_grad=False))
    optimizer = way(model)
    train(model, optimizer)
    model.to(torch.float32)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    before = weights(model[0])
    train(model, optimizer)
    assert not same(before, weights(model[0]))


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "save and load": saved_and_loaded,
    "AveragedModel": lambda m: torch.optim.swa_utils.AveragedModel(m).module,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_model_that_steps_in_backward_is_a_plain_one(how: str) -> None:
    model = net()
    stepping = InBackward(model)
    backward(model)
    twin = COPIES[how](model)
    before = weights(twin)
    assert same(before, weights(model))
    for _ in range(2):  # gradients add up, and nothing steps
        backward(twin)
    assert same(before, weights(twin))
    single = copy.deepcopy(twin)
    single.zero_grad()
    backward(single)
    for one, two in zip(single.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        torch.testing.assert_close(2 * one.grad, two.grad)
    # It can step in backward itself, and the first one still does.
    twin.zero_grad()
    again = InBackward(twin)
    for m in (model, twin):
        before = weights(m)
        backward(m)
        assert not same(before, weights(m))
    assert again.handle.receipt()["0.weight"]["steps"] == 1
    assert stepping.handle.receipt()["0.weight"]["steps"] == 2


def test_a_model_that_steps_in_backward_is_loaded_where_znorm_is_not(tmp_path: Path) -> None:
    model = net()
    InBackward(model)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys; sys.modules['znorm'] = None; import torch; "
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
        "model(torch.randn(2, 6)).sum().backward(); print(model[0].weight.grad.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([8, 6])"


def test_the_handle_says_that_a_copy_is_a_plain_model() -> None:
    handle = InBackward(net()).handle
    with pytest.raises(TypeError, match="call in_backward on a copy of the model, which is a pla"):
        copy.deepcopy(handle)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_steps_in_backward_go_on_after_a_load_that_assigns(optimizer: Any) -> None:
    model, plain = net(), net()
    handles = [
        znorm.in_backward(m, lambda p: optimizer(p, lr=0.01), znorm.ZNorm()) for m in (model, plain)
    ]
    for _ in range(3):
        for m in (model, plain):
            backward(m)
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    for m in (model, plain):
        backward(m)
        assert all(p.grad is None for p in m.parameters())
    assert same(weights(model), weights(plain))
    first, second = (handle.receipt()["0.weight"] for handle in handles)
    assert first == second
    assert first["steps"] == 4
    held = handles[0].optimizers["0.weight"].param_groups[0]["params"]
    assert held[0] is model[0].weight
    handles[0].detach()
    before = weights(model)
    backward(model)
    assert same(before, weights(model))


def test_a_shared_parameter_that_a_load_has_torn_apart_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    znorm.in_backward(model, lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm())
    model(torch.randn(2, 4)).sum().backward()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(RuntimeError, match=r"0\.weight was shared by several modules"):
        model(torch.randn(2, 4))


def test_what_in_backward_does_not_train_is_said_once() -> None:
    model = net()
    model[2].requires_grad_(False)
    znorm.in_backward(model, lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm())
    backward(model)
    model[2].requires_grad_(True)
    model.add_module("late", nn.Linear(1, 1))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        backward(model)
    assert [str(warning.message).partition(" requires")[0] for warning in told] == [
        "znorm: in_backward: Linear.weight (1, 8)",
        "znorm: in_backward: Linear.bias (1,)",
        "znorm: in_backward: Linear.weight (1, 1)",
        "znorm: in_backward: Linear.bias (1,)",
    ]
    assert {warning.filename for warning in told} == {__file__}
    model[0].zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward(model)


TRANSFORMS: list[Any] = [
    znorm.ZNorm(granularity="channel"),
    znorm.Centralize(),
    znorm.UnitNorm(),
    znorm.ClipValue(0.1),
    znorm.ClipNorm(0.1),
    znorm.ClipGlobalNorm(0.1),
    znorm.AdaptiveClip(0.01),
    znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    znorm.ZNorm(select=[("*.qkv", znorm.Layers((4, 2, 2))), ("head.*", False)]),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_a_transform_among_hyperparameters_is_loaded_with_weights_only(
    transform: Any, tmp_path: Path
) -> None:
    torch.save({"hyper_parameters": {"transform": transform}}, tmp_path / "last.ckpt")
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert found["hyper_parameters"]["transform"] == transform
    # In a script that has done nothing but the import.
    code = (
        "import torch, znorm; "
        f"print(torch.load({str(tmp_path / 'last.ckpt')!r}, weights_only=True)"
        "['hyper_parameters']['transform'])"
    )
    if transform is TRANSFORMS[0]:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout.strip() == repr(transform), done.stderr


def test_all_transforms_are_registered() -> None:
    public = [getattr(znorm.transforms, name) for name in znorm.transforms.__all__]
    kinds = {kind for kind in public if isinstance(kind, type)} | {znorm.Layers}
    assert kinds - {znorm.transforms.Transform} <= set(torch.serialization.get_safe_globals())


@pytest.mark.parametrize("way", [attached, ours])
def test_the_dummy_step_of_torchs_checkpoints_is_not_counted(way: Any) -> None:
    model = net()
    optimizer = way(model)
    state = checkpoints.get_optimizer_state_dict(model, optimizer)
    attachment = znorm.attachment_of(optimizer)
    assert attachment is not None
    assert attachment.receipt() == {}
    train(model, optimizer)
    assert attachment.receipt()["0.weight"]["steps"] == 1
    other = net()
    resumed = way(other)
    checkpoints.set_optimizer_state_dict(other, resumed, state)
    train(other, resumed)
    attachment = znorm.attachment_of(resumed)
    assert attachment is not None
    assert attachment.receipt()["0.weight"]["steps"] == 1


def test_how_to_see_whether_a_transform_is_on() -> None:
    model = net()
    plain = znorm.optim.Adam(model.parameters())
    assert "\n    transform: None\n" in repr(plain)
    assert znorm.attachment_of(plain) is None
    on = znorm.optim.Adam(model.parameters(), transform=znorm.ZNorm())
    assert "transform: ZNorm(" in repr(on)
    # A checkpoint brings none.
    plain.load_state_dict(on.state_dict())
    assert znorm.attachment_of(plain) is None


@pytest.mark.parametrize("make", [znorm.optim.Adam, znorm.optim.AdamW, znorm.optim.SGD])
def test_model_has_a_second_spelling(make: Any) -> None:
    """Hugging Face's Trainer takes ``model`` out of ``optimizer_cls_and_kwargs``."""
    model = net()
    rules = znorm.ZNorm(select=[("2.*", False)])
    optimizer = make(model.parameters(), lr=0.1, transform=rules, module=model)
    rows = optimizer.attachment.describe().rows
    assert [row["name"] for row in rows if row["transformed"]] == ["0.weight"]
    with pytest.raises(TypeError, match="model and module are one thing; give one"):
        make(model.parameters(), lr=0.1, transform=rules, module=model, model=model)


class GivesAll(torch.optim.SGD):
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_an_optimizer_that_gives_away_all_its_attributes_is_copied(how: Any) -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = GivesAll([parameter], lr=1.0)
    znorm.attach(optimizer, znorm.ZNorm())
    other = how(optimizer)
    (twin,) = other.param_groups[0]["params"]
    for _ in range(2):
        twin.grad = torch.arange(6.0).reshape(2, 3)
        other.step()
    wanted = -2 * oracle.whole(oracle.z_score, torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    torch.testing.assert_close(twin.detach().double(), wanted)
    assert not parameter.any()


def test_numbers_of_numpy_are_loaded_with_weights_only(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    transform = znorm.chain(
        znorm.ZNorm(eps=numpy.float32(1e-8)),
        znorm.ClipNorm(numpy.float64(1.0)),
        znorm.AdaptiveClip(numpy.float32(0.5), eps=numpy.float64(1e-3)),
    )
    torch.save(transform, tmp_path / "transform.pt")
    assert torch.load(tmp_path / "transform.pt", weights_only=True) == transform
