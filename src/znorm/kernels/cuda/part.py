"""What GPU kernels do with tensors of one dtype on one device: one launch for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import triton.language as tl
from torch import Tensor

from znorm.kernels.cuda import loops
from znorm.kernels.cuda.plan import BLOCK, Group, Plan
from znorm.kernels.cuda.tables import Tables
from znorm.rows import Row

if TYPE_CHECKING:
    from znorm.receipts import Receipt

__all__ = ["DTYPES", "Part"]

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# Tensors that one program counts a step for; partial sums that one adds up at a time.
_LANES = 128

# What steps were captured from in a CUDA graph, which reads it for as long as it lives.
_captured: list[Any] = []


class Part:
    """The rows of one dtype on one device that kernels serve, and their tables.

    Nothing here waits for the device, or copies to it but when it is made.

    Parameters
    ----------
    numbers : list of int
        Of the rows.
    rows : sequence of Row
        Of the layout.
    tensors : sequence of Tensor or None
        In the order of the layout, as everywhere here.
    device : torch.device
    dtype : torch.dtype
    """

    clamps: ClassVar[bool] = False

    def __init__(
        self,
        numbers: list[int],
        rows: Sequence[Row],
        tensors: Sequence[Tensor | None],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.numbers = numbers
        self.device = device
        self._dtype = DTYPES[dtype]
        held = [t for t in (tensors[number] for number in numbers) if t is not None]
        layers = [rows[number].layers for number in numbers]
        shapes, strides = [tuple(t.shape) for t in held], [t.stride() for t in held]
        self._plan = Plan(shapes, strides, layers, dtype.itemsize, device)
        self._all_units = sum(row.units for row in rows)
        self._units = self._plan.units[:, 5]
        self._nothing = torch.zeros(1, device=device)
        self._constant = [self._nothing]
        # Addresses of what does not change from step to step, by their row in the tables.
        self._fixed: dict[int, list[int]] = {}
        # Of each stream its own: two may be at work at once, and must not share what they write.
        self._tables: dict[int, Tables] = {}
        self._lock = threading.Lock()

    def measure(self, tensors: Sequence[Tensor | None], held: Tensor) -> None:
        """Write mean and m2 of the units of these rows.

        Parameters
        ----------
        tensors : sequence of Tensor or None
        held : Tensor of shape (2, units of the layout), float64
        """
        with self._at_work() as tables:
            self._point_at(tables, tensors)
            for group in self._plan.groups:
                self._measure(tables, group)
                self._merge(tables, group)
            found = tables.moments[:, self._units]
        held[:, self._units.to(held.device)] = found.to(held.device)

    def apply_(self, tensors: Sequence[Tensor | None], center: Tensor, scale: Tensor) -> None:
        """Apply what was decided for each unit of the layout, in place."""
        with self._at_work() as tables:
            self._point_at(tables, tensors)
            tables.give(center.to(self.device), scale.to(self.device))
            for group in self._plan.groups:
                self._finish(tables, group, loops.AFFINE, None, None)

    def z_score_(
        self,
        tensors: Sequence[Tensor | None],
        z_score: tuple[float, float, float, float],
        factor: Tensor | None,
        receipt: Receipt | None,
        skip: Tensor | None,
    ) -> None:
        """ZNorm in place, each group of tensors while it is in cache.

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
        scale = None if factor is None else self._here(factor.reciprocal())
        skip = self._here(skip)
        with self._at_work(receipt) as tables:
            self._point_at(tables, tensors)
            tables.z_score.set(z_score)
            for group in self._plan.groups:
                self._measure(tables, group)
                self._merge(tables, group, decides=True, scale=scale, skip=skip, receipt=receipt)
                self._finish(tables, group, loops.AFFINE, None, None)

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
            Which live, with their step counters in float32 on this device, as long as this is used.
        names : sequence of str
            Of the tensors in them that are as large as the parameter.
        groups : sequence of int
            The parameter group of each row of the layout.
        begun : sequence of bool
            Whether its momentum buffer holds anything.
        """
        self._fixed = {0: self._addresses(parameters)}
        for place, name in enumerate(names, start=2):
            self._fixed[place] = self._addresses([state.get(name) for state in states])
        self._fixed[4] = self._addresses([state.get("step") for state in states])
        self._groups = self._on_device([groups[number] for number in self.numbers])
        self._begun = self._on_device([int(begun[number]) for number in self.numbers])
        self._constant += [self._groups, self._begun]

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
            For each parameter group, see `loops.advance_adam` and `loops.advance_sgd`.
        decided : four floats, or two Tensors
            ZNorm as `Layout.z_score` has it, or center and scale of each unit of the layout.
        scale : Tensor of one element, optional
            What gradients are divided by first.
        skip : Tensor of one element, optional
            Where it is not 0 nothing changes.
        receipt : Receipt, optional
            To which ZNorm is added.
        """
        scale, skip = self._here(scale), self._here(skip)
        with self._at_work(receipt) as tables:
            for place, addresses in self._fixed.items():
                tables.rows[place].set(addresses)
            self._point_at(tables, gradients)
            self._advance(tables, kind, tables.set_options(options), skip)
            if len(decided) == 2:
                tables.give(*(self._here(tensor) for tensor in decided))
            else:
                tables.z_score.set(decided)
            for group in self._plan.groups:
                if len(decided) == 4:
                    self._measure(tables, group)
                    self._merge(
                        tables, group, decides=True, scale=scale, skip=skip, receipt=receipt
                    )
                self._finish(tables, group, getattr(loops, kind), scale, skip)

    @contextmanager
    def _at_work(self, receipt: Receipt | None = None) -> Iterator[Tables]:
        """The tables to use, for one Python thread at a time, on the current stream.

        A graph that is being captured keeps what it will write, the receipt too.
        """
        on_gpu = self.device.type == "cuda"
        with self._lock, torch.cuda.device(self.device) if on_gpu else nullcontext():
            if on_gpu and torch.cuda.is_current_stream_capturing():
                _captured.extend(it for it in (self, receipt) if it not in (None, *_captured))
                # Of memory of the graph's own, which each replay fills anew.
                yield self._new_tables()
                return
            stream = torch.cuda.current_stream().cuda_stream if on_gpu else 0
            if stream not in self._tables:
                self._tables[stream] = self._new_tables()
                if on_gpu:
                    for table in (*self._plan.tables, *self._constant):
                        table.record_stream(torch.cuda.current_stream())
            yield self._tables[stream]

    def _new_tables(self) -> Tables:
        items = len(self._plan.measured)
        return Tables(len(self.numbers), self._all_units, items, self.device)

    def _measure(self, tables: Tables, group: Group) -> None:
        if group.measured:
            loops.measure[(len(group.measured),)](
                tables.addresses,
                self._plan.measured,
                tables.partial,
                group.measured.start,
                len(self.numbers),
                DTYPE=self._dtype,
                BLOCK=BLOCK,
            )

    def _merge(
        self,
        tables: Tables,
        group: Group,
        *,
        decides: bool = False,
        scale: Tensor | None = None,
        skip: Tensor | None = None,
        receipt: Receipt | None = None,
    ) -> None:
        if group.units:
            loops.merge[(len(group.units),)](
                tables.addresses,
                self._plan.units,
                tables.partial,
                tables.moments,
                tables.given,
                self._nothing if receipt is None else receipt.sums,
                self._nothing if receipt is None else receipt.row_of_unit,
                tables.z_score.held,
                self._nothing if scale is None else scale,
                self._nothing if skip is None else skip,
                group.units.start,
                len(self.numbers),
                self._all_units,
                DTYPE=self._dtype,
                BLOCK=_LANES,
                DECIDES=decides,
                RECORDS=receipt is not None,
                HAS_SCALE=scale is not None,
                HAS_SKIP=skip is not None,
            )

    def _finish(
        self, tables: Tables, group: Group, kind: int, scale: Tensor | None, skip: Tensor | None
    ) -> None:
        if group.finished:
            loops.finish[(len(group.finished),)](
                tables.addresses,
                self._plan.finished,
                tables.given,
                tables.constants,
                self._nothing if scale is None else scale,
                self._nothing if skip is None else skip,
                group.finished.stop - 1,
                len(self.numbers),
                self._all_units,
                DTYPE=self._dtype,
                BLOCK=BLOCK,
                KIND=kind,
                HAS_SCALE=scale is not None,
                HAS_SKIP=skip is not None,
            )

    def _advance(self, tables: Tables, kind: str, options: Tensor, skip: Tensor | None) -> None:
        """Count a step, and write down the constants of each tensor's update."""
        advance = loops.advance_adam if kind == "ADAM" else loops.advance_sgd
        begun = () if kind == "ADAM" else (self._begun,)
        advance[(-(-len(self.numbers) // _LANES),)](
            tables.addresses,
            self._groups,
            options,
            tables.constants,
            *begun,
            self._nothing if skip is None else skip,
            len(self.numbers),
            BLOCK=_LANES,
            HAS_SKIP=skip is not None,
        )

    def _point_at(self, tables: Tables, tensors: Sequence[Tensor | None]) -> None:
        tables.rows[1].set(self._addresses(tensors))

    def _addresses(self, tensors: Sequence[Tensor | None]) -> list[int]:
        chosen = (tensors[number] for number in self.numbers)
        return [0 if tensor is None else tensor.data_ptr() for tensor in chosen]

    def _here(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(self.device, non_blocking=True)

    def _on_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self.device)
