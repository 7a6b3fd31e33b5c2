"""Formulas as MathML, which browsers draw themselves: a page needs no script and no network for
them.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
# the place between a function and an argument that has no bracket
APPLIED = re.compile(r"<mo>(&ApplyFunction;|\u2061)</mo>(?=\s*<m[^o])")


def formula(node: nodes.Element, block: bool) -> str:
    """Return the MathML of a formula; an error in it is a warning, and so fails the build."""
    try:
        return APPLIED.sub(
            r'<mo rspace="0.17em">\1</mo>', tex2mathml(node.astext(), as_block=block)
        )
    except MathError as error:
        LOGGER.warning("formula %r: %s", node.astext(), error, location=node)
        return ""


def inline(writer: Any, node: nodes.Element) -> None:
    writer.body.append(formula(node, block=False))
    raise nodes.SkipNode


def display(writer: Any, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math">{formula(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline, None), block_renderers=(display, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
