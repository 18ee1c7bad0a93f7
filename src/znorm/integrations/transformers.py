"""Hugging Face's Trainer: AdamW with a transform, or one in whatever optimizer it makes.

The Trainer clips, steps, and logs the norm of the gradient before both; the transform runs within
the step, after the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from torch.optim.optimizer import ParamsT

from znorm import optim
from znorm._torch_internals import frames
from znorm.attachment import Attachment, attach, attachment_of
from znorm.integrations.clipping import warn_if_void
from znorm.integrations.versions import warn_if_untested
from znorm.receipts import total
from znorm.transforms.base import Transform

__all__ = ["GradientTransformMixin", "LogReceipt", "adamw"]

Transforms = Transform | Sequence[Transform | None] | None

# Their updates happen in hooks of the backward pass: `step` does nothing.
_STEPS_IN_BACKWARD = ("AdaLomo", "LayerWiseDummyOptimizer", "Lomo")


def adamw(
    transform: Transforms, *, lr: float, log_receipt: bool = True, **options: Any
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """AdamW with a transform, as ``Trainer(optimizer_cls_and_kwargs=...)`` takes it.

    The Trainer gives it its two parameter groups, with and without weight decay, and it asks the
    Trainer for the model, so that rules of ``select`` see names.

    Parameters
    ----------
    transform : transform, or a list of two
        Such as ``znorm.ZNorm()``; a list has one for each of the Trainer's groups, with weight
        decay and without.
    lr : float
        The peak learning rate; the Trainer reads its own ``learning_rate`` for its own optimizers
        alone, and its schedule works on this one.
    log_receipt : bool, default True
        Whether each line of the Trainer's log has ``znorm/norm_before`` and ``znorm/norm_after``;
        each begins the receipt anew, see :class:`LogReceipt`.
    **options
        Of :class:`znorm.optim.AdamW`: ``betas``, ``eps``, ``stochastic_rounding`` and others.

    Returns
    -------
    tuple of type and dict
        The class and its arguments.

    Raises
    ------
    ValueError
        For ``weight_decay``, which the Trainer sets by group, from its own arguments.

    Warns
    -----
    UserWarning
        As training begins, if ``max_grad_norm`` is void by the transform; for a version of
        transformers that is not tested.

    Examples
    --------
    >>> import torch, transformers, znorm
    >>> from znorm.integrations.transformers import adamw
    >>> net = torch.nn.Linear(4, 2)
    >>> args = transformers.TrainingArguments("runs", max_grad_norm=0)
    >>> chosen = adamw(znorm.ZNorm(), lr=1e-4)
    >>> trainer = transformers.Trainer(net, args, optimizer_cls_and_kwargs=chosen)
    """
    warn_if_untested("transformers")
    if "weight_decay" in options:
        raise ValueError(
            "weight_decay: the Trainer sets it by parameter group; give it as "
            "TrainingArguments(weight_decay=...)"
        )
    return _AdamW, {"transform": transform, "lr": lr, "log_receipt": log_receipt, **options}


class _AdamW(optim.AdamW):
    """`znorm.optim.AdamW` that knows the Trainer which makes it, and so the model."""

    def __init__(
        self,
        params: ParamsT,
        *,
        transform: Any,
        log_receipt: bool,
        module: nn.Module | None = None,
        **options: Any,
    ) -> None:
        # The Trainer passes neither itself nor the model, and under FSDP there is no model to
        # train before this moment.
        trainer, model = _trainer_above()
        super().__init__(
            params, transform=transform, module=model if module is None else module, **options
        )
        if trainer is not None and self.attachment is not None:
            _follow(trainer, self.attachment, log_receipt)


def _trainer_above() -> tuple[transformers.Trainer | None, nn.Module | None]:
    """The Trainer whose method is running, and the model that it makes an optimizer for."""
    for frame in frames():
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, transformers.Trainer):
            return trainer, frame.f_locals.get("opt_model", trainer.model)
    return None, None


class GradientTransformMixin:
    """A transform in whatever optimizer a Trainer makes: ``optim=`` and parameter groups stay.

    Parameters
    ----------
    transform : transform, None, or a list of two
        As in :func:`znorm.attach`; None observes, for the receipt.
    log_receipt : bool, default True
        As in :func:`adamw`.
    *args, **options
        Of the Trainer.

    Raises
    ------
    TypeError, ValueError
        As :func:`znorm.attach` does, when the optimizer is made: for an optimizer with a transform
        attached already; for flat shards (FSDP1, DeepSpeed); for optimizers that step in backward.

    Examples
    --------
    >>> import torch, transformers, znorm
    >>> from znorm.integrations.transformers import GradientTransformMixin
    >>> class ZNormTrainer(GradientTransformMixin, transformers.Trainer):
    ...     pass
    >>> net = torch.nn.Linear(4, 2)
    >>> args = transformers.TrainingArguments("runs", optim="adafactor", max_grad_norm=0)
    >>> trainer = ZNormTrainer(net, args, transform=znorm.ZNorm())
    """

    def __init__(
        self, *args: Any, transform: Transforms, log_receipt: bool = True, **options: Any
    ) -> None:
        warn_if_untested("transformers")
        self.gradient_transform = transform
        self.log_receipt = log_receipt
        self.attachment: Attachment | None = None
        super().__init__(*args, **options)
        given: Any = getattr(self, "optimizer", None)
        if given is not None and attachment_of(given) is not None:
            raise ValueError(
                f"optimizers: {type(given).__name__} has {attachment_of(given)!r} already, and "
                f"transform={transform!r} would come on top; leave one of the two out"
            )

    def create_optimizer(self, *args: Any, **options: Any) -> Any:
        """The Trainer's optimizer, the transform attached."""
        optimizer = super().create_optimizer(*args, **options)  # type: ignore[misc]
        if self.attachment is not None and attachment_of(optimizer) is self.attachment:
            return optimizer  # a second train()
        if type(optimizer).__name__ in _STEPS_IN_BACKWARD:
            raise TypeError(
                f"optim: {type(optimizer).__name__} updates in the backward pass, before a "
                "transform could run; choose another, or znorm.in_backward in a loop of your own"
            )
        trainer: Any = self
        model = args[0] if args else options.get("model")
        self.attachment = attach(
            optimizer, self.gradient_transform, model=trainer.model if model is None else model
        )
        _follow(trainer, self.attachment, self.log_receipt)
        return optimizer


def _follow(trainer: transformers.Trainer, attachment: Attachment, log_receipt: bool) -> None:
    """Say what the Trainer's clip comes to, and let its log tell what is stepped on."""
    limit = trainer.args.max_grad_norm
    if limit:
        warn_if_void(
            attachment,
            f"TrainingArguments(max_grad_norm={limit})",
            "The grad_norm of the log is of before, too; znorm/norm_after is of what is stepped "
            "on. ",
        )
    callbacks = trainer.callback_handler.callbacks
    if log_receipt and not any(isinstance(one, LogReceipt) for one in callbacks):
        # First, so that those that report to files and servers see what it adds.
        callbacks.insert(0, LogReceipt())


class LogReceipt(transformers.TrainerCallback):  # type: ignore[misc]
    """Adds ``znorm/norm_before``, ``znorm/norm_after`` and ``znorm/clipped`` to the Trainer's log.

    They are :func:`znorm.receipts.total` of the steps since the last line of the log, of the
    tensors that the transform acts on. :func:`adamw` and :class:`GradientTransformMixin` add it.
    """

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        # Lines of evaluations and of the end have no steps to tell of.
        if optimizer is None or logs is None or "loss" not in logs:
            return
        attachment = attachment_of(optimizer)
        if attachment is None:
            return
        found = total(attachment.receipt(reset=True))
        added = {f"znorm/{name}": value for name, value in found.items()}
        logs.update(added)
        state.log_history[-1].update(added)
