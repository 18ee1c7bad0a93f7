"""Formulas as MathML, which browsers draw by themselves: no script from elsewhere."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)


def _mathml(node: Any, *, block: bool) -> str:
    # docutils knows the dots under their second name alone.
    formula = re.sub(r"\\dots\b", r"\\ldots", node.astext())
    try:
        return str(tex2mathml(formula, as_block=block))
    except MathError as error:
        log.warning("formula: %s", error, location=node)
        return f"<code>{escape(formula)}</code>"


def _inline(self: Any, node: Any) -> None:
    self.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _block(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{_mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline, None), block_renderers=(_block, None)
    )
    app.config["html_math_renderer"] = "mathml"
    return {"parallel_read_safe": True}
