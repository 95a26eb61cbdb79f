"""Formulas as MathML, which browsers display without a script and without a network."""

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def _visit(self: Any, node: nodes.Element) -> None:
    """Write inline or displayed mathematics, and skip the node."""
    block = isinstance(node, nodes.math_block)
    markup = latex2mathml.tex2mathml(node.astext().strip(), as_block=block)
    self.body.append(f'<div class="math">{markup}</div>' if block else markup)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer, `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_visit, None), (_visit, None))
    return {"parallel_read_safe": True}
