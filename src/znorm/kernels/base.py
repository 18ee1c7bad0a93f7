"""The contract of compiled kernels: what a backend offers, and what it is told.

A backend is a folder with an object of this protocol, and a line in `registry`. It knows tensors
and the slices of them that are layers; what a transform, a layout or an optimizer is it need not
know. One self-test (`selftest`) tries each backend before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from znorm.layers import LayerSlice
from znorm.transforms.base import ZScore

__all__ = [
    "Backend",
    "Coefficients",
    "ComparingBatch",
    "Decision",
    "KernelBatch",
    "RunningSums",
    "StepContext",
    "Trial",
    "UpdateRule",
]


class Coefficients(NamedTuple):
    """The map ``(g - center) * scale``: each of shape (units of the layout,)."""

    center: Tensor
    scale: Tensor


# What is done to the gradients of a batch: a z-score that kernels decide by themselves, unit by
# unit, or the coefficients of all units.
Decision: TypeAlias = ZScore | Coefficients


class RunningSums(Protocol):
    """The sums that a receipt keeps, which kernels add to where they decide by themselves.

    Attributes
    ----------
    sums : float64 Tensor of shape (tensors, 7)
        Norm before, norm after, mean, standard deviation, cosine, clipped, steps.
    row_of_unit : int64 Tensor of shape (units of the layout,)
        The row of ``sums`` that each unit belongs to: a unit's number is no row.
    """

    sums: Tensor
    row_of_unit: Tensor


class StepContext(NamedTuple):
    """The loss scale, the overflow flag and the receipt of one step.

    Parameters
    ----------
    inv_scale : Tensor of one element, or None
        What gradients are multiplied by before all else: the inverse of a loss scale.
    found_inf : Tensor of one element, or None
        Where it is not 0 the step is skipped: no weight changes, and no receipt.
    receipt : RunningSums, or None
        To which a step is added that kernels decide by themselves.
    """

    inv_scale: Tensor | None = None
    found_inf: Tensor | None = None
    receipt: RunningSums | None = None


@dataclass(frozen=True)
class Trial:
    """A step that can be told beforehand: what a self-test compares a backend's with.

    Parameters
    ----------
    group : mapping
        A parameter group's options.
    gradient, weights : tuple of float
        What is stepped on from weights of 0, and the weights after it; such as float16 holds.
    """

    group: Mapping[str, Any]
    gradient: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer's update, as data: what its states are called and what it is told.

    Backends look a rule up by its name, and have the arithmetic; `Backend.update_rules` lists those
    that one has. A rule that is in none is stepped by torch's own optimizer.

    Parameters
    ----------
    name : str
        Such as "adam".
    state_names : tuple of str
        The state tensors that are as large as the parameter, two at most, in the order in which
        kernels take them.
    counts_steps : bool
        Whether a state holds "step", a float32 counter.
    init_state : callable (group, state, parameter) -> bool
        Fills an empty state as torch's optimizer does; whether it was filled before.
    hyperparameters : callable (group) -> list
        The numbers of a parameter group that the kernels read, or tensors on the device.
    trial : Trial
    states_of : callable (group) -> tuple of str, optional
        Those of ``state_names`` that a group's options ask for, where that is not all of them: none
        for SGD without momentum.
    unsupported : tuple of str
        Options of a group that kernels do not know: where one is set, torch's own step is taken.
    """

    name: str
    state_names: tuple[str, ...]
    counts_steps: bool
    init_state: Callable[[dict[str, Any], dict[str, Any], Tensor], bool]
    hyperparameters: Callable[[dict[str, Any]], list[Any]]
    trial: Trial
    states_of: Callable[[dict[str, Any]], tuple[str, ...]] | None = None
    unsupported: tuple[str, ...] = ()

    def names_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The states that parameters of a group have."""
        return self.state_names if self.states_of is None else self.states_of(group)


class KernelBatch(Protocol):
    """Tensors of one dtype on one device that one call of a kernel serves.

    Every list of tensors that a batch takes is that of the whole layout, in its order, None where
    one is missing. Nothing waits for the device.

    Attributes
    ----------
    indices : sequence of int
        The tensors that it serves.
    device : torch.device
    clamps : bool
        Whether it has `clamp_`.
    """

    @property
    def indices(self) -> Sequence[int]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def clamps(self) -> bool: ...

    def measure(self, tensors: Sequence[Tensor | None], moments: Tensor) -> None:
        """Write mean and m2 of the batch's units to ``moments``, of shape (2, units)."""
        ...

    def apply_affine_(self, tensors: Sequence[Tensor | None], coefficients: Coefficients) -> None:
        """Write ``((g - high) - low) * scale`` in float32, rounded once; the center is in two."""
        ...

    def normalize_(
        self, tensors: Sequence[Tensor | None], z_score: ZScore, context: StepContext
    ) -> None:
        """Measure, decide and write z-scores tensor by tensor; each tensor is one unit."""
        ...

    def clamp_(self, tensors: Sequence[Tensor | None], bound: float) -> Tensor:
        """Clamp to ``[-bound, bound]``, and tell what was read.

        Returns
        -------
        float64 Tensor of shape (indices, 5)
            Sums of g, g^2, g * clamped and clamped^2, and how many entries were changed.
        """
        ...

    def bind_state(
        self,
        rule: UpdateRule,
        parameters: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        groups: Sequence[int],
        initialized: Sequence[bool],
    ) -> None:
        """Take down where weights and states lie, for steps of a rule.

        Parameters
        ----------
        rule : UpdateRule
        parameters : sequence of Tensor
        states : sequence of dict
            Their tensors are as large as the parameter and lie as it does; they live as long as
            the batch is used.
        groups : sequence of int
            The number of each parameter's group.
        initialized : sequence of bool
            Whether a state was filled by an earlier step.
        """
        ...

    def update_(
        self,
        gradients: Sequence[Tensor | None],
        hyperparameters: Sequence[Sequence[Any]],
        decision: Decision,
        context: StepContext,
    ) -> None:
        """One step of the rule that is bound, on transformed gradients, which are read alone.

        Parameters
        ----------
        gradients : sequence of Tensor or None
        hyperparameters : sequence of sequences of numbers
            Of each parameter group, as the rule gives them.
        decision : ZScore or Coefficients
            What is done to gradients. Coefficients hold ``context.inv_scale`` already, but for
            tensors that have no units.
        context : StepContext
        """
        ...


@runtime_checkable
class ComparingBatch(Protocol):
    """A batch that can also keep gradients and tell what has become of them.

    Receipts need that of what no moments tell; of batches that cannot, torch reads each tensor.
    """

    def copy(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """A copy of the batch's tensors for `compare`, all in one."""
        ...

    def compare(self, kept: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        """Read the tensors as they were when they were copied, and as they are.

        Returns
        -------
        float64 Tensor of shape (indices, 5)
            Sums of g, g^2, g * h and h^2, g before and h now, and how many entries differ.
        """
        ...


class Backend(Protocol):
    """Compiled kernels for a kind of device.

    Attributes
    ----------
    name : str
        As ``describe()`` shows it.
    dtypes : collection of torch.dtype
    update_rules : collection of str
        The names of the rules whose arithmetic it has.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtypes(self) -> Collection[torch.dtype]: ...
    @property
    def update_rules(self) -> Collection[str]: ...

    def batch(
        self,
        indices: Sequence[int],
        tensors: Sequence[Tensor],
        slices: Sequence[Sequence[LayerSlice]],
        *,
        units: int,
        measures: bool,
    ) -> KernelBatch:
        """A batch of tensors of one dtype on one device, all of which `memory.fits`.

        Parameters
        ----------
        indices : sequence of int
            Their places in the layout.
        tensors : sequence of Tensor
            Of these places. Only where they lie in memory is looked at.
        slices : sequence of sequences of LayerSlice
            What of each is measured; none where nothing is.
        units : int
            Of the layout.
        measures : bool
            Whether units will be measured here; else coefficients are given.
        """
        ...

    def rests_on(self) -> Any:
        """The circumstances that a batch was made for, such as a number of threads."""
        ...

    def first_use(self, dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
        """A context round the self-test of a dtype, in which kernels are compiled."""
        ...
