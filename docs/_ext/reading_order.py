"""The pages before and after a page: along those written by hand, past those of single names."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx

SINGLE = "reference/generated/xlstm"


def order(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Set the pages before and after a page, which Sphinx takes from its navigation."""
    # of each page, in their order: the page above, before and after; builders of files have them
    related: dict[str, list[str | None]] = getattr(app.builder, "relations", {})
    pages = [None, *(one for one in related if not one.startswith(SINGLE)), None]
    if page in related:
        at = pages.index(page) if page in pages else None
        related[page][1:] = [pages[at - 1], pages[at + 1]] if at else [None, None]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", order)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
