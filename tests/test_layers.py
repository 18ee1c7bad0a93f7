"""Which slices are layers, and which axis their channels are, for every kind of module."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import znorm
from znorm.engine.execute import transform_


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.experts = nn.Parameter(torch.zeros(4, 6, 8))


def transformed(tensors: Any, transform: Any, model: nn.Module | None = None) -> list[Tensor]:
    """Gradients drawn by seed, after the transform."""
    gradients = drawn([p for _, p in tensors])
    transform_(gradients, znorm.Layout(tensors, transform, model=model))
    return gradients


def drawn(parameters: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(p.shape, generator=generator, dtype=torch.float64) * (1 + p.dim()) + 0.5
        for p in parameters
    ]


def z(part: Tensor) -> Tensor:
    return oracle.whole(oracle.z_score, part)


# Each kind of module, and the axis of its weight that is the output.
AXES: dict[str, tuple[nn.Module, int | None]] = {
    "Linear": (nn.Linear(5, 7), 0),
    "Bilinear": (nn.Bilinear(3, 4, 5), 0),
    "Conv1d": (nn.Conv1d(4, 6, 3), 0),
    "Conv2d, groups": (nn.Conv2d(4, 6, 3, groups=2), 0),
    "Conv3d": (nn.Conv3d(2, 3, 2), 0),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3), 1),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3), 1),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 2, 2), 1),
    "ConvTranspose2d, groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), None),
    # The vector of each entry by itself: entries that a batch does not hold must stay still.
    "Embedding": (nn.Embedding(9, 4), 0),
    "EmbeddingBag": (nn.EmbeddingBag(9, 4), 0),
    "LSTM": (nn.LSTM(3, 4), 0),
}


@pytest.mark.parametrize("kind", AXES)
def test_the_channel_axis_of_every_kind_of_layer(kind: str) -> None:
    model, axis = AXES[kind]
    named = [(name, p) for name, p in model.named_parameters() if p.dim() > 1]
    for transform, formula in (
        (znorm.Centralize(), oracle.center),
        (znorm.ZNorm(granularity="channel"), oracle.z_score),
    ):
        found = transformed(named, transform, model)
        for gradient, raw in zip(found, drawn([p for _, p in named]), strict=True):
            if axis is None:  # (in, out / groups, ...), two groups along dim 0
                halves = [oracle.by_channel(formula, half, 1) for half in raw.chunk(2)]
                expected = torch.cat(halves)
            else:
                expected = oracle.by_channel(formula, raw, axis)
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_packed_attention_is_three_layers_where_the_model_is_known() -> None:
    model = nn.MultiheadAttention(8, 2)
    named = list(model.named_parameters())
    found = transformed(named, znorm.ZNorm(select="all"), model)
    raw = dict(zip(dict(named), drawn([p for _, p in named]), strict=True))
    for (name, _), gradient in zip(named, found, strict=True):
        parts = 3 if name.startswith("in_proj") else 1
        expected = torch.cat([z(part) for part in raw[name].chunk(parts)])
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    rows = {
        row["name"]: row for row in znorm.Layout(named, znorm.ZNorm(), model=model).describe().rows
    }
    assert rows["in_proj_weight"]["units"] == 3
    assert rows["in_proj_weight"]["why"] == "ZNorm; 3 layers along axis 0"
    assert rows["out_proj.weight"]["units"] == 1
    # Not known, or told otherwise: one layer.
    rule: Any = [("in_proj_weight", znorm.Layers(1)), ("*", False)]
    for options in ({}, {"select": rule}):
        model_or_not = model if options else None
        layout = znorm.Layout(named, znorm.ZNorm(**options), model=model_or_not)
        assert layout.describe().rows[0]["units"] == 1


SPLITS: dict[str, tuple[Any, Any]] = {
    "fused, three alike": (znorm.Layers(3), lambda g: g.chunk(3)),
    "fused, by sizes": (znorm.Layers((16, 4, 4)), lambda g: g.split([16, 4, 4])),
    "along the other dim": (znorm.Layers([3, 5], dim=1), lambda g: g.split([3, 5], 1)),
    "from the end": (znorm.Layers(2, dim=-1), lambda g: g.chunk(2, 1)),
}


@pytest.mark.parametrize("how", SPLITS)
def test_a_rule_splits_a_fused_weight_into_the_layers_that_it_is(how: str) -> None:
    layers, split = SPLITS[how]
    named = [("qkv.weight", torch.zeros(24, 8))]
    (gradient,) = transformed(named, znorm.ZNorm(select=[("qkv.*", layers)]))
    (raw,) = drawn([named[0][1]])
    for part, before in zip(split(gradient), split(raw), strict=True):
        torch.testing.assert_close(part, z(before), rtol=1e-9, atol=1e-9)


def test_stacked_experts_are_layers_each_with_channels_of_its_own() -> None:
    named = [("experts", torch.zeros(4, 6, 8))]
    rule: Any = [("experts", znorm.Layers())]
    (raw,) = drawn([named[0][1]])
    (gradient,) = transformed(named, znorm.ZNorm(select=rule))
    torch.testing.assert_close(gradient, torch.stack([z(e) for e in raw]), rtol=1e-9, atol=1e-9)
    (gradient,) = transformed(named, znorm.Centralize(select=rule))
    expected = torch.stack([oracle.by_channel(oracle.center, expert) for expert in raw])
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    row = znorm.Layout(named, znorm.Centralize(select=rule)).describe().rows[0]
    assert (row["units"], row["why"]) == (
        24,
        "Centralize by axis 1, assumed; 4 layers along axis 0",
    )


@pytest.mark.parametrize(
    ("layers", "split"),
    [
        (znorm.Layers(3), lambda g: g.chunk(3)),
        (znorm.Layers(2, dim=1), lambda g: g.chunk(2, 1)),
        (znorm.Layers(dim=1), lambda g: g.unbind(1)),
    ],
)
def test_what_one_link_tells_of_layers_holds_for_the_chain(layers: Any, split: Any) -> None:
    named = [("w", torch.zeros(6, 4, 3))]
    chain = znorm.chain(
        znorm.Centralize(),
        znorm.ClipValue(1.0),
        znorm.ZNorm(select=[("w", layers)]),
        znorm.ClipNorm(2.0),
        znorm.ClipGlobalNorm(3.0),
    )
    (gradient,) = transformed(named, chain)
    (raw,) = drawn([named[0][1]])
    parts = []
    for part in split(raw):
        step = oracle.by_channel(oracle.center, part).clamp(-1, 1)
        parts.append(oracle.whole(partial(oracle.clip, threshold=2.0), z(step)))
    norm = float(torch.stack([p.square().sum() for p in parts]).sum().sqrt())
    for part, expected in zip(split(gradient), parts, strict=True):
        torch.testing.assert_close(part, expected * min(1, 3 / norm), rtol=1e-9, atol=1e-9)


def test_memory_formats_and_half_precision_split_as_well() -> None:
    raw = torch.randn(24, 4, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    gradient = raw.clone(memory_format=torch.preserve_format)
    layout = znorm.Layout([("w", raw)], znorm.ZNorm(select=[("w", znorm.Layers((8, 16)))]))
    transform_([gradient], layout)
    expected = torch.cat([z(part) for part in raw.split([8, 16])]).bfloat16()
    assert (gradient == expected).double().mean() >= 0.999


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (znorm.Layers(5), "w: 24 along dim 0 cannot be split in 5 equal layers"),
        (znorm.Layers((3, 4)), r"w: the sizes \(3, 4\) of Layers sum to 7, but .* has 24"),
        (znorm.Layers(2, dim=2), r"w: has no dim 2 to split, its shape is \(24, 8\)"),
    ],
)
def test_a_split_that_does_not_fit_is_named(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        znorm.Layout([("w", torch.zeros(24, 8))], znorm.ZNorm(select=[("w", layers)]))


def test_contradicting_rules_and_transposed_convolutions_are_refused() -> None:
    chain = znorm.chain(
        znorm.Centralize(select=[("w", znorm.Layers(2))]),
        znorm.ZNorm(select=[("w", znorm.Layers(3))]),
    )
    with pytest.raises(ValueError, match=r"w: one transform's rule says .*parts=2.* another's"):
        znorm.Layout([("w", torch.zeros(24, 8))], chain)
    model = nn.ConvTranspose2d(4, 6, 3)
    with pytest.raises(ValueError, match="weight: the weight of a transposed convolution"):
        znorm.Layout(
            model.named_parameters(),
            znorm.ZNorm(select=[("weight", znorm.Layers(2))]),
            model=model,
        )


def test_a_nan_in_one_layer_makes_the_whole_tensor_nan() -> None:
    gradient = torch.randn(6, 4)
    gradient[0, 0] = torch.nan
    transform_(
        [gradient], znorm.Layout([("w", gradient)], znorm.ZNorm(select=[("w", znorm.Layers(3))]))
    )
    assert gradient.isnan().all()


def test_units_of_one_element_are_left_alone_and_said_so() -> None:
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    one_input, depthwise = nn.Linear(1, 8), nn.Conv2d(4, 4, 1, groups=4)
    transform = znorm.Centralize(select="all")
    for model in (weight_norm, one_input, depthwise):
        named = [(name, p) for name, p in model.named_parameters() if p.dim() > 1]
        found = transformed(named, transform, model)
        rows = znorm.Layout(named, transform, model=model).describe().rows
        for row, gradient, raw in zip(rows, found, drawn([p for _, p in named]), strict=True):
            if row["shape"][1:].count(1) == len(row["shape"]) - 1:
                assert (row["transformed"], row["why"]) == (False, "units of one element")
                assert torch.equal(gradient, raw)
            else:
                assert row["transformed"]
    # The other links of a chain still act.
    chain = znorm.chain(znorm.Centralize(), znorm.ZNorm())
    (gradient,) = transformed([("w", torch.zeros(8, 1))], chain)
    torch.testing.assert_close(gradient, z(drawn([torch.zeros(8, 1)])[0]), rtol=1e-9, atol=1e-9)
    for select in ([("w", znorm.Layers())], [("w", znorm.Layers((1, 7)))]):
        layout = znorm.Layout([("w", torch.zeros(8, 1))], znorm.ZNorm(select=select))
        assert layout.describe().rows[0]["why"] == "units of one element"


def test_the_same_split_may_be_said_in_two_ways() -> None:
    for one, other in (
        (znorm.Layers(2, dim=1), znorm.Layers(2, dim=-1)),
        (znorm.Layers(3), znorm.Layers((8, 8, 8))),
        (znorm.Layers(1), znorm.Layers((24,))),
    ):
        chain = znorm.chain(
            znorm.Centralize(select=[("w", one)]), znorm.ZNorm(select=[("w", other)])
        )
        assert znorm.Layout([("w", torch.zeros(24, 8))], chain).entries[0].selected


def test_a_split_in_one_keeps_the_axis_of_a_transposed_convolution() -> None:
    model = nn.ConvTranspose2d(4, 6, 3, groups=2)
    for layers in (znorm.Layers(1), znorm.Layers(1, dim=1)):
        rule: Any = [("weight", layers)]
        layout = znorm.Layout(model.named_parameters(), znorm.Centralize(select=rule), model=model)
        assert layout.describe().rows[0]["why"] == "Centralize by axis 1"
        assert layout.describe().rows[0]["units"] == 6
