from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import znorm


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.norm = nn.LayerNorm((4, 2))
        self.head = nn.Linear(4, 7, bias=True)
        self.head.weight = self.embedding.weight


def selected(select: Any, transform: Any = znorm.ZNorm) -> list[str]:
    model = Net()
    layout = znorm.Layout(model.named_parameters(), transform(select=select), model=model)
    return [entry.name for entry in layout.entries if entry.selected]


def test_weights() -> None:
    assert selected("weights") == ["embedding.weight", "conv.weight"]


def test_all() -> None:
    everything = [
        "embedding.weight",
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
    ]
    assert selected("all") == everything


def test_the_first_matching_rule_wins_and_the_rest_falls_to_the_default() -> None:
    assert selected([("conv.bias", True), ("conv.*", False)]) == ["embedding.weight", "conv.bias"]
    assert selected([("conv.*", True), ("*", False)]) == ["conv.weight", "conv.bias"]
    assert selected([(nn.Embedding, False), (lambda name, p: p.ndim >= 2, True)]) == [
        "conv.weight",
        "norm.weight",
        "norm.bias",
    ]


def test_a_tied_parameter_stands_once_under_its_first_name() -> None:
    model = Net()
    layout = znorm.Layout(model.named_parameters(), znorm.ZNorm(), model=model)
    assert [entry.name for entry in layout.entries].count("embedding.weight") == 1
    assert "head.weight" not in [entry.name for entry in layout.entries]


def test_a_rule_that_another_hides_everywhere_still_counts_as_matched() -> None:
    assert selected([("*", False), ("conv.*", True)]) == []


def test_rules_are_immutable_and_comparable() -> None:
    rules: list[Any] = [("a.*", False)]
    one = znorm.ZNorm(select=rules)
    rules.append(("b.*", True))
    assert one == znorm.ZNorm(select=[("a.*", False)])
    assert hash(one) == hash(znorm.ZNorm(select=[("a.*", False)]))


def test_lazy_parameters_are_refused_by_name() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"0\.weight: not initialized yet"):
        znorm.Layout(model.named_parameters(), znorm.ZNorm(), model=model)


def test_without_a_model_normalizations_go_by_their_dims() -> None:
    layout = znorm.Layout([("norm.weight", torch.zeros(4, 2))], znorm.ZNorm())
    assert layout.entries[0].selected
