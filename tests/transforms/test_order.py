"""The order of a chain: which links are void, told by running the chain with and without them."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import znorm
from znorm.engine.execute import transform_

LINKS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "znorm_channel": znorm.ZNorm(granularity="channel"),
    "center_only": znorm.ZNorm(scale=False),
    "scale_only": znorm.ZNorm(center=False),
    "centralize": znorm.Centralize(),
    "unit_norm": znorm.UnitNorm(),
    "clip_norm": znorm.ClipNorm(0.5),
    "clip_norm_tighter": znorm.ClipNorm(0.3),
    "clip_global_norm": znorm.ClipGlobalNorm(0.7),
    "adaptive_clip": znorm.AdaptiveClip(0.05),
    "clip_value": znorm.ClipValue(0.02),
    "clip_value_tighter": znorm.ClipValue(0.01),
}


CLIPS = ("clip_norm", "clip_norm_tighter", "clip_global_norm", "adaptive_clip")
SCALES = (*CLIPS, "scale_only", "unit_norm", "clip_value", "clip_value_tighter")


def messages(*names: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        znorm.chain(*(LINKS[name] for name in names))
    return [str(warning.message) for warning in caught]


def result(names: tuple[str, ...]) -> Tensor:
    """The chain on gradients of which each clip cuts something off."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (1.0, 20.0):
        weights = [torch.randn(6, 5, generator=generator, dtype=torch.float64)]
        spread = torch.linspace(1, 3, 6, dtype=torch.float64)[:, None]
        raw = torch.randn(6, 5, generator=generator, dtype=torch.float64) * spread
        gradients = [size * (raw + 0.5 * spread)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chain = znorm.chain(*(LINKS[name] for name in names))
        transform_(gradients, znorm.Layout(weights, chain), parameters=weights)
        found += gradients
    return torch.stack(found)


@pytest.mark.parametrize("names", list(itertools.permutations(LINKS, 2)), ids=" ".join)
def test_of_two_links_one_is_void_exactly_where_the_warning_says_so(
    names: tuple[str, str],
) -> None:
    both = result(names)
    idle = [
        torch.allclose(both, result((name,)), rtol=1e-7, atol=1e-9) for name in reversed(names)
    ]  # without the first, without the second
    told = messages(*names)
    if names[1] in CLIPS and names[0] in SCALES:
        kinds = [type(LINKS[name]) for name in names]
        if kinds[0] is not kinds[1]:
            # Whether the second acts at all, or always, is a matter of its threshold.
            assert told == []
            return
    assert len(told) == int(any(idle)), (names, idle, told)
    if told:
        void = [repr(LINKS[name]) for name, without in zip(names, idle, strict=True) if without]
        assert any(told[0].startswith(f"chain: {name} has no effect") for name in void)


def test_a_clip_between_reads_the_scale_and_a_centering_passes_it_on() -> None:
    assert messages("clip_norm", "clip_value", "znorm") == []
    assert messages("clip_norm", "adaptive_clip", "unit_norm") == []
    assert len(messages("clip_norm", "centralize", "znorm")) == 1
    # Scaled by channel, a tensor's mean is another one.
    told = messages("adaptive_clip", "center_only", "znorm_channel")
    assert not any("AdaptiveClip" in message for message in told)


def test_a_warning_names_both_links_and_what_to_do() -> None:
    (message,) = messages("clip_norm", "znorm")
    assert message == (
        "chain: ClipNorm(threshold=0.5, select='all') has no effect on the tensors that "
        f"{znorm.ZNorm()!r} acts on, which sets their scale anew; put it last, or leave it out"
    )


def test_of_two_clips_the_looser_is_void_whatever_the_order() -> None:
    for names in (("clip_norm", "clip_norm_tighter"), ("clip_norm_tighter", "clip_norm")):
        (message,) = messages(*names)
        assert message.startswith("chain: ClipNorm(threshold=0.5")


def test_two_clips_on_either_side_of_a_centering_are_two() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        znorm.chain(znorm.ClipNorm(2.0), znorm.Centralize(), znorm.ClipNorm(1.0))


def test_links_that_may_act_on_different_tensors_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        znorm.chain(
            znorm.ZNorm(select=[("conv.*", True), ("*", False)]),
            znorm.ZNorm(granularity="channel", select=[("head.*", True), ("*", False)]),
        )
        znorm.chain(znorm.ClipNorm(1.0, select=[("*.bias", True), ("*", False)]), znorm.ZNorm())
    rules = [("conv.*", True), ("*", False)]
    with pytest.warns(UserWarning, match="no effect"):
        znorm.chain(znorm.ClipNorm(1.0, select=rules), znorm.ZNorm(select=rules))


def test_an_epsilon_that_counts_keeps_the_scale_alive() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        znorm.chain(znorm.ClipNorm(1e-3), znorm.ZNorm(eps=0.1))
