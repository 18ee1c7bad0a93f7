from __future__ import annotations

import functools
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from znorm.lab import models
from znorm.lab.errors import ConfigurationError
from znorm.lab.models.libraries import load
from znorm.lab.models.mobilenet import InvertedResidual
from znorm.lab.models.plain import PlainNet
from znorm.lab.models.resnet import Block

CLASSIFIERS = [name for name, family in models.MODELS.items() if family.output == "classes"]
SEGMENTERS = [name for name, family in models.MODELS.items() if family.output == "mask"]


# Every model with every value of each of its options, one at a time.
VARIANTS: list[Any] = []
for _name, _family in models.MODELS.items():
    VARIANTS.append(pytest.param(_name, {}, id=_name))
    for _key, _option in _family.options.items():
        for _value in _option.values[1:]:
            VARIANTS.append(pytest.param(_name, {_key: _value}, id=f"{_name}-{_value}"))


@functools.cache
def meta(name: str, channels: int, classes: int, **options: Any) -> nn.Module:
    """Shapes without numbers: counts and sizes cost nothing. Tests share the nets."""
    with torch.device("meta"):
        return models.build(name, channels=channels, classes=classes, image_size=64, **options)


def shape(net: nn.Module, *size: int) -> torch.Size:
    with torch.no_grad():
        return net(torch.empty(size, device="meta")).shape


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# He et al. give 0.27 M and 0.85 M for the CIFAR ResNets; the counts of the ImageNet nets are those
# of their published weights. plain56 is resnet56 with a bias in place of each batch norm's scale
# and shift.
COUNTS = {
    "resnet20": (10, 269_722),
    "resnet56": (10, 853_018),
    "resnet101": (1000, 44_549_160),
    "resnet152": (1000, 60_192_808),
    "densenet121": (1000, 7_978_856),
    "densenet169": (1000, 14_149_480),
    "mobilenetv2": (1000, 3_504_872),
    "plain56": (10, 853_018 - 16 * 19 - 32 * 18 - 64 * 18),
    # segmentation_models.pytorch's Unet on resnet50.
    "resnet50_unet": (1, 32_521_105),
    # Published 9,041,601; two more channels of input, and batch norms for biases.
    "unetplusplus": (1, 9_041_601 + 2 * 9 * 32 + 3_648),
    # MONAI's 7,940,321, less 3,428 biases and 4 slopes of PReLUs, plus 960 of batch norms.
    "attention_unet": (1, 7_937_849),
}


@pytest.mark.parametrize("name", models.MODELS)
def test_parameter_counts(name: str) -> None:
    classes, expected = COUNTS[name]
    assert count(meta(name, 3, classes)) == expected


@pytest.mark.parametrize("name", models.MODELS)
def test_about_tells_the_count(name: str) -> None:
    told = re.search(r"([\d.]+) M parameters", models.MODELS[name].about)
    assert told is not None
    millions = COUNTS[name][1] / 1e6
    digits = len(told[1].partition(".")[2])
    assert float(told[1]) == pytest.approx(millions, abs=0.51 * 10**-digits)


def test_encoder_is_the_published_resnet50_without_its_classifier() -> None:
    encoder = meta("resnet50_unet", 3, 1).get_submodule("encoder")
    assert count(encoder) == 23_508_032
    assert encoder.get_parameter("conv1.weight").shape == (64, 3, 7, 7)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits(name: str) -> None:
    models.check(name, channels=1, classes=2, image_size=(33, 96))
    assert shape(meta(name, 1, 2), 3, 1, 33, 96) == (3, 2)


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 1, 64), (1, 3, (96, 32))])
def test_masks(name: str, channels: int, classes: int, size: Any) -> None:
    models.check(name, channels=channels, classes=classes, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    net = meta(name, channels, classes)
    assert shape(net, 2, channels, height, width) == (2, classes, height, width)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_smallest_image_can_be_trained_on(name: str, options: dict[str, str]) -> None:
    family = models.MODELS[name]
    smallest = family.smallest
    for key, value in options.items():
        smallest = family.options[key].smallest.get(value, smallest)
    models.check(name, channels=3, classes=10, image_size=smallest, **options)
    net = meta(name, 3, 10, **options)
    assert net.training
    assert shape(net, 2, 3, smallest, smallest)[:2] == (2, 10)
    with pytest.raises(ConfigurationError, match=f"takes images of {smallest} pixels or more"):
        models.check(
            name, channels=3, classes=2, image_size=(smallest - 1, 2 * smallest), **options
        )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("densenet121", 28),
        ("resnet50_unet", 48),
        ("unetplusplus", 40),
        ("attention_unet", 40),
    ],
)
def test_what_is_refused_would_fail(name: str, size: int) -> None:
    with pytest.raises(ConfigurationError):
        models.check(name, channels=3, classes=1, image_size=size)
    with pytest.raises(RuntimeError):
        shape(meta(name, 3, 10), 2, 3, size, size)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    # Two pixels and more are left at the deepest level: a batch norm over two values gives signs.
    net = models.build(name, channels=1, classes=2, image_size=64)
    # In the layout that training uses.
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(2, 1, 64, 64).to(memory_format=torch.channels_last)
    net(images).square().mean().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_no_bias_stands_directly_ahead_of_a_normalization(
    name: str, options: dict[str, str]
) -> None:
    net = meta(name, 3, 10, **options)
    handles = []
    biased: dict[int, tuple[str, Tensor]] = {}
    found = []

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in biased:
            found.append(biased[id(inputs[0])][0])

    for key, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm):
            handles.append(module.register_forward_pre_hook(enter))
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:

            def leave(_: nn.Module, __: Any, output: Tensor, key: str = key) -> None:
                biased[id(output)] = (key, output)  # kept alive, so that its id stays its own

            handles.append(module.register_forward_hook(leave))
    shape(net, 2, 3, 64, 64)
    for handle in handles:
        handle.remove()
    assert not found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {}),
        ("densenet121", {"stem": "cifar"}),
        ("mobilenetv2", {}),
        ("plain56", {}),
        ("resnet50_unet", {}),
        ("unetplusplus", {}),
        ("attention_unet", {}),
    ],
)
def test_the_same_seed_gives_the_same_weights(name: str, options: dict[str, str]) -> None:
    nets = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        nets.append(models.build(name, channels=3, classes=2, image_size=64, **options))
    one, same, other = (net.state_dict() for net in nets)
    assert one.keys() == same.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, same[key]), key
    assert any(not torch.equal(tensor, other[key]) for key, tensor in one.items())


# The input of the first stage, and the last feature map, of 32x32 images.
@pytest.mark.parametrize(
    ("name", "first", "last", "imagenet", "cifar"),
    [
        ("resnet101", "layer1", "layer4", (8, 1), (32, 4)),
        ("densenet121", "features.denseblock1", "features.denseblock4", (8, 1), (32, 4)),
        ("mobilenetv2", "blocks.0", "head", (16, 1), (32, 4)),
    ],
)
def test_the_cifar_stem_keeps_the_resolution(
    name: str, first: str, last: str, imagenet: tuple[int, int], cifar: tuple[int, int]
) -> None:
    for stem, expected in (("imagenet", imagenet), ("cifar", cifar)):
        net = meta(name, 3, 10, stem=stem)
        seen = []
        handles = [
            net.get_submodule(first).register_forward_hook(
                lambda _, inputs, __, seen=seen: seen.append(inputs[0].shape[-1])
            ),
            net.get_submodule(last).register_forward_hook(
                lambda _, __, output, seen=seen: seen.append(output.shape[-1])
            ),
        ]
        shape(net, 2, 3, 32, 32)
        for handle in handles:
            handle.remove()
        assert tuple(seen) == expected


def test_the_cifar_stem_of_mobilenet_keeps_it_in_its_first_shrinking_stage_too() -> None:
    strides = {}
    for stem in ("imagenet", "cifar"):
        net = meta("mobilenetv2", 3, 10, stem=stem)
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        strides[stem] = [(i, m.stride[0]) for i, m in enumerate(convolutions) if m.stride[0] > 1]
    # The stem, and the first blocks of the stages of 24, 32, 64 and 160 channels.
    assert [index for index, _ in strides["imagenet"]] == [0, 4, 10, 19, 40]
    assert strides["cifar"] == strides["imagenet"][2:]


@pytest.mark.parametrize(("name", "depth"), [("resnet20", 20), ("resnet56", 56), ("plain56", 56)])
def test_depth_is_the_number_of_layers_with_weights(name: str, depth: int) -> None:
    net = models.build(name, channels=3, classes=10, image_size=32)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_a_block_that_shrinks_adds_every_other_pixel_and_zeros_for_new_channels() -> None:
    block = Block(16, 32, 2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(expected))


class TestMobileNet:
    def test_shortcuts_go_around_the_blocks_that_repeat(self) -> None:
        torch.manual_seed(0)
        net = models.build("mobilenetv2", channels=3, classes=10, image_size=32).eval()
        blocks = [m for m in net.modules() if isinstance(m, InvertedResidual)]
        assert len(blocks) == 17
        passes = []
        for block in blocks:
            last = block.layers[-1]
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.zeros_(last.weight)
            x = torch.randn(1, next(block.parameters()).shape[1], 4, 4)
            if block.layers[0][0].kernel_size == (3, 3):  # the first block does not expand
                x = torch.randn(1, 32, 4, 4)
            y = block(x)
            passes.append(torch.equal(x, y))
            assert passes[-1] or not y.any()
        # Each stage but for its first block; stages of 1, 2, 3, 4, 3, 3 and 1 blocks.
        assert [i for i, shortcut in enumerate(passes) if not shortcut] == [0, 1, 3, 6, 10, 13, 16]

    def test_drops_a_fifth_and_stops_at_six(self) -> None:
        kinds = list(meta("mobilenetv2", 3, 10).modules())
        assert [m.p for m in kinds if isinstance(m, nn.Dropout)] == [0.2]
        # The stem, the head, and two in each block but for the one that does not expand.
        assert sum(isinstance(m, nn.ReLU6) for m in kinds) == 1 + 1 + 2 * 17 - 1


class TestPlain:
    def test_has_the_convolutions_of_resnet56(self) -> None:
        shapes = []
        for name in ("plain56", "resnet56"):
            net = meta(name, 3, 10)
            shapes.append(
                [(m.weight.shape, m.stride) for m in net.modules() if isinstance(m, nn.Conv2d)]
            )
        assert shapes[0] == shapes[1]

    def test_has_no_normalization(self) -> None:
        net = meta("plain56", 3, 10)
        assert {type(m) for m in net.modules()} == {
            PlainNet,
            nn.Sequential,
            nn.Conv2d,
            nn.ReLU,
            nn.Linear,
        }

    def test_has_no_shortcut(self) -> None:
        for name, passes in (("plain56", False), ("resnet56", True)):
            torch.manual_seed(0)
            options = {"init": "he"} if name == "plain56" else {}
            net = models.build(name, channels=3, classes=10, image_size=32, **options).eval()
            middle = [m for m in net.modules() if isinstance(m, nn.Conv2d)][26]
            nn.init.zeros_(middle.weight)
            logits = net(torch.randn(2, 3, 32, 32))
            # Behind a layer of zeros, two images look the same unless a shortcut goes around it.
            assert torch.equal(logits[0], logits[1]) != passes

    @pytest.mark.parametrize(("init", "low", "high"), [("glorot", 0, 1e-6), ("he", 1e-2, 10)])
    def test_gradients_vanish(self, init: str, low: float, high: float) -> None:
        torch.manual_seed(0)
        net = models.build("plain56", channels=3, classes=10, image_size=32, init=init)
        loss = F.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8))
        loss.backward()
        norms = [
            float(m.weight.grad.norm())
            for m in net.modules()
            if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.grad is not None
        ]
        assert len(norms) == 56
        assert low < norms[0] / norms[-1] < high

    def test_gradients_of_the_net_with_shortcuts_do_not(self) -> None:
        torch.manual_seed(0)
        net = models.build("resnet56", channels=3, classes=10, image_size=32)
        F.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
        first, last = net.get_parameter("conv.weight").grad, net.get_parameter("fc.weight").grad
        assert first is not None
        assert last is not None
        assert first.norm() > 1e-2 * last.norm()


class TestSegmenters:
    def test_attention_gates_can_shut(self) -> None:
        net = models.build("attention_unet", channels=1, classes=1, image_size=32).eval()
        gates = [m for m in net.modules() if type(m).__name__ == "AttentionBlock"]
        assert len(gates) == 4
        seen: list[tuple[Tensor, Tensor]] = []
        for gate in gates:
            nn.init.constant_(gate.get_parameter("psi.1.bias"), -200.0)
            gate.register_forward_hook(
                lambda _, __, inputs, output: seen.append((inputs["x"], output)), with_kwargs=True
            )
        net(torch.randn(1, 1, 32, 32))
        assert len(seen) == 4
        for skipped, passed in seen:
            assert skipped.abs().sum() > 0
            assert passed.abs().sum() == 0

    def test_normalizes_by_batch_alone(self) -> None:
        for name in SEGMENTERS:
            kinds = {type(m) for m in meta(name, 3, 1).modules()}
            assert nn.BatchNorm2d in kinds
            assert not kinds & {nn.InstanceNorm2d, nn.PReLU, nn.GroupNorm}

    def test_unetplusplus_is_the_published_one_but_for_normalization(self) -> None:
        net = meta("unetplusplus", 1, 1)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        # A scale and a shift where the published net has a bias.
        assert count(net) - sum(m.num_features for m in norms) == 9_041_601
        # 15 nodes of two convolutions, 10 enlargements, one output.
        assert len(norms) == 30
        assert sum(isinstance(m, nn.ConvTranspose2d) for m in net.modules()) == 10

    @pytest.mark.parametrize(
        ("name", "key"),
        [
            ("unetplusplus", "net.conv_2_0.convs.conv_1.conv.weight"),
            ("resnet50_unet", "decoder.blocks.2.convs.conv_1.conv.weight"),
            ("attention_unet", "model.1.submodule.0.conv.1.conv.weight"),
        ],
    )
    def test_starts_from_the_distribution_of_he(self, name: str, key: str) -> None:
        torch.manual_seed(0)
        net = models.build(name, channels=1, classes=1, image_size=32)
        weight = net.get_parameter(key)
        expected = (2 / (weight.shape[1] * 9)) ** 0.5
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05)


def test_classifiers_start_as_published() -> None:
    torch.manual_seed(0)
    net = models.build("mobilenetv2", channels=3, classes=1000, image_size=32)
    head, fc = net.get_parameter("head.0.weight"), net.get_parameter("fc.weight")
    assert float(head.detach().std()) == pytest.approx((2 / 1280) ** 0.5, rel=0.05)
    assert float(fc.detach().std()) == pytest.approx(0.01, rel=0.05)
    net = models.build("densenet121", channels=3, classes=10, image_size=32, stem="cifar")
    stem = net.get_parameter("features.conv0.weight")
    assert stem.shape == (64, 3, 3, 3)
    assert float(stem.detach().std()) == pytest.approx((2 / 27) ** 0.5, rel=0.1)


class TestRefused:
    @pytest.mark.parametrize("function", [models.build, models.check])
    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("resnet21", {}, r"unknown model 'resnet21'; did you mean"),
            (56, {}, r"unknown model '56'"),
            ("resnet20", {"image_size": 3}, r"takes images of 4 pixels or more, found 3$"),
            ("resnet20", {"image_size": (64, 3)}, r"of 4 pixels or more, found 64x3$"),
            (
                "densenet121",
                {"image_size": 28},
                r"densenet121 with stem imagenet takes images of 29 pixels or more, found 28",
            ),
            (
                "unetplusplus",
                {"image_size": (250, 256)},
                r"multiples of 16, found 250x256; resize or pad them to 256x256",
            ),
            ("unetplusplus", {"image_size": (256, 250)}, r"16, found 256x250; .* to 256x256"),
            (
                "resnet50_unet",
                {"image_size": 48},
                r"multiples of 32, found 48x48; resize or pad them to 64x64",
            ),
            ("resnet20", {"classes": 0}, r"classes must be 1 or more, found 0"),
            ("resnet20", {"channels": "3"}, r"channels must be 1 or more, found 3"),
            ("resnet20", {"image_size": (1, 2, 3)}, r"image_size must be .* found \(1, 2, 3\)"),
            ("resnet20", {"image_size": 0}, r"image_size must be .* found 0"),
            ("resnet20", {"image_size": 32.0}, r"image_size must be .* found 32.0"),
            ("resnet20", {"stem": "cifar"}, r"model resnet20 takes no options, found 'stem'"),
            (
                "resnet101",
                {"stm": "cifar"},
                r"unknown option of model resnet101 'stm'; did you mean stem",
            ),
            (
                "resnet101",
                {"stem": "cifra"},
                r"unknown stem of model resnet101 'cifra'; did you mean cifar",
            ),
            ("plain56", {"init": 1}, r"unknown init of model plain56 '1'; valid: glorot, he"),
        ],
    )
    def test_is_named(
        self, function: Any, name: Any, changes: dict[str, Any], message: str
    ) -> None:
        arguments = {"channels": 3, "classes": 2, "image_size": 32, **changes}
        with pytest.raises(ConfigurationError, match=message) as caught:
            function(name, **arguments)
        assert "\n" not in str(caught.value)

    def test_is_refused_without_importing_anything(self) -> None:
        code = """
import sys
from znorm.lab import models
for name in models.MODELS:
    models.check(name, channels=3, classes=2, image_size=64)
print(*(name for name in sys.modules if name.partition(".")[0] in ("monai", "torchvision")))
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        )
        assert done.stdout.strip() == ""

    def test_a_library_that_is_missing(self) -> None:
        version = torch.__version__.partition("+")[0]
        with pytest.raises(
            ConfigurationError,
            match=rf"model resnet101 needs nolib, which is not installed; pip install nolib "
            rf"torch=={re.escape(version)} \(without the pin",
        ):
            load("nolib_of_this_name.nets", model="resnet101", install="nolib")

    def test_a_library_that_cannot_be_imported(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = {
            "znorm_broken_one": "raise RuntimeError('operator x::nms does not exist\\nmore')",
            "znorm_broken_two": "import a_module_that_is_not_there",
        }
        monkeypatch.syspath_prepend(tmp_path)
        for name, text in broken.items():
            (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(
            ConfigurationError,
            match=r"cannot be imported here: RuntimeError: operator x::nms does not exist$",
        ):
            load("znorm_broken_one", model="timm:x", install="timm")
        with pytest.raises(ConfigurationError, match=r"imported here: ModuleNotFoundError: No mod"):
            load("znorm_broken_two", model="timm:x", install="timm")


def test_options_are_filled_in() -> None:
    assert models.options_of("resnet20", {}) == {}
    assert models.options_of("resnet152", {}) == {"stem": "imagenet"}
    assert models.options_of("resnet152", {"stem": None}) == {"stem": "imagenet"}
    assert models.options_of("mobilenetv2", {"stem": "cifar"}) == {"stem": "cifar"}
    assert models.options_of("plain56", {}) == {"init": "glorot"}


def test_output_is_told_by_name() -> None:
    assert SEGMENTERS == ["resnet50_unet", "unetplusplus", "attention_unet"]
    assert models.output_of("resnet20") == "classes"
    assert models.output_of("unetplusplus") == "mask"
    with pytest.raises(ConfigurationError, match="unknown model 'unet'"):
        models.output_of("unet")
