"""PyTorch Lightning: a callback that attaches a transform to the module's optimizers.

Lightning clips within the closure that it gives to ``optimizer.step``; the transform runs after
that closure, right before the update.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from znorm.attachment import Attachment, attach, attachment_of
from znorm.integrations.clipping import warn_if_void
from znorm.integrations.versions import warn_if_untested
from znorm.receipts import by_tag
from znorm.transforms.base import Transform

# One library under two names, whose callbacks are two classes: the name that the script has used.
if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback

    _DISTRIBUTION = "pytorch-lightning"
else:
    from lightning.pytorch import Callback

    _DISTRIBUTION = "lightning"

__all__ = ["GradientTransform"]


class GradientTransform(Callback):  # type: ignore[misc]
    """Attaches a transform to each optimizer of the module, as training begins.

    Parameters
    ----------
    transform : transform, None, or a list of them
        As in :func:`znorm.attach`: a list has one for each parameter group, None observes.
    log_receipt : bool, default False
        Whether the trainer's loggers get the receipt of each tensor, as ``znorm/FIELD/NAME``, every
        ``log_every_n_steps`` steps, of the steps since. Reading it waits for the device.

    Attributes
    ----------
    attachments : tuple of Attachment
        One for each optimizer, while a module is trained.

    Raises
    ------
    ValueError, TypeError
        As training begins: if two of these callbacks are given (the very same one twice Lightning
        refuses itself), if an optimizer has a transform already, and as :func:`znorm.attach` does.

    Warns
    -----
    UserWarning
        If ``gradient_clip_val`` is void by the transform; for a version of Lightning that is not
        tested. Lightning itself warns where a run goes on from a checkpoint without this callback,
        or with another transform.

    Examples
    --------
    >>> import lightning, znorm
    >>> from znorm.integrations.lightning import GradientTransform
    >>> callback = GradientTransform(znorm.ZNorm(), log_receipt=True)
    >>> trainer = lightning.Trainer(callbacks=[callback], logger=False)
    """

    def __init__(
        self,
        transform: Transform | Sequence[Transform | None] | None,
        log_receipt: bool = False,
    ) -> None:
        warn_if_untested(_DISTRIBUTION)
        self.transform = transform
        self.log_receipt = log_receipt
        self.attachments: tuple[Attachment, ...] = ()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        several = [one for one in trainer.callbacks if isinstance(one, GradientTransform)]
        if len(several) > 1:
            raise ValueError(
                f"callbacks: found {len(several)} of GradientTransform; give one, with "
                "znorm.chain(first, second) for several transforms"
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            present = attachment_of(optimizer)
            if present is not None:
                raise ValueError(
                    f"callbacks: GradientTransform({self.transform!r}) would come on top of "
                    f"{present!r}, which the optimizer of configure_optimizers has already; leave "
                    "one of the two out"
                )
        self.attachments = tuple(
            attach(optimizer, self.transform, model=pl_module) for optimizer in trainer.optimizers
        )
        limit = trainer.gradient_clip_val
        if limit and trainer.gradient_clip_algorithm != "value":
            for attachment in self.attachments:
                warn_if_void(attachment, f"Trainer(gradient_clip_val={limit})")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        step = trainer.global_step
        if not self.log_receipt or step % trainer.log_every_n_steps:
            return
        found: dict[str, float] = {}
        for attachment in self.attachments:
            found.update(by_tag(attachment.receipt(reset=True)))
        # Between the batches of one step there is nothing new.
        for logger in trainer.loggers if found else ():
            logger.log_metrics(found, step=step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for attachment in self.attachments:
            attachment.detach()

    @property
    def state_key(self) -> str:
        """The name in a checkpoint: a run that goes on with another transform is warned, too."""
        return str(self._generate_state_key(transform=repr(self.transform)))

    def state_dict(self) -> dict[str, Any]:
        """The transform's text: Lightning warns if a run that goes on lacks this callback."""
        return {"transform": repr(self.transform)}
