"""Each private part of torch by itself: a torch that changes one fails the test that names it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import znorm
from znorm import _torch_internals as internals

PACKAGE = Path(znorm.__file__).parent
VERSION = torch.__version__


def test_every_part_has_a_test_here() -> None:
    text = Path(__file__).read_text()
    assert [name for name in internals.__all__ if f"internals.{name}" not in text] == []


def test_no_other_file_of_the_library_reaches_into_torch() -> None:
    """Attributes with an underscore, of modules and classes of torch."""
    private = {
        "_cdata",
        "_post_accumulate_grad_hooks",
        "_forward_pre_hooks",
        "_optimizer_step_pre_hooks",
        "_optimizer_step_post_hooks",
        "_is_zerotensor",
        "__torch_dispatch__",
        "_version",
        "_modules",
        "__wrapped__",
    }
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "_torch_internals.py" or "lab" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                of_torch = ast.unparse(node.value).split(".")[0] == "torch"
                foreach = node.attr.startswith("_foreach_")  # documented, if not by its name
                if node.attr in private or (
                    of_torch and node.attr[0] == "_" and node.attr != "__file__" and not foreach
                ):
                    found.append(f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                found += [f"{path.name}: {a.name}" for a in node.names if a.name[0] == "_"]
    assert found == []


def test_convolutions_and_normalizations_have_a_base_each() -> None:
    for kind in (nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d):
        assert issubclass(kind, internals.Convolution), VERSION
    for kind in (nn.BatchNorm1d, nn.InstanceNorm2d, nn.SyncBatchNorm):
        assert issubclass(kind, internals.NormalizationBase), VERSION


def test_what_dispatches_is_not_plain() -> None:
    class Wrapped(Tensor):
        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            return NotImplemented

    wrapped = Tensor._make_wrapper_subclass(Wrapped, (2,))
    assert internals.is_plain(torch.zeros(2)), VERSION
    assert internals.is_plain(nn.Parameter(torch.zeros(2))), VERSION
    assert not internals.is_plain(wrapped), VERSION
    assert not internals.is_plain(torch._efficientzerotensor(2)), VERSION


def test_functorch_and_compile_are_told() -> None:
    seen: list[bool] = []

    def function(x: Tensor) -> Tensor:
        seen.append(internals.is_traced())
        return x.sum()

    function(torch.ones(2))
    torch.func.grad(function)(torch.ones(2))
    torch.func.vmap(function)(torch.ones(2, 2))
    assert seen == [False, True, True], VERSION


def test_a_swapped_tensor_is_another_one_behind_the_same_name() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    before = internals.identity_behind(one)
    torch.utils.swap_tensors(one, other)
    assert internals.identity_behind(one) != before, VERSION
    assert internals.identity_behind(other) == before, VERSION


def test_writes_are_counted() -> None:
    tensor = torch.zeros(2)
    before = internals.version_of(tensor)
    tensor.add_(1)
    assert internals.version_of(tensor) == before + 1, VERSION


def test_the_shard_behind_a_parameter_is_one_object(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shard = torch.zeros(4, 3)
        whole = DTensor.from_local(shard, init_device_mesh("cpu", (1,)), [Shard(0)])
        parameter = nn.Parameter(whole)
        first = internals.local_tensor(parameter)
        assert internals.local_tensor(parameter) is first, VERSION
        assert first.data_ptr() == shard.data_ptr()
        assert type(first) is Tensor
    finally:
        dist.destroy_process_group()


def test_each_place_of_a_module_and_of_a_parameter_is_told() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Module()
    model.one, model.other = shared, shared
    model.weight = shared.weight
    assert list(internals.submodules(model)) == ["one", "other"], VERSION
    assert list(internals.parameters_in(model)) == ["weight"], VERSION
    assert internals.parameters_in(shared)["weight"] is shared.weight


@pytest.mark.filterwarnings("ignore")
def test_the_old_forms_of_reparametrization_are_told_by_their_hooks() -> None:
    assert internals.weight_normed(nn.utils.weight_norm(nn.Linear(2, 2))) == {"weight"}, VERSION
    assert internals.weight_normed(nn.Linear(2, 2)) == set()
    pruned = prune.l1_unstructured(nn.Linear(2, 2), "bias", amount=1)
    assert internals.made_before_forward(pruned) == {"bias"}, VERSION
    spectral = nn.utils.spectral_norm(nn.Linear(2, 2))
    assert internals.made_before_forward(spectral) == {"weight"}, VERSION
    new = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert parametrize.is_parametrized(new)
    assert internals.weight_normed(new) == set()


def test_a_functional_call_is_seen_from_within() -> None:
    seen: list[bool] = []

    class Model(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(internals.is_functional_call())
            return super().forward(input)

    model = Model(2, 2)
    model(torch.ones(1, 2))
    torch.func.functional_call(model, dict(model.named_parameters()), torch.ones(1, 2))
    assert seen == [False, True], VERSION


def test_no_ddp_is_at_work_here() -> None:
    assert internals.ddp_forward_runs() is False, VERSION  # its forward: tests/test_backward.py


def test_hooks_after_accumulation_are_listed_and_set_anew() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    assert internals.accumulation_hooks(parameter) == {}
    calls: list[str] = []
    parameter.register_post_accumulate_grad_hook(lambda p: calls.append("hook"))
    assert len(internals.accumulation_hooks(parameter)) == 1, VERSION
    torch.utils.swap_tensors(parameter, nn.Parameter(torch.ones(2)))
    if internals.accumulation_hooks(parameter):
        internals.reset_accumulation_hooks(parameter)
        parameter.sum().backward()
        assert calls == ["hook"], VERSION


def test_a_running_backward_has_a_number_and_is_on_the_stack() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    numbers: list[int] = []
    losses: list[Any] = []

    def hook(p: Tensor) -> None:
        numbers.append(internals.running_backward())
        losses.append(internals.running_losses(sys._getframe()))

    parameter.register_post_accumulate_grad_hook(hook)
    assert internals.running_backward() == -1, VERSION
    loss = parameter.sum()
    loss.backward()
    parameter.sum().backward()
    assert numbers[0] >= 0, VERSION
    assert numbers[0] != numbers[1], VERSION
    assert losses[0][0][0] is loss, VERSION


def test_a_node_of_the_graph_keeps_what_is_noted_on_it() -> None:
    loss = nn.Parameter(torch.ones(2)).sum()
    internals.metadata_of(loss.grad_fn)["znorm"] = True
    assert internals.metadata_of(loss.grad_fn) == {"znorm": True}, VERSION


def test_the_layer_of_hooks_round_a_step_is_known_and_taken_off() -> None:
    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    calls: list[str] = []
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.register_step_pre_hook(lambda *args: calls.append("hook"))
    step = torch.optim.SGD.step
    assert internals.step_is_hooked(step), VERSION
    assert not internals.step_is_hooked(Mine.step)
    assert internals.runs_step_hooks(optimizer), VERSION
    parameter.grad = torch.ones(2)
    internals.step_within_hooks(step)(optimizer)
    assert calls == [], VERSION
    assert parameter.tolist() == [-1.0, -1.0], VERSION
    optimizer.step()
    assert calls == ["hook"]
    for name in internals.STEP_HOOKS:
        assert name in vars(optimizer), VERSION


def test_a_scaler_hands_its_scale_to_a_step_that_says_so() -> None:
    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(float(self.grad_scale))  # type: ignore[attr-defined]
            return None

    seen: list[float] = []
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = Mine([parameter])
    setattr(optimizer, internals.SCALED_BY_STEP, True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    assert seen == [4.0], VERSION


def test_the_step_of_a_subclass_is_told_from_its_parents() -> None:
    seen: list[bool] = []

    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    plain, mine = (kind([nn.Parameter(torch.zeros(2))]) for kind in (torch.optim.SGD, Mine))
    for one in (plain, mine):
        one.register_step_post_hook(
            lambda optimizer, *args: seen.append(internals.inside_another_step(optimizer))
        )
        one.step()
    assert seen == [False, True, False], VERSION


def test_a_scaler_that_calls_a_closure_is_refused() -> None:
    internals.refuse_grad_scaler()

    class Asks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            internals.refuse_grad_scaler()

    parameter = nn.Parameter(torch.zeros(2))
    optimizer = Asks([parameter])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(RuntimeError, match="GradScaler cannot unscale what a closure computes"):
        scaler.step(optimizer)


def test_the_dummy_step_of_a_checkpoint_is_told() -> None:
    checkpoints = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    seen: list[bool] = []
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.register_step_pre_hook(
        lambda one, *args: seen.append(internals.makes_empty_state(one))
    )
    checkpoints.get_optimizer_state_dict(model, optimizer)
    assert seen == [True], VERSION
    optimizer.step()
    assert seen == [True, False]


def test_a_warning_names_the_line_outside_of_the_package_and_torch() -> None:
    def called() -> int:
        return internals.users_level()

    # This file is outside: the level of whoever called `users_level` itself.
    assert called() == 1
    frames = [frame.f_code for frame in internals.frames()]
    assert test_a_warning_names_the_line_outside_of_the_package_and_torch.__code__ in frames[:3]
