"""Losses and metrics of the user's own, by the place of a function: ``package.module:function``.

They are imported where the user's own command names them (:mod:`znorm.lab.trust`), and tried once
before anything is trained.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from znorm.lab.errors import ConfigurationError
from znorm.lab.importing import import_users_module
from znorm.lab.registry import unknown

__all__ = [
    "check_names",
    "definitions",
    "is_own",
    "loss_at",
    "metric_name",
    "own_scores",
    "probabilities",
    "try_loss",
    "try_metrics",
]

_LONGEST = 200  # letters of a definition


def is_own(name: object) -> bool:
    """Tell whether a loss or metric goes by its place.

    >>> is_own("scores:recall"), is_own("tversky")
    (True, False)
    """
    return isinstance(name, str) and ":" in name


def metric_name(place: str) -> str:
    """The name of a metric in files and on pages: that of its function.

    >>> metric_name("package.scores:recall")
    'recall'
    """
    return place.partition(":")[2]


@lru_cache(maxsize=64)
def loss_at(place: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss at a place, once a device: ``loss(outputs, targets)``, outputs in float32.

    Of a class of ``torch.nn.Module``, or a function that needs no argument and makes one, it is
    what that makes, moved to the device.

    Raises
    ------
    ConfigurationError
        For what cannot be imported or called so.
    """
    found = _imported("loss", place)
    if (isinstance(found, type) and issubclass(found, nn.Module)) or _needs_nothing(found):
        try:
            found = found()
        except Exception as error:
            raise ConfigurationError(f"loss {place}: cannot be made: {_cause(error)}") from error
    if isinstance(found, nn.Module):
        if any(parameter.requires_grad for parameter in found.parameters()):
            raise ConfigurationError(
                f"loss {place}: has parameters, which nothing trains; make buffers of them"
            )
        found = found.to(device).train()
    elif isinstance(found, type) or not callable(found):
        raise ConfigurationError(
            f"loss {place}: expected a function (outputs, targets) or a class of "
            f"torch.nn.Module, found {found!r}"
        )
    function = found.forward if isinstance(found, nn.Module) else found
    _check_arity("loss", place, function)
    made: Callable[[Tensor, Tensor], Tensor] = found
    return lambda outputs, targets: made(outputs.float(), targets)


def try_loss(place: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss that does not give one finite number, and a gradient, of such outputs.

    Raises
    ------
    ConfigurationError
    """
    tried = outputs.detach().clone().requires_grad_()
    try:
        loss: Any = loss_at(place, str(outputs.device))(tried, targets)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"loss {place}: fails on outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)}: {_cause(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.dim():
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigurationError(
            f"loss {place}: expected one number as a tensor without dims, found {found}; take the "
            "mean over the batch"
        )
    if not loss.isfinite():
        raise ConfigurationError(f"loss {place}: gives {loss.item()} for ordinary outputs")
    if not loss.requires_grad:
        raise ConfigurationError(
            f"loss {place}: no gradient follows from it; compute it of the outputs, in torch"
        )


def own_scores(places: Sequence[str], shown: Tensor, targets: Tensor) -> dict[str, float]:
    """The metrics at these places of one part, by name; one that is nan or infinite is left out.

    Parameters
    ----------
    places : sequence of str
    shown : Tensor
        As :func:`probabilities` gives them, on the CPU.
    targets : Tensor
        Labels (N,), or masks (N, H, W).

    Raises
    ------
    ValueError
        Of a metric that fails, or gives something else than a number.
    """
    found = {metric_name(place): _score(place, shown, targets) for place in places}
    return {name: number for name, number in found.items() if math.isfinite(number)}


def _score(place: str, shown: Tensor, targets: Tensor) -> float:
    metric = _metric_at(place)
    try:
        # Copies: what one changes in place must not be the next one's.
        found: Any = metric(shown.clone(), targets.clone())
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"metric {place}: fails on probabilities of shape {tuple(shown.shape)} and targets of "
            f"shape {tuple(targets.shape)}: {_cause(error)}"
        ) from error
    shape = getattr(found, "shape", None)
    if shape == ():
        found = found.item()  # of a tensor, or numpy's
    if isinstance(found, bool) or not isinstance(found, int | float):
        said = type(found).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"metric {place}: expected one number, found {said}")
    return float(found)


def try_metrics(places: Sequence[str], outputs: Tensor, targets: Tensor) -> None:
    """Refuse metrics that do not give a finite number of such outputs.

    Raises
    ------
    ConfigurationError
    """
    try:
        scores = own_scores(places, probabilities(outputs.detach()).cpu(), targets.cpu())
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    for place in places:
        if metric_name(place) not in scores:
            raise ConfigurationError(f"metric {place}: gives nan or inf for ordinary outputs")


def probabilities(outputs: Tensor) -> Tensor:
    """The outputs of a net as probabilities, which metrics get.

    Of one channel, a mask of yes and no, the sigmoid without the channel; of several the softmax.

    >>> import torch
    >>> probabilities(torch.zeros(1, 1, 2, 2)).shape, probabilities(torch.zeros(1, 2)).tolist()
    (torch.Size([1, 2, 2]), [[0.5, 0.5]])
    """
    wide = outputs.float()
    return wide.sigmoid().squeeze(1) if wide.shape[1] == 1 else wide.softmax(1)


def definitions(places: Sequence[str]) -> dict[str, str]:
    """A sentence on each metric by its name: the first line of the function's docstring."""
    found = {}
    for place in places:
        lines = (inspect.getdoc(_metric_at(place)) or "").strip().splitlines()
        text = lines[0].strip() if lines else "a metric of the user's own"
        found[metric_name(place)] = f"{text[:_LONGEST]} ({place})"
    return found


def _metric_at(place: str) -> Callable[..., Any]:
    found = _imported("metric", place)
    if isinstance(found, type) or not callable(found):
        raise ConfigurationError(
            f"metric {place}: expected a function (probabilities, targets), found {found!r}"
        )
    _check_arity("metric", place, found)
    function: Callable[..., Any] = found
    return function


def _imported(kind: str, place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        home = import_users_module(module)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"{kind} {place}: cannot be imported ({_cause(error)})") from None
    found = getattr(home, name, None)
    if found is None:
        public = [key for key, value in vars(home).items() if callable(value) and key[0] != "_"]
        raise unknown(f"function of {module}", name, public)
    return found


def _needs_nothing(function: Any) -> bool:
    """Tell whether a function takes no argument: it then makes what is called."""
    try:
        return callable(function) and not inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _check_arity(kind: str, place: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # of what is compiled none is known
    try:
        signature.bind(None, None)
    except TypeError:
        first = "outputs" if kind == "loss" else "probabilities"
        raise ConfigurationError(
            f"{kind} {place}: is called with ({first}, targets), and takes {signature}"
        ) from None


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)[:200]


def check_names(metrics: Sequence[str], taken: Mapping[str, object]) -> None:
    """Refuse metrics that are not written as places, or whose names others have.

    Raises
    ------
    ConfigurationError
    """
    names = [metric_name(place) for place in metrics]
    for place, name in zip(metrics, names, strict=True):
        module = place.partition(":")[0]
        if not (name.isidentifier() and all(one.isidentifier() for one in module.split("."))):
            raise ConfigurationError(
                f"metrics: expected package.module:function, found {place!r}; scores of znorm's "
                "own are on every page"
            )
        if name in taken or names.count(name) > 1:
            raise ConfigurationError(
                f"metric {place}: there is another score of the name {name}; rename the function"
            )
