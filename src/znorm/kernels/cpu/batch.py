"""Tensors of one dtype as the CPU kernels take them: by their addresses, in a plan that is kept."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from znorm.kernels.base import Coefficients, Decision, RunningSums, StepContext, UpdateRule
from znorm.kernels.cpu import driver
from znorm.kernels.cpu.plan import Plan
from znorm.kernels.cpu.updates import RULES
from znorm.layers import LayerSlice
from znorm.transforms.base import ZScore

__all__ = ["Batch"]


class Batch:
    """The tensors of one dtype that one call of the kernels serves; see `base.KernelBatch`.

    Parameters
    ----------
    indices : sequence of int
        Their places in the layout.
    tensors : sequence of Tensor
        Of these places.
    slices : sequence of sequences of LayerSlice
        What of each is measured.
    units : int
        Of the layout.
    measures : bool
        Whether the kernels measure units; else coefficients are given.
    """

    clamps = True
    device = torch.device("cpu")

    def __init__(
        self,
        indices: Sequence[int],
        tensors: Sequence[Tensor],
        slices: Sequence[Sequence[LayerSlice]],
        *,
        units: int,
        measures: bool,
    ) -> None:
        self.indices = list(indices)
        self.plan = Plan(
            [tuple(t.shape) for t in tensors],
            [t.stride() for t in tensors],
            slices,
            tensors[0].dtype,
            units=units,
            measures=measures,
            threads=torch.get_num_threads(),
        )
        self._dtype = tensors[0].dtype
        self._elements = [tensor.numel() for tensor in tensors]
        self._offsets = np.cumsum([0, *self._elements[:-1]], dtype=np.int64)
        measured = [
            (place, unit, piece.size)
            for place, pieces in enumerate(slices)
            for piece in pieces
            for unit in range(piece.first_unit, piece.first_unit + piece.units)
        ]
        # Of each unit the place of its tensor in this batch, its number in the layout, its size.
        self._places, self._units, self._sizes = (
            np.array(measured, dtype=np.int64).reshape(-1, 3).T.copy()
        )

    def measure(self, tensors: Sequence[Tensor | None], moments: Tensor) -> None:
        with self.plan.lock:
            self._point_at(tensors)
            self.plan.run(driver.MEASURE)
            measured = torch.from_numpy(self.plan.moments[:, self._units])
            moments[:, self._units] = measured.to(moments.device)

    def apply_affine_(self, tensors: Sequence[Tensor | None], coefficients: Coefficients) -> None:
        with self.plan.lock:
            self._point_at(tensors)
            self.plan.set_coefficients(*coefficients)
            self.plan.run(driver.AFFINE)

    def normalize_(
        self, tensors: Sequence[Tensor | None], z_score: ZScore, context: StepContext
    ) -> None:
        inv_scale = _number(context.inv_scale)
        with self.plan.lock:
            self._point_at(tensors)
            self.plan.run(driver.AFFINE, z_score.numbers, inv_scale)
            if context.receipt is not None and not _is_skipped(context):
                self._record(context.receipt, z_score, inv_scale)

    def clamp_(self, tensors: Sequence[Tensor | None], bound: float) -> Tensor:
        with self.plan.lock:
            self._point_at(tensors)
            return torch.from_numpy(self.plan.clamp(bound))

    def copy(self, tensors: Sequence[Tensor | None]) -> Tensor:
        with self.plan.lock:
            self._point_at(tensors)
            sources = self.plan.addresses[1].tolist()
        kept = torch.empty(self.plan.elements, dtype=self._dtype)
        size, place = kept.element_size(), kept.data_ptr()
        for source, elements in zip(sources, self._elements, strict=True):
            if source:
                ctypes.memmove(place, source, elements * size)
            place += elements * size
        return kept

    def compare(self, kept: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        with self.plan.lock:
            self._point_at(tensors)
            self.plan.addresses[0] = kept.data_ptr() + self._offsets * kept.element_size()
            return torch.from_numpy(self.plan.compare())

    def bind_state(
        self,
        rule: UpdateRule,
        parameters: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        groups: Sequence[int],
        initialized: Sequence[bool],
    ) -> None:
        if rule.name not in RULES:
            raise ValueError(
                f"the cpu kernels have no update rule {rule.name!r}; they have {', '.join(RULES)}"
            )
        self._rule = RULES[rule.name]
        self._point_at(parameters, 0)
        for row, name in enumerate(rule.state_names, start=2):
            self._point_at([state.get(name) for state in states], row)
        counters = [state.get("step") for state in states]
        self._groups = self._chosen(groups)
        self._counters = self._chosen([0 if c is None else c.data_ptr() for c in counters])
        self._initialized = self._chosen(initialized)

    def update_(
        self,
        gradients: Sequence[Tensor | None],
        hyperparameters: Sequence[Sequence[Any]],
        decision: Decision,
        context: StepContext,
    ) -> None:
        if _is_skipped(context):
            return
        inv_scale = _number(context.inv_scale)
        plan, rule = self.plan, self._rule
        with plan.lock:
            self._point_at(gradients)
            rule.advance(
                plan.addresses,
                self._counters,
                self._initialized,
                self._groups,
                np.array([[float(value) for value in group] for group in hyperparameters]),
                plan.constants,
            )
            self._initialized[:] = 1
            if isinstance(decision, Coefficients):
                plan.set_coefficients(*decision)
                plan.run(rule.kind, inv_scale=inv_scale)
                return
            plan.run(rule.kind, decision.numbers, inv_scale)
            if context.receipt is not None:
                self._record(context.receipt, decision, inv_scale)

    def _point_at(self, tensors: Sequence[Tensor | None], row: int = 1) -> None:
        """Write the tensors' addresses to a row of the plan; 0 where one is missing."""
        chosen: Any = tensors
        if len(self.indices) != len(tensors):
            chosen = [tensors[index] for index in self.indices]
        try:
            self.plan.addresses[row] = list(map(Tensor.data_ptr, chosen))
        except TypeError:  # one is missing
            self.plan.addresses[row] = [0 if t is None else t.data_ptr() for t in chosen]

    def _record(self, receipt: RunningSums, z_score: ZScore, inv_scale: float) -> None:
        """Add the step that was run last to a receipt."""
        driver.record(
            receipt.sums.numpy(),
            receipt.row_of_unit.numpy(),
            self.plan.addresses,
            self._places,
            self._units,
            self._sizes,
            self.plan.moments,
            np.array(z_score.numbers),
            inv_scale,
        )

    def _chosen(self, values: Sequence[int]) -> Any:
        return np.array([values[index] for index in self.indices], dtype=np.int64)


def _number(inv_scale: Tensor | None) -> float:
    return 1.0 if inv_scale is None else float(inv_scale)


def _is_skipped(context: StepContext) -> bool:
    return context.found_inf is not None and bool(float(context.found_inf))
