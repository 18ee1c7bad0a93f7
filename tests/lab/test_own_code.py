"""A loss and metrics of the user's own, by import path."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from znorm import lab
from znorm.lab import tasks
from znorm.lab.cli import run as call
from znorm.lab.own_code import loss_at
from znorm.lab.runs.inference import outputs
from znorm.lab.training.step import forward_loss
from znorm.lab.trust import trusting

CHOICES: dict[str, Any] = {
    "epochs": 1,
    "data.limit": 16,
    "device": "cpu",
    "precision": "float32",
}

CODE = '''
import torch
from pathlib import Path
Path("mark").write_text("imported")

def plain(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets)

class Smooth(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 1.0]))
    def forward(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, self.weight)

def factory():
    return Smooth()

def confidence(probabilities, targets):
    """Mean probability of the true class.

    More than this line is not shown.
    """
    return probabilities[torch.arange(len(targets)), targets].mean()

def overlap(probabilities, masks):
    return float(((probabilities > 0.5) == (masks > 0)).double().mean())

def nothing(outputs): return outputs.mean()
def vector(outputs, targets): return outputs.mean(1)
def number(outputs, targets): return 1.0
def not_a_number(outputs, targets): return outputs.sum() * float("nan")
def nan(outputs, targets): return float("nan")
def text(outputs, targets): return "good"
def cut(outputs, targets): return outputs.detach().mean()
def broken(outputs, targets): raise RuntimeError("broken inside")
class Trained(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
    def forward(self, outputs, targets): return outputs.mean() * self.scale
constant = 3
def segmenter(channels, classes, image_size):
    return torch.nn.Conv2d(channels, classes, 3, padding=1)
f1 = overlap
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of the user's own in it."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "faulty.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def losses(run: lab.Run) -> list[float]:
    return [entry["train_loss"] for entry in run.history]


def test_a_loss_by_path_trains_as_the_same_one_by_name(here: Path) -> None:
    named = lab.run(CHOICES, out="named")
    own = lab.run({**CHOICES, "loss": "mine:plain"}, out="own")
    assert own.spec.hash != named.spec.hash
    assert losses(own) == losses(named)


@pytest.mark.parametrize("place", ["mine:plain", "mine:Smooth", "mine:factory"])
def test_a_loss_is_a_function_a_module_or_what_makes_one(here: Path, place: str) -> None:
    outputs, targets = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1])
    by_hand = [-math.log(math.exp(2) / (math.exp(2) + math.exp(-1)))]
    by_hand.append(-math.log(1 / (math.exp(0.5) + 1)))
    found = loss_at(place, "cpu")(outputs, targets)
    assert float(found) == pytest.approx(sum(by_hand) / 2, rel=1e-6)


def test_a_metric_is_a_column_with_its_definition(here: Path) -> None:
    arguments = ["--methods", "baseline", "--seeds", "1", "--epochs", "2", "--limit", "16"]
    chosen = ["--set", "metrics=mine:confidence", "--set", "loss=mine:plain", "--device", "cpu"]
    assert call(["compare", *arguments, *chosen, "--out", "runs"]) == 0
    (run,) = [lab.Run.open(path.parent) for path in Path("runs").rglob("events.jsonl")]
    assert all(0 < entry["validation_confidence"] < 1 for entry in run.history)
    assert run.metrics["test_confidence"] == run.history[-1]["test_confidence"]
    # The same number from the outputs of the finished net.
    test = tasks.load(run.spec.task, run.spec.data).test
    with trusting(everything=True):
        shown = outputs(run, test).softmax(1)
    by_hand = sum(float(shown[row, label]) for row, label in enumerate(test.targets)) / len(test)
    assert run.metrics["test_confidence"] == pytest.approx(by_hand, rel=1e-6)
    (here / "mark").unlink()
    sys.modules.pop("mine", None)
    assert call(["report", "runs"]) == 0
    page = (here / "runs" / "report.html").read_text()
    assert "Mean probability of the true class. (mine:confidence)" in page
    assert "More than this line" not in page
    assert "mine:plain loss" in page
    assert f"{run.metrics['test_confidence']:.4f}" in page
    assert not (here / "mark").exists()  # a page imports no code


def test_a_metric_of_masks_gets_probabilities_of_each_pixel(here: Path) -> None:
    choices = {**CHOICES, "task": "phantom", "model": "mine:segmenter", "data.limit": 4}
    run = lab.run({**choices, "metrics": ["mine:overlap"]}, out="runs")
    cases = run.cases()
    assert cases is not None
    right = cases.counts.tp + cases.counts.tn
    pixels = right + cases.counts.fp + cases.counts.fn
    assert run.metrics["test_overlap"] == pytest.approx(float(right.sum() / pixels.sum()))


@pytest.mark.parametrize(
    ("key", "place", "said"),
    [
        ("loss", "absent:loss", "cannot be imported"),
        ("loss", "faulty:loss", "No module named 'nowhere_to_be_found'"),
        ("loss", "mine:plane", "did you mean plain"),
        ("loss", "mine:constant", "expected a function (outputs, targets)"),
        ("loss", "mine:nothing", "is called with (outputs, targets), and takes (outputs)"),
        ("loss", "mine:vector", "expected one number as a tensor without dims, found shape (16,)"),
        ("loss", "mine:number", "expected one number as a tensor without dims, found float"),
        ("loss", "mine:not_a_number", "gives nan for ordinary outputs"),
        ("loss", "mine:cut", "no gradient follows from it"),
        ("loss", "mine:broken", "RuntimeError: broken inside"),
        ("loss", "mine:Trained", "has parameters, which nothing trains"),
        ("metrics", "absent:score", "cannot be imported"),
        ("metrics", "mine:plane", "did you mean plain"),
        ("metrics", "mine:nothing", "is called with (probabilities, targets)"),
        ("metrics", "mine:vector", "expected one number, found shape (16,)"),
        ("metrics", "mine:text", "expected one number, found str"),
        ("metrics", "mine:nan", "gives nan or inf for ordinary outputs"),
        ("metrics", "mine:broken", "RuntimeError: broken inside"),
        ("metrics", "mine:constant", "expected a function (probabilities, targets)"),
        ("metrics", "mine:f1", "there is another score of the name f1"),
        ("metrics", "mine:overlap,mine:overlap", "another score of the name overlap"),
        ("metrics", "accuracy", "expected package.module:function"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_is_trained(
    here: Path, key: str, place: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--methods", "baseline", "--limit", "16", "--device", "cpu"]
    assert call(["compare", *arguments, "--set", f"{key}={place}", "--out", "runs"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (here / "runs").exists()


@pytest.mark.parametrize("key", ["loss", "metrics"])
def test_code_that_a_specification_from_elsewhere_names_is_not_imported(
    here: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = {"task": "pcam_mini", "epochs": 1, "data.limit": 16, key: "mine:plain"}
    Path("sent.json").write_text(json.dumps(sent))
    assert call(["run", "sent.json"]) == 2
    assert "mine:plain: code that the specification names" in capsys.readouterr().err
    assert not (here / "mark").exists()


def test_a_loss_of_ones_own_gets_float32_under_autocast(here: Path) -> None:
    choices = {"loss": "mine:plain", "precision": "bfloat16", "device": "cpu"}
    spec = lab.resolve(choices)
    net = torch.nn.Linear(4, 2)
    loss = forward_loss(spec, net, torch.ones(2, 4), torch.tensor([0, 1]))
    assert loss.dtype == torch.float32


def test_specifications_without_them_keep_their_hash() -> None:
    spec = lab.resolve({"device": "cpu", "precision": "float32"})
    assert "metrics" not in spec.canonical()
    assert lab.resolve({"device": "cpu", "precision": "float32", "metrics": ""}) == spec
