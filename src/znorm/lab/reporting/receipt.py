"""A receipt as a figure: what a transform did to each layer, by depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from znorm.lab.errors import ConfigurationError
from znorm.lab.reporting.svg import AMBER, BLUE, GREY, drawing
from znorm.lab.text import readable

__all__ = ["draw_receipt"]

_NAMES_SHOWN = 40


def draw_receipt(receipt: Mapping[str, Mapping[str, float]], file: str | Path) -> Path:
    """Draw gradient norms, moments, angles and clips of each tensor, from the first to the last.

    Parameters
    ----------
    receipt : dict
        Of ``attachment.receipt()``.
    file : path
        Its ending says the format: ``.svg``, ``.png`` or ``.pdf``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ConfigurationError
        If the receipt is empty, or matplotlib writes no such format.

    Examples
    --------
    >>> import tempfile, torch, znorm
    >>> from znorm import lab
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> attachment = znorm.attach(optimizer, znorm.ZNorm(), model=net)
    >>> net(torch.randn(8, 4)).square().mean().backward()
    >>> optimizer.step()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lab.draw_receipt(attachment.receipt(), folder + "/depth.svg").name
    'depth.svg'
    """
    if not receipt:
        raise ConfigurationError("receipt: it is empty; take a step with the transform attached")
    names = [readable(name) for name in receipt]
    file = Path(file)
    clipped = any(values["clipped"] for values in receipt.values())
    with drawing(**{"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        width = min(16.0, max(6.0, 2.5 + 0.22 * len(names)))
        figure = Figure(figsize=(width, 7.2 if clipped else 5.8), layout="constrained")
        panels = figure.subplots(4 if clipped else 3, 1, sharex=True)
        norms, moments, angles = panels[:3]
        _lines(norms, receipt, {"norm_before": "before", "norm_after": "after"}, "norm")
        _lines(moments, receipt, {"std": "deviation", "mean": "mean, absolute"}, "entries before")
        steps = max(int(values["steps"]) for values in receipt.values())
        norms.set_title(f"Gradients by depth, means over {steps:,} steps", loc="left", fontsize=11)
        positions = range(len(names))
        cosines = [values["cosine"] for values in receipt.values()]
        angles.plot(positions, cosines, ".-", color=BLUE)
        angles.set_ylabel("cosine of\nthe two")
        angles.set_ylim(min(0.0, *cosines) - 0.05, 1.05)
        if clipped:
            shares = [100 * values["clipped"] for values in receipt.values()]
            panels[3].bar(positions, shares, color=AMBER)
            panels[3].set_ylabel("steps in which\na clip acted, %")
            panels[3].set_ylim(0, 105)
        for axes in panels:
            axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        last = panels[-1]
        if len(names) <= _NAMES_SHOWN:
            last.set_xticks(list(positions), names, rotation=90, fontsize=8, parse_math=False)
        else:
            last.set_xlabel(
                f"{len(names)} tensors, from {names[0]} to {names[-1]}", parse_math=False
            )
        try:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else {})
        except ValueError as error:
            raise ConfigurationError(f"file: {file}: {str(error).splitlines()[0]}") from None
    return file


def _lines(
    axes: Any, receipt: Mapping[str, Mapping[str, float]], fields: Mapping[str, str], label: str
) -> None:
    """Sizes on a logarithmic axis, which has no place for zeros."""
    # The first has larger marks, to be seen where the second covers it.
    looks = ((BLUE, 9), (AMBER, 4))
    for (key, name), (colour, mark) in zip(fields.items(), looks, strict=True):
        sizes = [abs(values[key]) or math.nan for values in receipt.values()]
        axes.plot(range(len(sizes)), sizes, ".-", color=colour, label=name, markersize=mark)
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.legend(frameon=False, ncols=2, fontsize=9, loc="best")
