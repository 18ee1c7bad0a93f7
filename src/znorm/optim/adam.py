"""Adam and AdamW that transform each gradient before the update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from znorm.attachment import Attachment, attach, attachment_of
from znorm.transforms.composition import Transform

__all__ = ["Adam", "AdamW"]


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` with a gradient transform; with ZNorm, the paper's Algorithm 1.

    The transform acts before weight decay and momentum see the gradient. ``state_dict`` is
    torch's own: checkpoints load into either class.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, **options
        As in ``torch.optim.Adam``; ``options`` are its keyword arguments (``fused`` and others).
    transform : transform, optional
        Such as ``znorm.ZNorm()``; without one this is plain Adam.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations and transposed convolutions.

    Raises
    ------
    TypeError, ValueError
        As ``torch.optim.Adam`` and :func:`znorm.attach` do.

    References
    ----------
    Yun and Kim, arXiv 2408.01215, Algorithm 1. Kingma and Ba, arXiv 1412.6980.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(4, 2)
    >>> optimizer = znorm.optim.Adam(net.parameters(), lr=1e-3, transform=znorm.ZNorm(), model=net)
    >>> net(torch.randn(8, 4)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer.attachment.describe().rows[0]["transformed"]
    True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        transform: Transform | None = None,
        model: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
        attach(self, transform, model=model)

    @property
    def attachment(self) -> Attachment | None:
        """The transform at work here."""
        return attachment_of(self)


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` with a gradient transform; the decay does not see the transform.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, **options
        As in ``torch.optim.AdamW``; ``options`` are its keyword arguments (``fused`` and others).
    transform : transform, optional
        Such as ``znorm.ZNorm()``; without one this is plain AdamW.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations and transposed convolutions.

    Raises
    ------
    TypeError, ValueError
        As ``torch.optim.AdamW`` and :func:`znorm.attach` do.

    References
    ----------
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(4, 2)
    >>> optimizer = znorm.optim.AdamW(net.parameters(), lr=1e-3, transform=znorm.ZNorm())
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        transform: Transform | None = None,
        model: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
        attach(self, transform, model=model)

    @property
    def attachment(self) -> Attachment | None:
        """The transform at work here."""
        return attachment_of(self)
