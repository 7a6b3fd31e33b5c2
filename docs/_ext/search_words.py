"""The words of search.toml, which people type for a page or a section: the search puts it first."""

from __future__ import annotations

from docutils import nodes
from sphinx.addnodes import index
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def check(app: Sphinx, *_: object) -> None:
    """Fail where search.toml names a page that is not there."""
    for place in app.config.search_words:
        if place.partition("#")[0] not in app.env.found_docs:
            LOGGER.warning("search.toml: there is no page for %r", place)


def add(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Add the words of a page to it as main entries of an index, singular and plural; fail where it
    lacks a section that search.toml names.
    """
    sections = {name for section in tree.findall(nodes.section) for name in section["ids"]}
    for place, words in app.config.search_words.items():
        name, _, section = place.partition("#")
        if name == page:
            if section and section not in sections:
                known = ", ".join(sorted(sections))
                LOGGER.warning("search.toml: no section for %r; %s has %s", place, page, known)
            forms = {form for word in words for form in (word, f"{word.removesuffix('s')}s")}
            tree += index(
                entries=[("single", form, section, "main", None) for form in sorted(forms)]
            )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("search_words", {}, "html", dict)
    app.connect("env-before-read-docs", check)
    app.connect("doctree-resolved", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
