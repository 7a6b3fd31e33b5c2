"""The heading and the text of every section, for the excerpts of the search (_static/search.js): in a
folder no page may read another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lxml import html
from sphinx.application import Sphinx


def sections(path: Path) -> dict[str, str]:
    """Return the heading and the text of each section of a page by its anchor, in two lines, without
    the sections in it.
    """
    page = html.parse(path).getroot()
    for silent in page.xpath("//*[@class='headerlink'] | //article//script | //article//style"):
        silent.drop_tree()
    found = {}
    for section in reversed(page.xpath("//article//section[@id]")):  # those in others first
        heading = section.xpath("h1 | h2 | h3 | h4 | h5 | h6")[0]
        title = heading.text_content()
        heading.drop_tree()
        lines = (" ".join(text.split()) for text in (title, section.text_content()))
        found[f"#{section.get('id')}"] = "\n".join(lines)
        section.drop_tree()
    return dict(reversed(found.items()))


def write(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        site = Path(app.outdir)
        texts = {
            f"{page}.html": sections(site / f"{page}.html") for page in sorted(app.env.found_docs)
        }
        found = json.dumps(texts, ensure_ascii=False)
        (site / "_static" / "search_texts.js").write_text(f"Search.texts = {found};\n", "utf-8")


def load(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Let the page of the search load its scripts."""
    if page == "search":
        for script in ("search_texts.js", "search.js"):
            app.add_js_file(script, loading_method="defer")  # behind Sphinx's own


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", load)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
