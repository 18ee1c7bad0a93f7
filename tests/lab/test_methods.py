"""Methods of a user's own: transforms by name, registered ones, and those of an import path."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import znorm
from znorm import lab
from znorm.lab import methods
from znorm.lab.cli import run

SMALL = ["--task", "phantom", "--limit", "8", "--epochs", "1", "--seeds", "1"]

CODE = '''
from dataclasses import dataclass
import torch, znorm

@dataclass(frozen=True)
class Quarter(znorm.transforms.Transform):
    """Scale each gradient."""

    by: float = 0.25

    def decide(self, moments, parameters=None):
        zero = torch.zeros_like(moments.mean)
        return znorm.Affine(zero, zero + self.by)
'''


def test_every_transform_of_the_library_can_be_named() -> None:
    for name, kind in znorm.transforms.TRANSFORMS.items():
        parameters = inspect.signature(kind).parameters.values()
        arguments = {p.name: 0.1 for p in parameters if p.default is p.empty}
        written, _ = methods.resolve("mine", {name: arguments}, None)
        assert methods.make_transform(written) == kind(**arguments)
    adaptive, _ = methods.resolve("adaptive_clipping", None, None)
    assert methods.make_transform(adaptive) == znorm.AdaptiveClip(0.01)


@pytest.fixture
def registered() -> Any:
    @znorm.transforms.register
    class Halved(znorm.transforms.Transform):
        def decide(self, moments: Any, parameters: Any = None) -> znorm.Affine:
            return znorm.Affine(moments.mean * 0, moments.mean * 0 + 0.5)

    yield Halved
    del znorm.transforms.TRANSFORMS["Halved"]


def test_a_registered_transform_goes_by_its_name(registered: Any, tmp_path: Path) -> None:
    mine = {"name": "mine", "transform": ["Halved"]}
    runs = lab.compare(task="phantom", methods=[mine], seeds=1, epochs=1, limit=8, out=tmp_path)
    assert runs[0].status == "done"
    assert runs[0].spec.transform == ({"Halved": {}},)


def test_yaml_names_a_transform_by_its_place_and_reports_need_no_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quarters.py").write_text(CODE)
    (tmp_path / "mine.yaml").write_text(
        "methods: [baseline, {name: mine, transform: [{'quarters:Quarter': {by: 0.5}}]}]\n"
    )
    assert run(["compare", *SMALL, "--config", "mine.yaml", "--jobs", "2", "--out", "runs"]) == 0
    specs = [json.loads(path.read_text()) for path in Path("runs").rglob("spec.json")]
    assert [{"quarters:Quarter": {"by": 0.5}}] in [spec.get("transform") for spec in specs]
    (tmp_path / "quarters.py").write_text("raise RuntimeError('imported')")
    assert run(["report", "runs"]) == 0
    capsys.readouterr()


def test_a_specification_of_a_folder_does_not_import_it_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    choices = {"task": "phantom", "epochs": 1, "data.limit": 8, "device": "cpu"}
    spec = lab.resolve({**choices, "method": "mine", "transform": [{"trap:Quarter": {}}]})
    Path("spec.json").write_text(spec.canonical())
    Path("trap.py").write_text(f"open('sprung', 'w')\n{CODE}")
    assert run(["run", "spec.json", "--out", "runs"]) == 2
    assert "trap:Quarter: code that the specification names" in capsys.readouterr().err
    assert not Path("sprung").exists()
    assert run(["run", "spec.json", "--out", "runs", "--trust-models"]) == 0
    assert Path("sprung").exists()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("nowhere_at_all:Mine", r"nowhere_at_all:Mine: cannot be imported \(No module"),
        ("json:Mine", "json:Mine: cannot be imported .*no attribute"),
        ("json:JSONDecoder", r"expected a class of the base znorm\.transforms\.Transform"),
        ({"ZNorm": {"epsilon": 1}}, "unknown argument of ZNorm 'epsilon'; did you mean eps"),
        ("Znorm", r"unknown transform 'Znorm'; did you mean ZNorm .* package\.module:Class"),
    ],
)
def test_what_cannot_be_made_is_said(transform: Any, message: str) -> None:
    def make() -> None:
        written, _ = methods.resolve("mine", transform, None)
        methods.make_transform(written)

    with pytest.raises(lab.ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        ({"ZNorm": {"select": [("w", znorm.Layers(2))]}}, "transform ZNorm: select: "),
        ({"ZNorm": {"select": [(torch.nn.Conv2d, False)]}}, "transform ZNorm: select: "),
        ({"ClipNorm": {"threshold": torch.tensor(0.1)}}, "transform ClipNorm: threshold: "),
    ],
)
def test_what_a_specification_cannot_hold_is_refused(transform: Any, named: str) -> None:
    with pytest.raises(lab.ConfigurationError) as caught:
        methods.resolve("mine", transform, None)
    assert str(caught.value).startswith(named)
    assert "a specification holds numbers, text and lists" in str(caught.value)


def test_numpys_numbers_are_numbers() -> None:
    ((one,), _) = methods.resolve("mine", {"ClipValue": {"threshold": np.float64(0.25)}}, None)
    assert type(one["ClipValue"]["threshold"]) is float
