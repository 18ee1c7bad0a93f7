"""``znorm doctor``: what it says of this machine is what steps then do."""

from __future__ import annotations

import json

import pytest
import torch

import znorm
from znorm import lab
from znorm.kernels import registry
from znorm.lab.cli import run


def test_kernels_are_those_that_steps_take() -> None:
    found = lab.doctor()
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"]["torch"] == torch.get_num_threads()
    named = {entry["dtype"]: entry for entry in found["kernels"] if entry["device"] == "cpu"}
    for name, entry in named.items():
        parameter = torch.nn.Parameter(torch.zeros(3, 2, dtype=getattr(torch, name)))
        optimizer = znorm.optim.Adam([parameter], transform=znorm.ZNorm())
        parameter.grad = torch.randn(3, 2).to(parameter.dtype)
        optimizer.step()
        assert (optimizer.__dict__["_fused_step"] is not None) == (entry["kernel"] == "cpu"), name
        assert (entry["why"] is None) == (entry["kernel"] == "cpu")


def test_it_says_why_compiled_kernels_are_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZNORM_KERNELS", "reference")
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(registry, "_refused", {})
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "cpu float32: reference (ZNORM_KERNELS=reference is set)" in out
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["kernel"] for entry in found["kernels"]} == {"reference"}
