"""Tensors of one dtype on one GPU: one launch of a kernel for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from znorm.kernels.base import Coefficients, Decision, RunningSums, StepContext, UpdateRule
from znorm.kernels.triton import kernels
from znorm.kernels.triton.buffers import Buffers
from znorm.kernels.triton.clamp import SUMS, add_up, clamp
from znorm.kernels.triton.plan import Plan
from znorm.kernels.triton.sizes import SIZES
from znorm.kernels.triton.updates import RULES
from znorm.layers import LayerSlice
from znorm.transforms.base import ZScore

__all__ = ["DTYPES", "Batch"]

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_LARGEST = torch.finfo(torch.float32).max

# What steps were captured from in a CUDA graph, which reads it for as long as it lives.
_captured: dict[int, Any] = {}


class Batch:
    """The tensors of one dtype on one device that a launch serves; see `base.KernelBatch`.

    Nothing here waits for the device, or copies to it but when it is made.

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
    """

    clamps = True

    def __init__(
        self,
        indices: Sequence[int],
        tensors: Sequence[Tensor],
        slices: Sequence[Sequence[LayerSlice]],
        *,
        units: int,
    ) -> None:
        self.indices = list(indices)
        dtype, device = tensors[0].dtype, tensors[0].device
        self.device = device
        self._dtype = DTYPES[dtype]
        shapes, strides = [tuple(t.shape) for t in tensors], [t.stride() for t in tensors]
        self._plan = Plan(shapes, strides, slices, device)
        self._all_units = units
        self._units = self._plan.units[:, 5]
        self._nothing = torch.zeros(1, device=device)
        self._constant = [self._nothing]
        # Addresses of what does not change from step to step, by their row in the buffers.
        self._fixed: dict[int, list[int]] = {}
        # Of each stream its own: two may be at work at once, and must not share what they write.
        self._buffers: dict[int, Buffers] = {}
        self._lock = threading.Lock()

    def measure(self, tensors: Sequence[Tensor | None], moments: Tensor) -> None:
        with self._at_work() as buffers:
            self._point_at(buffers, tensors)
            self._measure(buffers)
            self._merge(buffers)
            measured = buffers.moments[:, self._units]
        moments[:, self._units.to(moments.device)] = measured.to(moments.device)

    def apply_affine_(self, tensors: Sequence[Tensor | None], coefficients: Coefficients) -> None:
        with self._at_work() as buffers:
            self._point_at(buffers, tensors)
            buffers.set_coefficients(*(tensor.to(self.device) for tensor in coefficients))
            self._finish(buffers, kernels.AFFINE, StepContext())

    def normalize_(
        self, tensors: Sequence[Tensor | None], z_score: ZScore, context: StepContext
    ) -> None:
        context = self._here(context)
        with self._at_work(context.receipt) as buffers:
            self._point_at(buffers, tensors)
            buffers.z_score.set(z_score.numbers)
            self._measure(buffers)
            self._merge(buffers, context)
            self._finish(buffers, kernels.AFFINE, StepContext())

    def clamp_(self, tensors: Sequence[Tensor | None], bound: float) -> Tensor:
        items, count = self._plan.finished, len(self.indices)
        with self._at_work() as buffers:
            self._point_at(buffers, tensors)
            partial = torch.empty(len(items), SUMS, dtype=torch.float64, device=self.device)
            sums = torch.empty(count, SUMS, dtype=torch.float64, device=self.device)
            clamp[(len(items),)](
                buffers.addresses,
                items,
                partial,
                # Not a whole number, of which Triton would compile kernels of their own.
                min(float(bound), _LARGEST),
                count,
                DTYPE=self._dtype,
                BLOCK=SIZES.block,
                num_warps=SIZES.warps,
            )
            add_up[(count,)](self._plan.spans, partial, sums, BLOCK=SIZES.lanes)
        return sums

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
                f"the triton kernels have no update rule {rule.name!r}; they have "
                f"{', '.join(RULES)}"
            )
        self._rule = RULES[rule.name]
        self._fixed = {0: self._addresses(parameters)}
        for row, name in enumerate(rule.state_names, start=2):
            self._fixed[row] = self._addresses([state.get(name) for state in states])
        self._fixed[4] = self._addresses([state.get("step") for state in states])
        self._groups = self._on_device([groups[index] for index in self.indices])
        self._initialized = self._on_device([int(initialized[index]) for index in self.indices])
        self._constant += [self._groups, self._initialized]

    def update_(
        self,
        gradients: Sequence[Tensor | None],
        hyperparameters: Sequence[Sequence[Any]],
        decision: Decision,
        context: StepContext,
    ) -> None:
        context = self._here(context)
        with self._at_work(context.receipt) as buffers:
            for row, addresses in self._fixed.items():
                buffers.rows[row].set(addresses)
            self._point_at(buffers, gradients)
            self._advance(buffers, buffers.set_hyperparameters(hyperparameters), context)
            if isinstance(decision, Coefficients):
                buffers.set_coefficients(*map(self._moved, decision))
            else:
                buffers.z_score.set(decision.numbers)
                self._measure(buffers)
                self._merge(buffers, context)
            self._finish(buffers, self._rule.kind, context)

    @contextmanager
    def _at_work(self, receipt: RunningSums | None = None) -> Iterator[Buffers]:
        """The buffers to use, for one Python thread at a time, on the current stream.

        A graph that is being captured keeps what it will write, the receipt too.
        """
        on_gpu = self.device.type == "cuda"
        with self._lock, torch.cuda.device(self.device) if on_gpu else nullcontext():
            if on_gpu and torch.cuda.is_current_stream_capturing():
                _captured.update({id(kept): kept for kept in (self, receipt)})
                # Of memory of the graph's own, which each replay fills anew.
                yield self._new_buffers()
                return
            stream = torch.cuda.current_stream().cuda_stream if on_gpu else 0
            if stream not in self._buffers:
                self._buffers[stream] = self._new_buffers()
                if on_gpu:
                    for table in (*self._plan.tables, *self._constant):
                        table.record_stream(torch.cuda.current_stream())
            yield self._buffers[stream]

    def _new_buffers(self) -> Buffers:
        items = len(self._plan.measured)
        return Buffers(len(self.indices), self._all_units, items, self.device)

    def _measure(self, buffers: Buffers) -> None:
        items = self._plan.measured
        if len(items):
            kernels.measure[(len(items),)](
                buffers.addresses,
                items,
                buffers.partial,
                len(self.indices),
                DTYPE=self._dtype,
                BLOCK=SIZES.block,
                num_warps=SIZES.warps,
            )

    def _merge(self, buffers: Buffers, context: StepContext | None = None) -> None:
        """Moments of units; with a context the coefficients of z-scores, and the receipt."""
        step = StepContext() if context is None else context
        inv_scale, found_inf, receipt = step
        units = self._plan.units
        if len(units):
            kernels.merge[(len(units),)](
                buffers.addresses,
                units,
                buffers.partial,
                buffers.moments,
                buffers.coefficients,
                self._nothing if receipt is None else receipt.sums,
                self._nothing if receipt is None else receipt.row_of_unit,
                buffers.z_score.vector,
                self._nothing if inv_scale is None else inv_scale,
                self._nothing if found_inf is None else found_inf,
                len(self.indices),
                self._all_units,
                DTYPE=self._dtype,
                BLOCK=SIZES.lanes,
                DECIDES=context is not None,
                RECORDS=receipt is not None,
                HAS_INV_SCALE=inv_scale is not None,
                HAS_FOUND_INF=found_inf is not None,
            )

    def _finish(self, buffers: Buffers, kind: int, context: StepContext) -> None:
        inv_scale, found_inf, _ = context
        items = self._plan.finished
        kernels.finish[(len(items),)](
            buffers.addresses,
            items,
            buffers.coefficients,
            buffers.constants,
            self._nothing if inv_scale is None else inv_scale,
            self._nothing if found_inf is None else found_inf,
            len(self.indices),
            self._all_units,
            DTYPE=self._dtype,
            BLOCK=SIZES.block,
            KIND=kind,
            HAS_INV_SCALE=inv_scale is not None,
            HAS_FOUND_INF=found_inf is not None,
            num_warps=SIZES.warps,
        )

    def _advance(self, buffers: Buffers, hyperparameters: Tensor, context: StepContext) -> None:
        """Count a step, and write down the constants of each tensor's update."""
        found_inf = context.found_inf
        self._rule.advance[(-(-len(self.indices) // SIZES.lanes),)](
            buffers.addresses,
            self._groups,
            hyperparameters,
            buffers.constants,
            self._initialized,
            self._nothing if found_inf is None else found_inf,
            len(self.indices),
            BLOCK=SIZES.lanes,
            HAS_FOUND_INF=found_inf is not None,
        )

    def _point_at(self, buffers: Buffers, tensors: Sequence[Tensor | None]) -> None:
        buffers.rows[1].set(self._addresses(tensors))

    def _addresses(self, tensors: Sequence[Tensor | None]) -> list[int]:
        chosen = (tensors[index] for index in self.indices)
        return [0 if tensor is None else tensor.data_ptr() for tensor in chosen]

    def _here(self, context: StepContext) -> StepContext:
        inv_scale, found_inf, receipt = context
        return StepContext(self._moved(inv_scale), self._moved(found_inf), receipt)

    def _moved(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(self.device, non_blocking=True)

    def _on_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self.device)
