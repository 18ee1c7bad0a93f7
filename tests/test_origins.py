"""What is known of a parameter: its name through wrappers, its output axis, what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import oracle
import znorm
from znorm.engine.execute import transform_
from znorm.parameter_info import parameter_infos


class Conv1D(nn.Module):
    """GPT-2's linear layer, as ``transformers.pytorch_utils.Conv1D``: its weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf, generator=torch.Generator().manual_seed(0)))
        self.bias = nn.Parameter(torch.zeros(nf))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = Conv1D(12, 4)
        self.c_proj = Conv1D(4, 4)
        self.q_attn = nn.ModuleDict({"c_attn": Conv1D(8, 4)})


def rows_of(model: nn.Module, transform: Any) -> dict[str, dict[str, Any]]:
    layout = znorm.Layout(model.named_parameters(), transform, model=model)
    return {row["name"]: row for row in layout.describe().rows}


def transformed(model: nn.Module, transform: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients before and after, by name."""
    generator = torch.Generator().manual_seed(1)
    names = [name for name, _ in model.named_parameters()]
    raw = [torch.randn(p.shape, generator=generator) + 0.5 for p in model.parameters()]
    gradients = [gradient.clone() for gradient in raw]
    transform_(gradients, znorm.Layout(model.named_parameters(), transform, model=model))
    return dict(zip(names, zip(raw, gradients, strict=True), strict=True))


def test_the_outputs_of_a_layer_that_is_stored_the_other_way_round_are_its_columns() -> None:
    model = Block()
    rows = rows_of(model, znorm.Centralize())
    assert rows["c_proj.weight"]["why"] == "Centralize by axis 1"
    assert rows["c_proj.weight"]["units"] == 4
    raw, found = transformed(model, znorm.Centralize())["c_proj.weight"]
    torch.testing.assert_close(found, raw - raw.mean(0, keepdim=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "parts"), [("c_attn", 3), ("q_attn.c_attn", 2)])
def test_what_it_fuses_is_as_many_layers(name: str, parts: int) -> None:
    model = Block()
    rows = rows_of(model, znorm.ZNorm(select="all"))
    assert rows[f"{name}.weight"]["why"] == f"ZNorm; {parts} layers along axis 1"
    assert rows[f"{name}.bias"]["units"] == parts
    assert rows["c_proj.weight"]["units"] == 1
    raw, found = transformed(model, znorm.ZNorm())[f"{name}.weight"]
    for before, after in zip(raw.chunk(parts, 1), found.chunk(parts, 1), strict=True):
        expected = oracle.whole(oracle.z_score, before)
        torch.testing.assert_close(after.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [znorm.optim.Adam, torch.optim.Adam])
def test_it_is_trained_so(make: Any) -> None:
    model = Block()
    if make is znorm.optim.Adam:
        optimizer = make(model.parameters(), transform=znorm.Centralize(), model=model)
    else:
        optimizer = make(model.parameters())
        znorm.attach(optimizer, znorm.Centralize(), model=model)
    before = model.c_proj.weight.detach().clone()
    # Each output's gradient is constant: there is nothing left of it.
    model.c_proj.weight.grad = torch.arange(1.0, 5.0).repeat(4, 1)
    optimizer.step()
    assert torch.equal(model.c_proj.weight, before)


def test_the_axis_of_what_no_module_is_known_for_is_assumed() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 4))

    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.lora_a = nn.Parameter(torch.zeros(2, 3))

    model = nn.ModuleList([Own(), Adapted(), nn.Embedding(5, 3), nn.LSTM(3, 4), Block()])
    why = {name: row["why"] for name, row in rows_of(model, znorm.Centralize()).items()}
    assert why["0.weight"] == "Centralize by axis 0, assumed"
    assert why["1.lora_a"] == "Centralize by axis 0, assumed"
    assert why["1.weight"] == why["2.weight"] == "Centralize by axis 0"
    assert why["3.weight_ih_l0"] == why["3.weight_hh_l0"] == "Centralize by axis 0"


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)))


def new_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)))


@pytest.mark.parametrize("make", [old_weight_norm, new_weight_norm])
def test_the_magnitude_of_a_weight_norm_is_no_weight_matrix(make: Any) -> None:
    model = make()
    magnitude = "0.weight_g" if make is old_weight_norm else "0.parametrizations.weight.original0"
    direction = "0.weight_v" if make is old_weight_norm else "0.parametrizations.weight.original1"
    rows = rows_of(model, znorm.ZNorm())
    assert rows[magnitude]["shape"] == (5, 1)
    assert not rows[magnitude]["transformed"]
    assert rows[magnitude]["why"] == "magnitude of a weight norm"
    assert rows[direction]["transformed"]
    assert rows_of(model, znorm.Centralize())[direction]["why"] == "Centralize by axis 0"
    raw, found = transformed(model, znorm.ZNorm())[magnitude]
    assert torch.equal(raw, found)
    assert rows_of(model, znorm.ZNorm(select="all"))[magnitude]["transformed"]
    assert rows_of(model, znorm.ZNorm(select=[("*", True)]))[magnitude]["transformed"]


def test_the_old_form_says_so_by_its_names_alone() -> None:
    model = old_weight_norm()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    rows = {row["name"]: row for row in znorm.attach(optimizer, znorm.ZNorm()).describe().rows}
    assert rows["0.weight_g"]["why"] == "magnitude of a weight norm"
    lone = nn.Parameter(torch.zeros(5, 1))
    layout = znorm.Layout([("weight_g", lone)], znorm.ZNorm())
    assert layout.describe().rows[0]["transformed"]


class DataParallel(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Compiled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


class Fabric(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module
        self._original_module = module


WRAPPED: dict[str, Any] = {
    "plain": lambda m: m,
    "module.": DataParallel,
    "_orig_mod.": Compiled,
    "_forward_module.": Fabric,
    "module._orig_mod.": lambda m: DataParallel(Compiled(m)),
    "_orig_mod.module.": lambda m: Compiled(DataParallel(m)),
    "an average's": torch.optim.swa_utils.AveragedModel,
}
RULES = [("head.*", False)]


def net() -> nn.Module:
    return nn.ModuleDict({"stem": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


@pytest.mark.parametrize("by", ["model", "names"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_and_rules_are_those_of_what_is_wrapped(wrapper: str, by: str) -> None:
    model = WRAPPED[wrapper](net())
    named = list(model.named_parameters())
    optimizer = torch.optim.SGD(named if by == "names" else [p for _, p in named], lr=0.1)
    attachment = znorm.attach(
        optimizer, znorm.ZNorm(select=RULES), model=model if by == "model" else None
    )
    rows = {row["name"]: row for row in attachment.describe().rows}
    assert list(rows) == ["stem.weight", "stem.bias", "head.weight", "head.bias"]
    assert rows["stem.weight"]["transformed"]
    assert rows["head.weight"]["why"] == "rule 0 'head.*'"
    attachment.detach()
    # As a script may have it that was written for the wrapped model.
    prefix = named[0][0].removesuffix("stem.weight")
    rules = [(f"{prefix}head.*", False)]
    attachment = znorm.attach(
        optimizer, znorm.ZNorm(select=rules), model=model if by == "model" else None
    )
    assert sum(row["transformed"] for row in attachment.describe().rows) == 1


def test_a_module_of_ones_own_called_module_keeps_its_name() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(3, 4)
            self.other = nn.Linear(3, 4)

    model = Own()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    for given in (model, None):
        attachment = znorm.attach(optimizer, znorm.ZNorm(), model=given)
        assert attachment.describe().rows[0]["name"] == "module.weight"
        attachment.detach()


def test_a_shared_parameter_answers_to_each_of_its_names() -> None:
    model = net()
    model["tied"] = nn.Linear(3, 4)  # type: ignore[operator]
    model["tied"].weight = model["stem"].weight  # type: ignore[index]
    rows = rows_of(model, znorm.ZNorm(select=[("tied.*", False)]))
    assert rows["stem.weight"]["why"] == "rule 0 'tied.*'"


def test_a_shared_module_answers_to_each_of_its_names() -> None:
    model = net()
    model["again"] = model["head"]  # type: ignore[operator, index]
    rows = rows_of(model, znorm.ZNorm(select=[("again.*", False)]))
    assert rows["head.weight"]["why"] == "rule 0 'again.*'"
    assert rows["stem.weight"]["transformed"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("heads.*", r"'heads\.\*' matches no parameter \(the nearest names are 'head\.\w+'"),
        ("stem.wieght", r"\(the nearest names are 'stem\.weight'"),
        ("zzz", r"\(the nearest names are 'stem\.weight', 'stem\.bias', 'head\.weight'\)"),
        (nn.Conv2d, r"Conv2d matches no parameter \(they belong to Linear\)"),
    ],
    ids=str,
)
def test_a_rule_that_matches_nothing_names_what_is_near(rule: Any, message: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=message):
        znorm.Layout(model.named_parameters(), znorm.ZNorm(select=[(rule, False)]), model=model)


@pytest.mark.parametrize("how", ["prune", "spectral_norm"])
def test_what_is_made_before_each_forward_keeps_its_layers_and_axis(how: str) -> None:
    def made(module: nn.Module, name: str) -> nn.Module:
        if how == "prune":
            return prune.identity(module, name)  # type: ignore[no-untyped-call]
        return nn.utils.spectral_norm(module, name)

    attention = made(nn.MultiheadAttention(8, 2), "in_proj_weight")
    known = {info.name: info for info in parameter_infos(attention).values()}
    assert known["in_proj_weight_orig"].layers == znorm.Layers(3)
    up = made(nn.ConvTranspose2d(4, 6, 3), "weight")
    known = {info.name: info for info in parameter_infos(up).values()}
    assert (known["weight_orig"].output_dim, known["weight_orig"].transposed) == (1, 1)
    (row,) = [
        row
        for row in znorm.Layout(attention.named_parameters(), znorm.ZNorm(), model=attention)
        .describe()
        .rows
        if row["name"] == "in_proj_weight_orig"
    ]
    assert row["units"] == 3
