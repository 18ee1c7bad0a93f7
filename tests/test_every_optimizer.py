"""Every optimizer of torch in every variant: tests/optimizer_table.py says what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optimizer_table as table
import znorm

ROWS = table.rows()
RUNNING = [row for row in ROWS if not row.reason]


@pytest.mark.parametrize("row", RUNNING, ids=str)
def test_it_steps_as_the_bare_one_that_is_fed_the_right_gradient(row: Any) -> None:
    outcome = table.run(row)
    assert outcome.settings >= 1
    if row.dtype == "float32":
        assert outcome.error <= 1e-6
    else:
        assert outcome.same >= 0.999


@pytest.mark.parametrize("row", RUNNING, ids=str)
def test_the_identity_changes_no_bit(row: Any) -> None:
    for options in table.options_of(row):
        found = table.train_attached(row, options, znorm.chain())
        parameters = table.start(row)
        optimizer = row.optimizer_class(parameters, **table._own(options))
        scaler = torch.amp.GradScaler("cpu", init_scale=table.SCALE, enabled=row.way == "scaler")
        scale = float(scaler.scale(torch.ones(())))
        for step in range(table.STEPS):
            raw = [g * scale for g in table.gradients(parameters, step)]
            if row.way == "closure":
                optimizer.step(table._closure(parameters, raw))
                continue
            for parameter, gradient in zip(parameters, raw, strict=True):
                parameter.grad = gradient
            scaler.step(optimizer)
            scaler.update(scale)
        for one, other in zip(parameters, found, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "row", [row for row in RUNNING if row.way == "scaler" and row.dtype == "float32"], ids=str
)
def test_a_step_that_overflowed_leaves_weights_and_state_untouched(row: Any) -> None:
    parameters = table.start(row)
    variants = {} if row.variant == "default" else {row.variant: True}
    optimizer = row.optimizer_class(parameters, **variants)
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=table.SCALE)
    scaler.scale(torch.ones(()))

    def step(overflow: bool) -> None:
        for parameter, gradient in zip(parameters, table.gradients(parameters, 0), strict=True):
            parameter.grad = gradient * table.SCALE
        if overflow:
            assert parameters[0].grad is not None
            parameters[0].grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update(table.SCALE)

    step(overflow=False)
    before = [p.detach().clone() for p in parameters]
    state = [
        {key: torch.as_tensor(value).clone() for key, value in optimizer.state[p].items()}
        for p in parameters
    ]
    receipt = attachment.receipt()
    step(overflow=True)
    for parameter, weight, held in zip(parameters, before, state, strict=True):
        assert torch.equal(parameter, weight)
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(torch.as_tensor(value), held[key]), key
    assert attachment.receipt() == receipt
    step(overflow=False)
    assert not torch.equal(parameters[0], before[0])


def test_sparse_adam_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters())
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"0\.weight: its gradient is sparse"):
        optimizer.step()


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch's own table differs from version to version"
)
def test_the_documentation_shows_the_table() -> None:
    lines = Path(__file__).parents[1].joinpath("docs", "optimizers.md").read_text().splitlines()
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line][2:]
    assert [tuple(cells[:4]) for cells in shown] == [row.key for row in ROWS]
    for cells, row in zip(shown, ROWS, strict=True):
        assert (cells[4] == "not run") == bool(row.reason)
        assert not row.reason or cells[5] == row.reason
        if not row.reason and row.dtype == "float32":
            assert float(cells[5]) <= 1e-6
        elif not row.reason:
            assert float(cells[6].split("%")[0]) >= 99.9


def test_an_optimizer_of_another_library() -> None:
    import pytorch_optimizer

    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(12, 7, generator=generator)
    attached, bare = (nn.Parameter(weights.clone()) for _ in range(2))
    first, second = (pytorch_optimizer.Lion([p], lr=1e-3) for p in (attached, bare))
    znorm.attach(first, znorm.ZNorm())
    for _ in range(4):
        gradient = torch.randn(12, 7, generator=generator) + 0.3
        attached.grad, bare.grad = gradient.clone(), table.g_hat(gradient)
        first.step()
        second.step()
    torch.testing.assert_close(attached, bare, rtol=0, atol=1e-6)
    assert not torch.equal(attached, weights)
