"""A finished run as an ONNX file, which another library runs to the same numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.kit import PLAIN
from znorm import lab
from znorm.lab import tasks
from znorm.lab.cli import run as call
from znorm.lab.runs.inference import outputs
from znorm.lab.trust import trusting

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow  # the exporter takes seconds for the smallest net

NETS = """
import torch

def classifier(channels, classes, image_size):
    layers = torch.nn.Conv2d(channels, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    end = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, classes)
    return torch.nn.Sequential(*layers, *end)

def segmenter(channels, classes, image_size):
    return torch.nn.Conv2d(channels, classes, 3, padding=1)

class Odd(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.linear = torch.nn.Linear(channels, classes)
    def forward(self, images):
        means = images.mean((2, 3))
        return self.linear(means) * float(means.sum() > 1e9 or 1)

def odd(channels, classes, image_size):
    return Odd(channels, classes)
"""
CHOICES: dict[str, Any] = {**PLAIN, "epochs": 1, "data.limit": 16}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "onnx_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx_nets", raising=False)
    return tmp_path


def run_by_onnx(path: Path, images: Any) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, made.name) == ("images", "probabilities")
    return session.run(None, {"images": images})[0], session.get_modelmeta().custom_metadata_map


def test_a_classifier_gives_the_nets_own_probabilities(here: Path) -> None:
    run = lab.run({**CHOICES, "model": "onnx_nets:classifier"}, out="runs")
    assert call(["export", str(run.folder), "--trust-models"]) == 0
    test = tasks.load(run.spec.task, run.spec.data).test
    with trusting(everything=True):
        expected = outputs(run, test).softmax(1).numpy()
    found, metadata = run_by_onnx(run.folder / "model.onnx", test.images.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # Any number of pictures at once.
    one, _ = run_by_onnx(run.folder / "model.onnx", test.images[:1].numpy())
    np.testing.assert_allclose(one, expected[:1], rtol=1e-4, atol=1e-6)
    assert json.loads(metadata["znorm.classes"]) == ["no tumour", "tumour"]
    assert json.loads(metadata["znorm.size"]) == [32, 32]
    assert metadata["znorm.spec_hash"] == run.spec.hash
    assert metadata["znorm.output"] == "classes"
    again = lab.export_onnx(run, "float.onnx", float_input=True, trust_models=True)
    found, _ = run_by_onnx(again, test.images.numpy().astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_segmenter_gives_the_probability_of_each_pixel(here: Path) -> None:
    choices = {**CHOICES, "task": "phantom", "model": "onnx_nets:segmenter", "data.limit": 4}
    run = lab.run(choices, out="runs")
    path = lab.export_onnx(run, trust_models=True)
    test = tasks.load(run.spec.task, run.spec.data).test
    found, metadata = run_by_onnx(path, test.images.numpy())
    assert found.shape == (4, 64, 64)
    cases = run.cases()
    assert cases is not None
    marked = torch.from_numpy(found) > 0.5
    assert torch.equal(marked.flatten(1).sum(1), cases.counts.tp + cases.counts.fp)
    assert metadata["znorm.output"] == "mask"


@pytest.mark.parametrize(
    "model", ["resnet20", "mobilenetv2", "densenet121", "resnet50_unet", "unetplusplus"]
)
def test_models_of_the_lab_can_be_exported(model: str, tmp_path: Path) -> None:
    task = "phantom" if lab.models.output_of(model) == "mask" else "pcam_mini"
    run = lab.run({**CHOICES, "task": task, "model": model, "data.limit": 4}, out=tmp_path)
    path = lab.export_onnx(run, tmp_path / "model.onnx")
    test = tasks.load(run.spec.task, run.spec.data).test
    expected = outputs(run, test)
    expected = expected.softmax(1) if task == "pcam_mini" else expected.sigmoid()[:, 0]
    found, _ = run_by_onnx(path, test.images.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_exported_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lab.run({**CHOICES, "model": "onnx_nets:odd"}, out="runs")
    spec = lab.resolve({**CHOICES, "seed": 9})
    waiting = lab.Run.at("runs", spec)
    waiting.announce()
    folder = str(run.folder)
    cases = [
        ([folder, "--trust-models"], 2, "model onnx_nets:odd cannot be exported to ONNX"),
        ([folder], 2, "onnx_nets:odd: code that the specification names"),
        ([folder, "--trust-models", "--out", "model.pt"], 2, "ending in .onnx"),
        (["runs"], 3, "not the folder of one run"),
        ([str(waiting.folder)], 2, "need a finished run"),
    ]
    for arguments, code, said in cases:
        capsys.readouterr()
        assert call(["export", *arguments]) == code, arguments
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert call(["export", folder]) == 2
    assert "pip install 'znorm[onnx]'" in capsys.readouterr().err
    assert not (run.folder / "model.onnx").exists()
