"""Formulas as MathML, which browsers display without a script and without a network."""

import html
import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import latex2mathml

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ACCENTS = set("ˆ˜˙¨ˉ¯ˇ˘→~^")
ElementTree.register_namespace("", NAMESPACE)


def mathml(formula: str, block: bool) -> str:
    r"""Return a formula as MathML.

    The converter of docutils writes the subscript of `\hat x_i` below x, as that of a sum.
    """
    markup = latex2mathml.tex2mathml(formula, as_block=block)
    # XML knows no names of characters but these.
    named = re.compile(r"&(?!(?:lt|gt|amp|quot|apos);)\w+;")
    root = ElementTree.fromstring(named.sub(lambda match: html.unescape(match[0]), markup))
    for part in root.iter(f"{{{NAMESPACE}}}munderover"):
        base, below, above = part
        if (above.text or "") in ACCENTS:
            part.tag = f"{{{NAMESPACE}}}msub"
            accented = ElementTree.Element(f"{{{NAMESPACE}}}mover")
            accented.extend([base, above])
            part[:] = [accented, below]
    for part in root.iter(f"{{{NAMESPACE}}}msup"):
        base, above = part
        if base.tag == f"{{{NAMESPACE}}}msub":
            part.tag = f"{{{NAMESPACE}}}msubsup"
            part[:] = [*base, above]
    return ElementTree.tostring(root, encoding="unicode")


def _visit(self: Any, node: nodes.Element) -> None:
    """Write inline or displayed mathematics, and skip the node."""
    block = isinstance(node, nodes.math_block)
    markup = mathml(node.astext().strip(), block)
    self.body.append(f'<div class="math">{markup}</div>' if block else markup)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer, `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_visit, None), (_visit, None))
    return {"parallel_read_safe": True}
