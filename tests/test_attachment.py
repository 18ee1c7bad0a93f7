from __future__ import annotations

import copy
import gc
import pickle
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import oracle
import znorm
from kit import images, net

IMAGES = images()


def loss_of(model: nn.Module) -> Tensor:
    return (model(IMAGES) - IMAGES[:, :1]).square().mean()


def backward(model: nn.Module) -> Tensor:
    model.zero_grad()
    loss = loss_of(model)
    loss.backward()
    return loss


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_step_closure_equals_backward_then_step_to_the_bit(make: Any, keyword: bool) -> None:
    plain, closed = net(), net()
    first, second = make(plain.parameters(), lr=0.01), make(closed.parameters(), lr=0.01)
    znorm.attach(first, znorm.ZNorm(), model=plain)
    znorm.attach(second, znorm.ZNorm(), model=closed)
    for _ in range(5):
        backward(plain)
        first.step()

        def closure() -> Tensor:
            return backward(closed)

        loss = second.step(closure=closure) if keyword else second.step(closure)
        assert isinstance(loss, Tensor)
    assert same(weights(plain), weights(closed))
    assert not same(weights(plain), weights(net()))


def test_step_closure_of_znorm_optim() -> None:
    plain, closed = net(), net()
    first = znorm.optim.Adam(plain.parameters(), transform=znorm.ZNorm(), model=plain)
    second = znorm.optim.Adam(closed.parameters(), transform=znorm.ZNorm(), model=closed)
    for _ in range(5):
        backward(plain)
        first.step()
        second.step(lambda: backward(closed))
    assert same(weights(plain), weights(closed))


def test_lbfgs_sees_the_transformed_gradient_at_each_call_of_the_closure() -> None:
    model, by_hand = net(), net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    znorm.attach(optimizer, znorm.ZNorm(select="all"))
    optimizer.step(lambda: backward(model))

    def closure() -> Tensor:
        loss = backward(by_hand)
        znorm.z_score_([p.grad for p in by_hand.parameters()])
        return loss

    torch.optim.LBFGS(by_hand.parameters(), max_iter=4).step(closure)
    assert same(weights(model), weights(by_hand))
    assert not same(weights(model), weights(net()))


def test_gradients_are_transformed_in_place_once_a_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    for _ in range(2):  # accumulation: two backward passes, one step
        loss_of(model).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    znorm.z_score_([g for g in expected if g.dim() > 1])
    optimizer.step()
    assert same(expected, [p.grad for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_under_grad_scaler_the_loss_scale_does_not_reach_the_step(
    fused: bool, unscale: bool
) -> None:
    plain, scaled = net(), net()
    first = torch.optim.Adam(plain.parameters(), fused=fused)
    second = torch.optim.Adam(scaled.parameters(), fused=fused)
    znorm.attach(first, znorm.ZNorm())
    znorm.attach(second, znorm.ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    for _ in range(5):
        backward(plain)
        first.step()
        scaled.zero_grad()
        scaler.scale(loss_of(scaled)).backward()
        if unscale:
            scaler.unscale_(second)
        scaler.step(second)
        scaler.update()
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflowed_is_still_skipped(fused: bool) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    znorm.attach(optimizer, znorm.ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    scaler.scale(loss_of(model)).backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    gradient[0, 0] = torch.inf
    before = weights(model)
    scaler.step(optimizer)
    assert same(before, weights(model))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("ours", [False, True])
def test_copies_and_pickles_keep_the_transform_and_the_names(how: Any, ours: bool) -> None:
    model = net()
    optimizer: Optimizer
    if ours:
        optimizer = znorm.optim.Adam(model.parameters(), transform=znorm.ZNorm(), model=model)
    else:
        optimizer = torch.optim.Adam(model.parameters())
        znorm.attach(optimizer, znorm.ZNorm(), model=model)
    backward(model)
    optimizer.step()
    backward(model)
    twin = how(optimizer)
    assert type(twin) is type(optimizer)
    for group, other in zip(optimizer.param_groups, twin.param_groups, strict=True):
        for parameter, copied in zip(group["params"], other["params"], strict=True):
            assert copied is not parameter
            copied.grad = parameter.grad.clone()
    optimizer.step()
    twin.step()
    assert same(weights(model), [p.detach() for p in twin.param_groups[0]["params"]])
    from znorm.attachment import attachment_of

    found = attachment_of(twin)
    assert found is not None
    assert [row["name"] for row in found.describe().rows] == [
        name for name, _ in model.named_parameters()
    ]


def test_detach_gives_the_bare_optimizer_back() -> None:
    model, bare = net(), net()
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, bare))
    attributes = set(optimizer.__dict__)
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    attachment.detach()
    attachment.detach()
    assert set(optimizer.__dict__) == attributes
    for m, o in ((model, optimizer), (bare, other)):
        backward(m)
        o.step()
    assert same(weights(model), weights(bare))
    znorm.attach(optimizer, znorm.ZNorm())


def test_the_attachment_does_not_keep_the_optimizer_alive() -> None:
    gc.disable()
    try:
        optimizer = torch.optim.SGD(net().parameters())
        reference = weakref.ref(optimizer)
        attachment = znorm.attach(optimizer, znorm.ZNorm())
        del optimizer
        assert reference() is None
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match="no longer exists"):
        attachment.describe()


def test_a_group_added_later_is_transformed() -> None:
    model, late = net(), nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    backward(model)
    optimizer.step()
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.arange(12.0).reshape(3, 4)
    optimizer.step()
    assert late.grad.mean().abs() < 1e-6
    assert attachment.describe().rows[-1]["name"] == "group 1, parameter 0 (3, 4)"


def test_names_come_from_the_optimizer_where_it_has_them() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.named_parameters())
    attachment = znorm.attach(optimizer, znorm.ZNorm(select=[("0.*", False)]))
    rows = {row["name"]: row for row in attachment.describe().rows}
    assert not rows["0.weight"]["transformed"]
    assert rows["0.weight"]["why"] == "rule 0 '0.*'"
    assert rows["2.weight"]["transformed"]


def test_describe_tells_what_why_and_by_which_kernel() -> None:
    model = nn.Sequential(
        nn.ConvTranspose1d(4, 6, 3, groups=2), nn.LayerNorm((2, 3)), nn.Embedding(5, 3)
    )
    optimizer = torch.optim.Adam(model.parameters())
    attachment = znorm.attach(
        optimizer, znorm.chain(znorm.Centralize(), znorm.ClipNorm(1.0)), model=model
    )
    rows = attachment.describe().rows
    assert set(rows[0]) == {"name", "shape", "units", "kernel", "transformed", "why"}
    assert [(row["name"], row["units"]) for row in rows] == [
        ("0.weight", 6),
        ("0.bias", 1),
        ("1.weight", 1),
        ("1.bias", 1),
        ("2.weight", 5),
    ]
    assert rows[0]["why"] == "Centralize by axis 1, ClipNorm"
    assert rows[2]["why"] == "ClipNorm; not Centralize: normalization (LayerNorm)"
    text = str(attachment.describe())
    assert text.splitlines()[0].split() == ["name", "shape", "units", "kernel", "transformed"]
    # Columns stand under one another.
    kernels = {line[line.index(")") :].split()[2] for line in text.splitlines()[1:]}
    assert kernels <= {"cpu", "reference"}
    assert len({len(line.split("  yes: ")[0]) for line in text.splitlines()[1:]}) == 1
    attachment.detach()
    bare = znorm.attach(optimizer, znorm.Centralize()).describe().rows
    assert bare[0]["why"] == "Centralize by axis 0, assumed"


def test_wrong_use_is_named() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, found Sequential"):
        znorm.attach(model, znorm.ZNorm())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a transform"):
        znorm.attach(optimizer, znorm.ZNorm)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, found str"):
        znorm.attach(optimizer, znorm.ZNorm(), model="net")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a copy"):
        znorm.attach(optimizer, znorm.ZNorm(), model=copy.deepcopy(model))
    with pytest.raises(ValueError, match="rule 0 'head' matches no parameter"):
        znorm.attach(optimizer, znorm.ZNorm(select=[("head", False)]), model=model)
    with pytest.raises(ValueError, match="rule 0 'head' goes by name, but group 0, parameter 0"):
        znorm.attach(optimizer, znorm.ZNorm(select=[("head", False)]))
    with pytest.raises(ValueError, match="goes by module type"):
        znorm.attach(optimizer, znorm.ZNorm(select=[(nn.Linear, False)]))
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    with pytest.raises(ValueError, match="attached already"):
        znorm.attach(optimizer, znorm.ZNorm())


def test_a_sparse_gradient_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"0\.weight: its gradient is sparse"):
        optimizer.step()
    attachment.detach()
    znorm.attach(optimizer, znorm.ZNorm(select=[(nn.Embedding, False)]), model=model)
    optimizer.step()


@pytest.mark.parametrize(
    "transform",
    [znorm.ZNorm(), znorm.ZNorm(granularity="channel"), znorm.ClipNorm(0.1), znorm.ClipValue(0.1)],
    ids=str,
)
def test_complex_numbers_are_two_real_ones_as_in_torchs_own_optimizers(transform: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, gradients = torch.randn(2, 5, 3, dtype=torch.complex64, generator=generator)
    complex_, real = nn.Parameter(weights.clone()), nn.Parameter(torch.view_as_real(weights))
    optimizers = [torch.optim.Adam([p]) for p in (complex_, real)]
    for optimizer in optimizers:
        znorm.attach(optimizer, transform)
    complex_.grad, real.grad = gradients.clone(), torch.view_as_real(gradients).clone()
    for optimizer in optimizers:
        optimizer.step()
    assert complex_.grad is not None
    # By different kernels, which may round differently.
    same = partial(torch.testing.assert_close, rtol=0, atol=5e-7)
    same(torch.view_as_real(complex_.grad), real.grad)
    same(torch.view_as_real(complex_.detach()), real.detach())
    if transform == znorm.ZNorm():
        expected = oracle.whole(oracle.z_score, torch.view_as_real(gradients))
        torch.testing.assert_close(real.grad.double(), expected, rtol=0, atol=1e-6)


def test_what_is_no_number_is_refused_by_name() -> None:
    for dtype in (torch.int64, torch.complex32):
        parameter = torch.zeros(3, 3, dtype=dtype)
        with pytest.raises(TypeError, match=rf"w: {dtype} is not supported"):
            znorm.Layout([("w", parameter)], znorm.ZNorm())


@pytest.mark.parametrize("closed", [False, True])
def test_a_subclass_that_calls_its_parents_step_is_transformed_once(closed: bool) -> None:
    torch.optim.SGD(net().parameters(), lr=0.1)  # torch patches the step of what it instantiates

    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    # The z-score is cut off: done twice, it would be another one.
    transform = znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0))
    model, plain = net(), net()
    mine, reference = Mine(model.parameters(), lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    znorm.attach(mine, transform)
    znorm.attach(reference, transform)
    for _ in range(2):
        backward(plain)
        reference.step()
        if closed:
            mine.step(lambda: backward(model))
        else:
            backward(model)
            mine.step()
    assert same(weights(model), weights(plain))


def test_a_step_left_by_an_exception_does_not_keep_the_next_one_from_being_transformed() -> None:
    model, plain = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm())
    znorm.attach(reference, znorm.ZNorm())

    def failing() -> Tensor:
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(failing)
    for m, o in ((model, optimizer), (plain, reference)):
        backward(m)
        o.step()
    assert same(weights(model), weights(plain))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_loss_scale_of_half_precision_gradients_is_not_rounded_apart(
    dtype: torch.dtype,
) -> None:
    scaled = (1e-6 * torch.randn(40, 30, dtype=torch.float64) * 65536).to(dtype)
    bias = torch.tensor([2.0, -4.0], dtype=dtype)
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in (scaled, bias)]
    optimizer = torch.optim.SGD(parameters, lr=1.0, fused=True)
    znorm.attach(optimizer, znorm.ZNorm())
    # What GradScaler does before a fused step.
    optimizer.grad_scale = torch.tensor(65536.0)  # type: ignore[attr-defined]
    optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    for parameter, gradient in zip(parameters, (scaled.clone(), bias), strict=True):
        parameter.grad = gradient
    optimizer.step()
    expected = oracle.whole(oracle.z_score, scaled.double() / 65536).to(dtype)
    assert parameters[0].grad is not None
    assert (parameters[0].grad == expected).double().mean() >= 0.999
    assert bias.tolist() == [2.0**-15, -(2.0**-14)]


def test_without_a_transform_nothing_is_attached() -> None:
    optimizer = znorm.optim.Adam(net().parameters())
    assert optimizer.attachment is None
    znorm.attach(optimizer, znorm.ZNorm())
    assert repr(optimizer.attachment) == repr(znorm.ZNorm()).join(["Attachment(", ")"])


def test_a_parameter_of_a_class_made_inside_a_function_can_be_pickled() -> None:
    class Norm(nn.LayerNorm):
        pass

    model = nn.Sequential(nn.Linear(3, 4), Norm((2, 4)))
    optimizer = torch.optim.Adam(model.parameters())
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    twin = pickle.loads(pickle.dumps(optimizer))
    from znorm.attachment import attachment_of

    rows = attachment_of(twin).describe().rows  # type: ignore[union-attr]
    assert [row["why"] for row in rows][2] == "normalization (LayerNorm)"


def test_parameters_that_move_to_another_dtype_or_shape_are_laid_out_anew() -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    parameter.data = torch.zeros(5, 6)
    parameter.grad = torch.randn(5, 6)
    optimizer.step()
    assert attachment.describe().rows[0]["shape"] == (5, 6)


def test_a_new_parameter_is_never_taken_for_one_that_has_gone() -> None:
    for _ in range(60):
        model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm((3, 3)))
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
        model[1] = nn.Identity()
        # Often at the address of what was just freed.
        optimizer.add_param_group({"params": [nn.Parameter(torch.randn(3, 3))]})
        row = attachment.describe().rows[-1]
        assert (row["name"], row["transformed"]) == ("group 1, parameter 0 (3, 3)", True)


def test_two_steps_of_the_parent_within_one_step_are_transformed_once_each_closure() -> None:
    torch.optim.SGD(net().parameters(), lr=0.1)  # torch patches the step of what it instantiates

    class Extra(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            super().step()
            loss = closure()
            super().step()
            return loss

    transform = znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0))
    model, plain = net(), net()
    extra, reference = Extra(model.parameters(), lr=0.1), torch.optim.SGD(plain.parameters(), 0.1)
    attachment = znorm.attach(extra, transform)
    znorm.attach(reference, transform)
    extra.step(lambda: backward(model))
    for _ in range(2):
        backward(plain)
        reference.step()
    assert same(weights(model), weights(plain))
    assert {values["steps"] for values in attachment.receipt().values()} == {2}


def test_a_users_wrapper_around_step_is_not_taken_for_torchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = net()
    optimizer = Mine(model.parameters(), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(select="all"))
    inner = Mine.step

    def wrapper(self: Any, closure: Any = None) -> Any:
        return inner(self, closure)

    monkeypatch.setattr(Mine, "step", wrapper)
    with pytest.raises(KeyError):
        optimizer.step(lambda: {}["data"])  # type: ignore[arg-type]
    backward(model)
    optimizer.step()
    gradient = model[0].weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient.mean().abs() < 1e-6


def test_names_that_two_groups_share_are_told_apart() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = torch.optim.SGD([{"params": list(one.named_parameters())}], lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm())

    def step(*models: nn.Module) -> None:
        for model in models:
            for p in model.parameters():
                p.grad = torch.randn_like(p)
        optimizer.step()

    step(one)
    optimizer.add_param_group({"params": list(two.named_parameters())})
    step(one, two)
    names = [row["name"] for row in attachment.describe().rows]
    assert names == ["group 0: weight", "group 0: bias", "group 1: weight", "group 1: bias"]
    steps = {name: values["steps"] for name, values in attachment.receipt().items()}
    assert steps == {"group 0: weight": 2, "group 1: weight": 1}


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_an_attachment_is_copied_with_its_optimizer(how: Any) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    held = {"attachment": attachment, "optimizer": optimizer}
    twin = how(held)
    assert twin["attachment"]._optimizer() is twin["optimizer"]
    assert twin["attachment"] is not attachment
    attachment.detach()
    with pytest.raises(TypeError, match="it is detached"):
        how(attachment)


def test_a_rule_by_a_class_made_inside_a_function_survives_deepcopy() -> None:
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(Mine(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(select=[(Mine, False)]), model=model)
    from znorm.attachment import attachment_of

    copied = copy.deepcopy(optimizer)
    twin = attachment_of(copied)
    assert twin is not None
    assert [row["transformed"] for row in twin.describe().rows] == [False, False, True, False]


def test_an_error_in_one_group_leaves_all_gradients_as_they_were() -> None:
    dense, sparse = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([{"params": [dense]}, {"params": [sparse]}], lr=0.1)
    znorm.attach(optimizer, [znorm.ZNorm(), znorm.ZNorm()])
    dense.grad, sparse.grad = torch.arange(6.0).reshape(2, 3), torch.eye(2, 3).to_sparse()
    with pytest.raises(ValueError, match="its gradient is sparse"):
        optimizer.step()
    assert torch.equal(dense.grad, torch.arange(6.0).reshape(2, 3))


def test_a_conjugated_gradient_is_resolved() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    znorm.attach(optimizer, znorm.ZNorm())
    raw = torch.randn(2, 2, dtype=torch.complex64)
    parameter.grad = raw.conj()
    optimizer.step()
    expected = oracle.whole(oracle.z_score, torch.view_as_real(raw.conj().resolve_conj()))
    found = torch.view_as_real(-parameter.detach()).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_observing_takes_what_cannot_be_transformed() -> None:
    embedding, frozen = nn.Embedding(4, 2, sparse=True), torch.ones(3, dtype=torch.int8)
    quantized = nn.Parameter(frozen, requires_grad=False)
    optimizer = torch.optim.SGD([*embedding.parameters(), quantized], lr=0.1)
    attachment = znorm.attach(optimizer, None)
    assert [row["why"] for row in attachment.describe().rows] == ["observed only", "torch.int8"]
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert attachment.receipt() == {}
    with pytest.raises(ValueError, match="SGD is observed already; detach that first"):
        znorm.attach(optimizer, znorm.ZNorm())
    attachment.detach()
    # What is frozen never has a gradient.
    rows = znorm.attach(optimizer, znorm.ClipNorm(1.0)).describe().rows
    assert rows[1]["why"] == "torch.int8"


def test_more_wrong_use_is_named() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"transform: expected a transform .*, found 'znorm'"):
        znorm.attach(optimizer, "znorm")  # type: ignore[arg-type]
    lazy = nn.Sequential(nn.LazyLinear(3))
    for model in (None, lazy):
        with pytest.raises(ValueError, match="group 0, parameter 0: not initialized yet"):
            znorm.attach(torch.optim.SGD(lazy.parameters()), znorm.ZNorm(), model=model)
    with pytest.raises(TypeError, match=r"gradients: entry 1 is torch\.int64"):
        znorm.z_score_([torch.zeros(2), torch.zeros(2, dtype=torch.int64)])
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    with pytest.raises(TypeError, match="not callable"):
        optimizer.step(3)  # type: ignore[arg-type]
    attachment.detach()


def test_what_lies_on_the_meta_device_without_a_gradient_does_no_harm() -> None:
    meta, real = nn.Parameter(torch.zeros(2, 2, device="meta")), nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([meta, real], lr=1.0)
    znorm.attach(optimizer, znorm.ZNorm())
    real.grad = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    optimizer.step()
    assert real.grad.mean().abs() < 1e-6


def test_a_frozen_parameter_is_described_as_such() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)

    def why() -> dict[str, str]:
        return {row["name"]: row["why"] for row in attachment.describe().rows}

    assert why()["0.weight"] == "frozen"
    assert why()["1.weight"] == "ZNorm"
    assert str(attachment.describe()).splitlines()[1].endswith("no: frozen")
    model[0].weight.requires_grad_(True)
    assert why()["0.weight"] == "ZNorm"
