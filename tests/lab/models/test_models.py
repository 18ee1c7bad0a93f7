from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from znorm.lab import models
from znorm.lab.errors import ConfigurationError
from znorm.lab.models.resnet import Block


# The published counts: He et al. give 0.27 M and 0.85 M.
@pytest.mark.parametrize(("name", "count"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_parameter_counts(name: str, count: int) -> None:
    net = models.build(name, channels=3, classes=10, image_size=32)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("size", [32, 33, 8])
def test_logits(name: str, size: int) -> None:
    net = models.build(name, channels=1, classes=4, image_size=size)
    assert net(torch.randn(2, 1, size, size)).shape == (2, 4)


@pytest.mark.parametrize(("name", "depth"), [("resnet20", 20), ("resnet56", 56)])
def test_depth_is_the_number_of_layers_with_weights(name: str, depth: int) -> None:
    net = models.build(name, channels=3, classes=10, image_size=32)
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == depth


def test_a_block_that_shrinks_adds_every_other_pixel_and_zeros_for_new_channels() -> None:
    block = Block(16, 32, 2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(expected))


def test_the_same_seed_gives_the_same_weights() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(7)
        nets.append(models.build("resnet20", channels=3, classes=2, image_size=32))
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ConfigurationError, match="unknown model 'resnet21'; did you mean"):
        models.build("resnet21", channels=3, classes=2, image_size=32)
    with pytest.raises(ConfigurationError, match="takes images of 4 pixels or more, found 3"):
        models.build("resnet20", channels=3, classes=2, image_size=3)
    with pytest.raises(ConfigurationError, match="classes must be 1 or more, found 0"):
        models.build("resnet20", channels=3, classes=0, image_size=32)
