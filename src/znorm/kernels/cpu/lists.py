"""Lists of gradients as the CPU kernels take them: which fit, in plans that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from znorm.kernels.cpu import drivers
from znorm.kernels.cpu.intrinsics import DTYPES
from znorm.kernels.cpu.plan import Plan
from znorm.kernels.cpu.ready import ready
from znorm.rows import Row

if TYPE_CHECKING:
    from znorm.receipts import Receipt

__all__ = ["Part", "parts_of"]


@dataclass
class Part:
    """The rows of one dtype that kernels serve, and their plan.

    Parameters
    ----------
    numbers : list of int
        Of the rows.
    units : int64 array
        The layout's numbers of their units.
    measured : int64 array
        Of those numbers the places of the rows that have units.
    sizes : int64 array of units
        Elements of each.
    plan : Plan
    """

    numbers: list[int]
    units: Any
    measured: Any
    sizes: Any
    plan: Plan

    clamps: ClassVar[bool] = True
    device: ClassVar[torch.device] = torch.device("cpu")

    def measure(self, tensors: Sequence[Tensor | None], held: Tensor) -> None:
        """Write mean and m2 of the units of these rows.

        Parameters
        ----------
        tensors : sequence of Tensor or None
            In the order of the layout, here as everywhere.
        held : Tensor of shape (2, units of the layout), float64
        """
        with self.plan.lock:
            self._point_at(tensors)
            self.plan.run(drivers.MEASURE)
            self._moments_to(held)

    def apply_(self, tensors: Sequence[Tensor | None], center: Tensor, scale: Tensor) -> None:
        """Apply what was decided for each unit of the layout, in place."""
        with self.plan.lock:
            self._point_at(tensors)
            self.plan.give(center, scale)
            self.plan.run(drivers.AFFINE)

    def z_score_(
        self,
        tensors: Sequence[Tensor | None],
        z_score: tuple[float, float, float, float],
        factor: Tensor | None,
        receipt: Receipt | None,
        skip: Tensor | None,
    ) -> None:
        """ZNorm in place, each tensor while it is in cache.

        Parameters
        ----------
        tensors : sequence of Tensor or None
        z_score
            As `Layout.z_score` has it; each row is one unit.
        factor : Tensor of one element, optional
            What gradients are multiplied by first.
        receipt : Receipt, optional
            To which this is added.
        skip : Tensor of one element, optional
            Not 0 if the optimizer will skip this step, of which the receipt then holds nothing.
        """
        multiplier = 1.0 if factor is None else float(factor)
        with self.plan.lock:
            self._point_at(tensors)
            self.plan.run(drivers.AFFINE, z_score, multiplier)
            if receipt is not None and (skip is None or not float(skip)):
                self._record(receipt, z_score, multiplier)

    def begin(
        self,
        parameters: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        names: Sequence[str],
        groups: Sequence[int],
        begun: Sequence[bool],
    ) -> None:
        """Take down what an optimizer's steps rest on.

        Parameters
        ----------
        parameters : sequence of Tensor
        states : sequence of dict
            Which live, with their step counters in float32, as long as this is used.
        names : sequence of str
            Of the tensors in them that are as large as the parameter.
        groups : sequence of int
            The parameter group of each row of the layout.
        begun : sequence of bool
            Whether its momentum buffer holds anything.
        """
        self._point_at(parameters, 0)
        for place, name in enumerate(names, start=2):
            self._point_at([state.get(name) for state in states], place)
        counters = [state.get("step") for state in states]
        self._groups = self._of_rows(groups)
        self._counters = self._of_rows([0 if c is None else c.data_ptr() for c in counters])
        self._begun = self._of_rows(begun)

    def step_(
        self,
        kind: str,
        gradients: Sequence[Tensor | None],
        options: Sequence[Sequence[Any]],
        decided: tuple[float, float, float, float] | tuple[Tensor, Tensor],
        *,
        scale: Tensor | None,
        skip: Tensor | None,
        receipt: Receipt | None,
    ) -> None:
        """One step of an optimizer, the transform within; gradients are read alone.

        Parameters
        ----------
        kind : "ADAM" or "SGD"
        gradients : sequence of Tensor or None
        options : sequence of sequences of numbers
            For each parameter group, see `drivers.advance_adam` and `drivers.advance_sgd`.
        decided : four floats, or two Tensors
            ZNorm as `Layout.z_score` has it, or center and scale of each unit of the layout.
        scale : Tensor of one element, optional
            What gradients are divided by first.
        skip : Tensor of one element, optional
            Where it is not 0 nothing changes.
        receipt : Receipt, optional
            To which ZNorm is added.
        """
        if skip is not None and float(skip):
            return
        factor = 1.0 if scale is None else 1.0 / float(scale)
        plan = self.plan
        with plan.lock:
            self._point_at(gradients)
            self._advance(kind, np.array([[float(v) for v in group] for group in options]))
            which = getattr(drivers, kind)
            if len(decided) == 2:
                plan.give(*decided)
                plan.run(which, factor=factor)
                return
            plan.run(which, decided, factor)
            if receipt is not None:
                self._record(receipt, decided, factor)

    def clamp(self, tensors: Sequence[Tensor | None], bound: float) -> Tensor:
        """Clamp tensors in place, in the order of the layout; None: left alone.

        Returns
        -------
        Tensor of shape (numbers, 5), float64
            Sums of g, g^2, g * clamped and clamped^2, and how many entries were changed.
        """
        with self.plan.lock:
            self._point_at(tensors)
            return torch.from_numpy(self.plan.clamp(bound))

    def _point_at(self, tensors: Sequence[Tensor | None], place: int = 1) -> None:
        """Write the addresses of all rows' tensors, 0 for what is missing."""
        chosen: Any = tensors
        if len(self.numbers) != len(tensors):
            chosen = [tensors[number] for number in self.numbers]
        try:
            self.plan.addresses[place] = list(map(Tensor.data_ptr, chosen))
        except TypeError:  # one is missing
            self.plan.addresses[place] = [0 if t is None else t.data_ptr() for t in chosen]

    def _moments_to(self, held: Tensor) -> None:
        held[:, self.units] = torch.from_numpy(self.plan.moments[:, self.units]).to(held.device)

    def _record(self, receipt: Receipt, z_score: tuple[float, ...], factor: float) -> None:
        """Add the step that was run last to a receipt."""
        drivers.record(
            receipt.sums.numpy(),
            receipt.row_of_unit.numpy(),
            self.plan.addresses,
            self.measured,
            self.units,
            self.sizes,
            self.plan.moments,
            np.array(z_score),
            factor,
        )

    def _advance(self, kind: str, options: Any) -> None:
        """Count a step, and write down the constants of each tensor's update."""
        plan = self.plan
        if kind == "ADAM":
            counters = self._counters
            drivers.advance_adam(plan.addresses, counters, self._groups, options, plan.constants)
            return
        drivers.advance_sgd(plan.addresses, self._begun, self._groups, options, plan.constants)
        self._begun[:] = 1

    def _of_rows(self, values: Sequence[int]) -> Any:
        return np.array([values[number] for number in self.numbers], dtype=np.int64)


def parts_of(
    rows: Sequence[Row],
    tensors: Sequence[Tensor | None],
    *,
    measures: bool,
    everything: bool,
    cache: dict[Any, tuple[Any, list[Part]]],
) -> list[Part]:
    """The rows whose tensors kernels serve, by dtype.

    Parameters
    ----------
    rows, tensors
        Of a layout, in its order.
    measures : bool
        Whether the kernel measures units; else they are given.
    everything : bool
        Whether rows of which nothing is measured are among them.
    cache : dict
        Where plans are kept from step to step.
    """
    threads = torch.get_num_threads()
    key = ("cpu", measures, everything, threads)
    # What a plan depends on. Addresses are written anew each time.
    seen = [
        None if t is None else (t.dtype, t.stride(), t.device.type, type(t), t.is_neg())
        for t in tensors
    ]
    known = cache.get(key)
    if known is not None and known[0] == seen:
        return known[1]
    parts: list[Part] = []
    units = sum(row.units for row in rows)
    for dtype in DTYPES:
        numbers = [
            number
            for number, (row, tensor) in enumerate(zip(rows, tensors, strict=True))
            if tensor is not None
            and tensor.dtype == dtype
            and (row.layers or everything)
            and tensor.device.type == "cpu"
            and row.fits_kernels(tensor)
        ]
        if not numbers or not ready(dtype):
            continue
        held = [tensors[number] for number in numbers]
        plan = Plan(
            [tuple(t.shape) for t in held if t is not None],
            [t.stride() for t in held if t is not None],
            [rows[number].layers for number in numbers],
            dtype,
            units=units,
            measures=measures,
            threads=threads,
        )
        own = [
            (place, unit, layer.size)
            for place, number in enumerate(numbers)
            for layer in rows[number].layers
            for unit in range(layer.first, layer.first + layer.units)
        ]
        measured, held_units, sizes = np.array(own, dtype=np.int64).reshape(-1, 3).T.copy()
        parts.append(Part(numbers, held_units, measured, sizes, plan))
    cache[key] = (seen, parts)
    return parts
