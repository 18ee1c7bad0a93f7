"""Runs that start from weights in a file."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.kit import PLAIN
from znorm import lab
from znorm.lab import models
from znorm.lab.cli import run as call
from znorm.lab.models.start import digest_of, start_from
from znorm.lab.training.checkpoint import hash_state

CHOICES: dict[str, Any] = {**PLAIN, "epochs": 1, "data.limit": 16}


def net(classes: int = 2, name: str = "resnet20") -> torch.nn.Module:
    torch.manual_seed(7)
    return models.build(name, channels=3, classes=classes, image_size=32)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(net().state_dict(), path)
    return path


def initial(run: lab.Run) -> str:
    assert run.result is not None
    return str(run.result["hashes"]["initial_weights"])


@pytest.mark.slow
def test_every_method_and_seed_starts_from_them(weights: Path, tmp_path: Path) -> None:
    arguments = ["--methods", "baseline,znorm", "--seeds", "2", "--epochs", "1", "--limit", "16"]
    more = ["--device", "cpu", "--set", "precision=float32", "--start", str(weights)]
    assert call(["compare", *arguments, *more, "--out", str(tmp_path / "runs")]) == 0
    folders = [path.parent for path in (tmp_path / "runs").rglob("spec.json")]
    runs = [lab.Run.open(folder) for folder in folders]
    assert len(runs) == 4
    assert {initial(run) for run in runs} == {hash_state(net().state_dict())}
    page = (tmp_path / "runs" / "report.html").read_text()
    digest = hash_state(dict(sorted(net().state_dict().items())))
    assert f"every method and seed from the same weights (sha256 {digest[:12]})" in page
    assert str(weights) not in page
    lab.export_numbers(tmp_path / "runs", tmp_path / "numbers.zip")
    assert lab.verify(tmp_path / "numbers.zip", tmp_path / "runs" / "report.html")


def test_another_file_is_another_run_and_another_name_or_form_is_not(
    weights: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    state = net().state_dict()
    same = [tmp_path / "same.safetensors", tmp_path / "wrapped.pt", tmp_path / "parallel.pt"]
    save_file(state, same[0])
    torch.save({"state_dict": state, "epoch": 3}, same[1])
    torch.save({f"module.{name}": value for name, value in state.items()}, same[2])
    spec = lab.resolve({**CHOICES, "start": weights})
    for path in same:
        other = lab.resolve({**CHOICES, "start": path})
        assert other.hash == spec.hash
        assert other.configuration == spec.configuration
    changed = dict(state)
    changed[next(iter(state))] += 1
    torch.save(changed, tmp_path / "other.pt")
    assert lab.resolve({**CHOICES, "start": tmp_path / "other.pt"}).hash != spec.hash
    assert lab.resolve(CHOICES).hash != spec.hash
    assert "start" not in lab.resolve(CHOICES).canonical()


def test_a_head_for_other_classes_is_drawn_anew_and_said(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = torch.load(weights, weights_only=True)
    torch.manual_seed(3)
    mine = models.build("resnet20", channels=3, classes=5, image_size=32)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    head = start_from(mine, start, outputs=5)
    assert head is not None
    for name, value in mine.state_dict().items():
        of_head = name.startswith(f"{head}.")
        assert torch.equal(value, before[name] if of_head else start[name]), name
    torch.save(net(5).state_dict(), weights)
    monkeypatch.chdir(weights.parent)
    Path("spec.json").write_text(json.dumps({**CHOICES, "start": str(weights)}))
    assert call(["run", "spec.json"]) == 0
    assert f"{head} is drawn anew" in capsys.readouterr().err
    page = lab.report("runs").read_text()
    assert f"{head} drawn anew by the seed" in page


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def nan(path: Path) -> None:
    state = net().state_dict()
    state[next(iter(state))].view(-1)[3] = float("nan")
    torch.save(state, path)


def reshaped(path: Path) -> None:
    state = net().state_dict()
    name = next(iter(state))
    state[name] = state[name][:, :1]
    torch.save(state, path)


def deeper(path: Path) -> None:
    torch.save(net(2, "resnet56").state_dict(), path)


def renamed(path: Path) -> None:
    state = net().state_dict()
    torch.save({f"net.{name}": value for name, value in state.items()}, path)


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda path: None, 3, "no such file"),
        (lambda path: path.mkdir(), 3, "a folder, not a file"),
        (lambda path: path.write_bytes(b""), 3, "not a state_dict"),
        (lambda path: path.write_bytes(b"no weights"), 3, "start:"),
        (lambda path: path.write_bytes(pickle.dumps(Code())), 3, "pickled code"),
        (lambda path: torch.save(Code(), path), 3, "pickled code"),
        (lambda path: torch.save(net(), path), 3, "pickled code"),
        (lambda path: torch.save([1, 2], path), 3, "holds no tensors by name"),
        (lambda path: torch.save({}, path), 3, "holds no tensors by name"),
        (nan, 3, "holds numbers that are not finite"),
        (renamed, 2, "the weights are of another net: the file lacks"),
        (reshaped, 2, "the weights are of another net:"),
        (deeper, 2, "which the net has not"),
    ],
)
def test_a_file_that_cannot_be_started_from_is_one_line(
    make: Callable[[Path], Any],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "weights.pt"
    make(path)
    monkeypatch.chdir(tmp_path)
    arguments = ["--methods", "baseline", "--limit", "16", "--device", "cpu"]
    assert call(["compare", *arguments, "--start", str(path)]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "runs").exists()


def test_pretrained_weights_of_a_library_are_said_and_fetched_for_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[bool] = []

    def create_model(
        name: str, pretrained: bool, num_classes: int, in_chans: int
    ) -> torch.nn.Module:
        fetched.append(pretrained)
        if pretrained and len(fetched) > 99:
            raise OSError("no network")
        conv = torch.nn.Conv2d(in_chans, num_classes, 3)
        return torch.nn.Sequential(conv, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    module = types.ModuleType("timm")
    module.__dict__.update(is_model=lambda name: True, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", module)
    choices = {**CHOICES, "model": "timm:small", "model_options.pretrained": True}
    run = lab.run(choices, out=tmp_path)
    assert set(fetched) == {True}
    assert "from the pretrained weights of timm" in lab.report(tmp_path).read_text()
    fetched.clear()
    lab.predict(run, trust_models=True)
    assert fetched == [False]
    fetched += [False] * 99
    with pytest.raises(lab.ConfigurationError, match="OSError: no network; pretrained weights"):
        lab.run({**choices, "seed": 1}, out=tmp_path)


def test_a_file_that_was_changed_since_starts_nothing(weights: Path, tmp_path: Path) -> None:
    spec = lab.resolve({**CHOICES, "start": weights})
    before = digest_of(str(weights))
    nothing = {name: torch.zeros_like(value) for name, value in net().state_dict().items()}
    torch.save(nothing, weights)
    os.utime(weights, (1, 1))
    assert digest_of(str(weights)) != before
    with pytest.raises(lab.DataError, match="holds other weights than the run was begun with"):
        lab.run(spec, out=tmp_path / "runs")
