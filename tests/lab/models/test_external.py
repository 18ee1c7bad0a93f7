from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from znorm.lab import models
from znorm.lab.errors import ConfigurationError


class Net(nn.Module):
    """A small net that says what it was called with."""

    def __init__(self, channels: int, outputs: int, mask: bool = False, **given: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout()
        self.mask = mask
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.bn(self.conv(x)))
        return y if self.mask else y.mean((2, 3))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """As https://huggingface.co/docs/timm/reference/models has it."""
    module = types.ModuleType("timm")
    names = ["resnet18", "resnet34", "vit_tiny_patch16_224"]

    def create_model(
        model_name: str, pretrained: bool = False, *, num_classes: int, in_chans: int, **given: Any
    ) -> nn.Module:
        if "unheard_of" in given:
            raise TypeError("ResNet.__init__() got an unexpected keyword argument 'unheard_of'")
        return Net(in_chans, num_classes, name=model_name, pretrained=pretrained, **given)

    module.__dict__.update(
        list_models=lambda: names,
        is_model=lambda name: name.partition(".")[0] in names,
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """As https://pytorch.org/vision/stable/models.html has it."""
    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")

    def list_models(module: Any = None) -> list[str]:
        classifiers = ["googlenet", "resnet18", "vit_b_16"]
        return classifiers if module is not None else [*classifiers, "fcn_resnet50"]

    def get_model(name: str, *, weights: Any, num_classes: int, **given: Any) -> nn.Module:
        net = Net(3, num_classes, name=name, weights=weights, **given)
        if name == "googlenet":
            net.aux_logits = given.get("aux_logits", True)  # type: ignore[assignment]
        return net

    module.__dict__.update(list_models=list_models, get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", module)
    return module


@pytest.fixture
def smp(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """As https://smp.readthedocs.io has it."""
    module = types.ModuleType("segmentation_models_pytorch")

    class Unet(nn.Module):
        pass

    class FPN(nn.Module):
        pass

    def create_model(
        arch: str,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        in_channels: int = 3,
        classes: int = 1,
        **given: Any,
    ) -> nn.Module:
        return Net(
            in_channels,
            classes,
            mask=True,
            arch=arch,
            encoder=encoder_name,
            weights=encoder_weights,
            **given,
        )

    encoders = types.SimpleNamespace(get_encoder_names=lambda: ["resnet18", "resnet34"])
    module.__dict__.update(Unet=Unet, FPN=FPN, create_model=create_model, encoders=encoders)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", module)
    return module


def given(name: str, *, channels: int = 3, size: Any = 32, **options: Any) -> dict[str, Any]:
    net = models.build(name, channels=channels, classes=4, image_size=size, **options)
    assert isinstance(net, Net)
    return net.given


def refused(message: str, name: str, *, early: bool = True, **changes: Any) -> None:
    """By build and, where it can be known early, by check, in one line."""
    arguments = {"channels": 3, "classes": 4, "image_size": 32, **changes}
    with pytest.raises(ConfigurationError, match=message) as caught:
        models.build(name, **arguments)
    assert "\n" not in str(caught.value)
    if early:
        with pytest.raises(ConfigurationError, match=message):
            models.check(name, **arguments)
    else:
        models.check(name, **arguments)


@pytest.mark.usefixtures("timm")
class TestTimm:
    def test_is_called_as_documented(self) -> None:
        assert given("timm:resnet18") == {"name": "resnet18", "pretrained": False}
        assert given("timm:resnet18.a1_in1k", channels=5, pretrained=True, drop_rate=0.1) == {
            "name": "resnet18.a1_in1k",
            "pretrained": True,
            "drop_rate": 0.1,
        }

    def test_options(self) -> None:
        assert models.options_of("timm:resnet18", {}) == {"pretrained": False}
        assert models.output_of("timm:resnet18") == "classes"
        refused("pretrained must be true or false, found 'yes'", "timm:resnet18", pretrained="yes")
        refused("takes no option 'num_classes': the lab sets it", "timm:resnet18", num_classes=2)
        with pytest.raises(ConfigurationError, match="takes no option 'channels': the lab sets it"):
            models.options_of("timm:resnet18", {"channels": 2})

    def test_unknown_names(self) -> None:
        refused("unknown timm model 'resnet81'; did you mean resnet18", "timm:resnet81")

    def test_what_the_library_refuses(self) -> None:
        refused(
            r"timm:resnet18 cannot be built: TypeError: ResNet.__init__\(\) got an unexpected",
            "timm:resnet18",
            early=False,
            unheard_of=1,
        )


@pytest.mark.usefixtures("torchvision")
class TestTorchvision:
    def test_is_called_as_documented(self) -> None:
        assert given("torchvision:resnet18") == {"name": "resnet18", "weights": None}
        assert given("torchvision:vit_b_16", size=64)["image_size"] == 64
        assert models.output_of("torchvision:resnet18") == "classes"

    def test_takes_three_channels(self) -> None:
        refused("takes images of 3 channels, found 1", "torchvision:resnet18", channels=1)

    def test_takes_square_images_for_transformers(self) -> None:
        refused("takes square images, found 32x64", "torchvision:vit_b_16", image_size=(32, 64))

    def test_unknown_names(self) -> None:
        refused("unknown torchvision classifier 'resnet19'; did you", "torchvision:resnet19")
        refused("unknown torchvision classifier 'fcn_resnet50'", "torchvision:fcn_resnet50")

    def test_is_never_pretrained(self) -> None:
        refused("'weights': weights are not pretrained", "torchvision:resnet18", weights="DEFAULT")
        refused("'pretrained': weights are not", "torchvision:resnet18", pretrained=True)

    def test_a_net_of_several_outputs_in_training(self) -> None:
        refused("set its option aux_logits to false", "torchvision:googlenet", early=False)
        assert given("torchvision:googlenet", aux_logits=False)["aux_logits"] is False


def test_a_library_of_classifiers_gives_no_masks(
    timm: types.ModuleType, smp: types.ModuleType
) -> None:
    for module, mask, name, message in (
        (timm, True, "timm:resnet18", r"gives shape \(2, 4, 32, 32\) .* expected \(2, 4\)$"),
        (smp, False, "smp:FPN/resnet18", r"gives shape \(2, 4\) .* expected \(2, 4, 32, 32\)$"),
    ):
        module.__dict__["create_model"] = lambda *_, mask=mask, **__: Net(3, 4, mask=mask)
        refused(message, name, early=False)


@pytest.mark.usefixtures("smp")
class TestSmp:
    def test_is_called_as_documented(self) -> None:
        expected = {"arch": "Unet", "encoder": "resnet18", "weights": None}
        assert given("smp:Unet/resnet18", channels=1, size=(32, 64)) == expected
        assert given("smp:unet/resnet18")["arch"] == "unet"
        assert given("smp:FPN/resnet34", pretrained=True)["weights"] == "imagenet"
        assert given("smp:FPN/tu-any_of_timm")["encoder"] == "tu-any_of_timm"
        assert given("smp:FPN/resnet34", dropout=0.5)["dropout"] == 0.5

    def test_options(self) -> None:
        assert models.options_of("smp:Unet/resnet18", {}) == {"pretrained": False}
        assert models.output_of("smp:Unet/resnet18") == "mask"
        refused("takes no option 'encoder_weights'", "smp:Unet/resnet18", encoder_weights="x")

    def test_unknown_names(self) -> None:
        refused("unknown smp architecture 'Unett'; did you mean Unet", "smp:Unett/resnet18")
        refused("unknown smp encoder 'resnet81'; did you mean resnet18", "smp:Unet/resnet81")
        for name in ("smp:Unet", "smp:/resnet18", "smp:Unet/"):
            refused("is not of the form smp:ARCH/ENCODER", name)


MODULE = """
import torch
from torch import nn

CONSTANT = 3


class Net(nn.Module):
    def __init__(self, channels, outputs, mask):
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)
        self.frozen = nn.BatchNorm2d(outputs).eval()
        self.mask = mask

    def forward(self, x):
        torch.rand(3)
        y = self.frozen(self.bn(self.conv(x)))
        return y if self.mask else y.mean((2, 3))


def build(channels, classes, image_size, mask=False):
    net = Net(channels, classes, mask)
    net.image_size = image_size
    return net


def not_a_net(**given):
    return given


def two_outputs(channels, classes, image_size):
    class Two(Net):
        def forward(self, x):
            return {"out": super().forward(x)}

    return Two(channels, classes, False)


def other_shape(channels, classes, image_size):
    return Net(channels, 1000, False)


def fails(channels, classes, image_size):
    return nn.Linear(7, classes)


def raises(channels, classes, image_size):
    raise ValueError("no\\nsuch net")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder that is not on Python's path; its name."""
    name = f"znorm_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    importlib.invalidate_caches()
    return name


class TestFunction:
    def test_is_called_with_what_the_data_has(self, mine: str) -> None:
        net = models.build(f"{mine}:build", channels=2, classes=5, image_size=16)
        assert net(torch.zeros(1, 2, 16, 16)).shape == (1, 5)
        assert net.image_size == 16
        net = models.build(f"{mine}:build", channels=2, classes=5, image_size=(16, 8), mask=True)
        assert net(torch.zeros(1, 2, 16, 8)).shape == (1, 5, 16, 8)
        assert net.image_size == (16, 8)
        assert (
            models.build(f"{mine}:build", channels=1, classes=1, image_size=(8, 8)).image_size == 8
        )

    def test_the_trial_leaves_no_trace(self, mine: str) -> None:
        models.check(f"{mine}:build", channels=2, classes=5, image_size=16)
        torch.manual_seed(3)
        net = models.build(f"{mine}:build", channels=2, classes=5, image_size=16)
        after = torch.rand(1)
        torch.manual_seed(3)
        same = sys.modules[mine].build(2, 5, 16)
        assert torch.equal(after, torch.rand(1))
        for key, tensor in same.state_dict().items():
            assert torch.equal(tensor, net.state_dict()[key]), key
        assert net.training
        assert net.bn.training
        assert not net.frozen.training
        assert all(p.grad is None for p in net.parameters())

    def test_options(self, mine: str) -> None:
        assert models.options_of(f"{mine}:build", {"mask": True}) == {"mask": True}
        assert models.output_of(f"{mine}:build") is None
        for key in ("name", "channels", "classes", "image_size"):
            with pytest.raises(ConfigurationError, match=f"takes no option {key!r}"):
                models.options_of(f"{mine}:build", {key: 1})

    def test_what_is_not_there(self, mine: str) -> None:
        refused(f"unknown function of {mine} 'biuld'; did you mean build", f"{mine}:biuld")
        refused("CONSTANT is a int, expected a function", f"{mine}:CONSTANT")
        refused(
            "no module 'no_such_module' on Python's path or in .*valid forms: timm:NAME",
            "no_such_module:f",
        )
        refused("no module 'no_such_package' on", "no_such_package.models:f")
        refused("no module 'torch.no_such' on", "torch.no_such:f")
        refused("unknown model 'timm:'; valid forms: timm:NAME, torchvision:NAME", "timm:")
        refused("unknown model ':f'; valid forms", ":f")

    def test_a_module_that_cannot_be_imported(self, mine: str, tmp_path: Path) -> None:
        for name, text, message in (
            ("one", "import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
            ("two", "1 / 0", "ZeroDivisionError: division by zero"),
            ("three", "def f(:", "SyntaxError: "),
        ):
            (tmp_path / f"{mine}_{name}.py").write_text(text)
            importlib.invalidate_caches()
            refused(f"{mine}_{name} cannot be imported: {message}", f"{mine}_{name}:f")

    def test_what_is_not_a_model_of_such_data(self, mine: str) -> None:
        for function, message in (
            ("not_a_net", "gave a dict, expected a torch.nn.Module"),
            ("two_outputs", r"gives a dict for a batch of shape \(2, 3, 32, 32\), expected a ten"),
            (
                "other_shape",
                r"gives shape \(2, 1000\) for a batch of shape \(2, 3, 32, 32\), "
                r"expected \(2, 4\) or \(2, 4, 32, 32\)$",
            ),
            ("fails", r"fails on a batch of shape \(2, 3, 32, 32\): RuntimeError: mat1 and mat2"),
            ("raises", "cannot be built: ValueError: no$"),
        ):
            refused(message, f"{mine}:{function}", early=False)
        refused("build cannot be built: TypeError", f"{mine}:build", early=False, widht=3)

    def test_what_no_model_takes(self, mine: str) -> None:
        refused("image_size must be", f"{mine}:build", image_size=0)
        refused("classes must be 1 or more, found 0", f"{mine}:build", classes=0)


def real(name: str) -> Any:
    """The library itself, or a skip that says why."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        return pytest.skip(f"{name} cannot be imported: {type(error).__name__}: {error}")


def test_timm_itself() -> None:
    real("timm")
    net = models.build("timm:resnet18", channels=1, classes=4, image_size=32)
    assert net.get_parameter("fc.weight").shape == (4, 512)


def test_torchvision_itself() -> None:
    real("torchvision.models")
    net = models.build("torchvision:resnet18", channels=3, classes=10, image_size=32)
    assert sum(p.numel() for p in net.parameters()) == 11_181_642
    ours = models.build("mobilenetv2", channels=3, classes=10, image_size=32)
    theirs = models.build("torchvision:mobilenet_v2", channels=3, classes=10, image_size=32)
    shapes = [[p.shape for p in net.parameters()] for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_smp_itself() -> None:
    real("segmentation_models_pytorch")
    theirs = models.build("smp:Unet/resnet50", channels=3, classes=1, image_size=32)
    ours = models.build("resnet50_unet", channels=3, classes=1, image_size=32)
    counts = [sum(p.numel() for p in net.parameters()) for net in (ours, theirs)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "timm:resnet18"),
        ("torchvision.models", "torchvision:resnet18"),
        ("segmentation_models_pytorch", "smp:Unet/resnet18"),
    ],
)
def test_a_library_that_is_not_there_is_said(library: str, name: str) -> None:
    try:
        importlib.import_module(library)
    except Exception:
        refused("which is not installed; pip install|cannot be imported here: ", name)
    else:
        pytest.skip(f"{library} can be imported")
