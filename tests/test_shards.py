"""Parameters of which a process holds a flat part: refused by name on each, never left alone.

Where each process has whole gradients, as under DistributedDataParallel, it is right. Shards in
which layers stay apart (DTensor) are those of `test_sharding.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import znorm
from kit import net


def flattened(parameters: Any) -> nn.Parameter:
    return nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))


@pytest.mark.parametrize("transform", [znorm.ZNorm(), znorm.ClipNorm(1.0), None], ids=repr)
@pytest.mark.parametrize("mark", ["_is_flat_param", "_fsdp_flattened", "ds_id"])
def test_a_flat_parameter_is_refused_though_it_looks_like_a_vector(
    mark: str, transform: Any
) -> None:
    flat = flattened(net().parameters())
    setattr(flat, mark, 7 if mark == "ds_id" else True)
    with pytest.raises(TypeError, match=r"group 0, parameter 0 \(65,\): .* layers are no longer"):
        znorm.attach(torch.optim.SGD([flat]), transform)


def test_what_a_rule_leaves_out_may_be_flat() -> None:
    flat, plain = flattened(net().parameters()), nn.Parameter(torch.zeros(2, 2))
    flat._is_flat_param = True  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD([("flat", flat), ("plain", plain)])
    attachment = znorm.attach(optimizer, znorm.ZNorm(select=[("flat", False)]))
    assert [row["transformed"] for row in attachment.describe().rows] == [False, True]


def test_a_shard_of_tensor_parallelism_is_refused() -> None:
    model = net()
    model[0].weight.tensor_model_parallel = True  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"0\.weight: a shard of tensor parallelism"):
        znorm.attach(torch.optim.SGD(model.parameters()), znorm.ZNorm(), model=model)


class ZeroOptimizer:
    """DeepSpeed's pattern: the parameters of the optimizer inside become one flat partition."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.partitions = []
        for group in optimizer.param_groups:
            partition = flattened(group["params"])
            partition.grad = torch.randn_like(partition)
            self.partitions.append(partition)
            group["params"] = [partition]

    def step(self) -> None:
        self.optimizer.step()


class DeepSpeedZeroOptimizer(ZeroOptimizer): ...


class DeepSpeedZeroOptimizer_Stage3(ZeroOptimizer): ...  # noqa: N801 - its name


class BF16_Optimizer(ZeroOptimizer): ...  # noqa: N801 - its name


@pytest.mark.parametrize("make", [torch.optim.SGD, znorm.optim.SGD])
@pytest.mark.parametrize(
    "kind", [DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3, BF16_Optimizer]
)
def test_deepspeeds_partitions_are_refused_whenever_it_is_attached(kind: Any, make: Any) -> None:
    refused = rf"{kind.__name__} \(DeepSpeed\) steps on flat partitions"
    model = net()
    optimizer = make(model.named_parameters(), lr=0.1)
    # Before: at the first step, that is.
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    wrapped = kind(optimizer)
    before = wrapped.partitions[0].detach().clone()
    with (
        pytest.warns(UserWarning, match="replaced by 1 of other shapes"),
        pytest.raises(TypeError, match=refused),
    ):
        wrapped.step()
    assert torch.equal(wrapped.partitions[0], before)
    # After: to the wrapper, and to what is inside.
    wrapped = kind(make(net().parameters(), lr=0.1))
    for given in (wrapped, wrapped.optimizer):
        with pytest.raises(TypeError, match=refused):
            znorm.attach(given, znorm.ZNorm())


CASES = ["ddp", "fsdp1", "zero"]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each process of `processes.py` says of each case: "ok", or what went wrong."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).parent / "processes.py"
    command = [sys.executable, str(script), str(folder), *CASES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_in_two_processes(case: str, processes: list[dict[str, str]]) -> None:
    assert [said[case] for said in processes] == ["ok", "ok"]
