"""Links to files outside docs/, and the files of a site that no page makes: llms.txt and
sitemap.xml.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

from docutils import nodes
from sphinx.addnodes import pending_xref, toctree
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

# files outside docs/ that are pages of the site
PAGES = {
    "CHANGELOG": "project/changelog",
    "CONTRIBUTING": "project/contributing",
    "NOTES": "project/measurements",
}


class Outside(SphinxPostTransform):
    """Lead links to files outside docs/ to the pages that show them."""

    default_priority = 1  # before MyST looks for the files

    def run(self, **options: Any) -> None:
        for link in self.document.findall(pending_xref):
            name = PurePosixPath(link["reftarget"]).stem
            if link["reftype"] == "myst" and name in PAGES:
                link["refdomain"] = "doc"
                link["reftarget"] = PAGES[name]
                link.setdefault("reftargetid", None)


def summary(tree: nodes.document) -> str:
    """Return the first paragraph of a page in one line."""
    first = next(iter(tree.findall(nodes.paragraph)), None)
    return "" if first is None else " ".join(first.astext().split())


def section(app: Sphinx, page: str) -> list[str]:
    """Return a line of Markdown for a page and for each page below it, in the order of the
    navigation.
    """
    tree = app.env.get_doctree(page)  # which takes its time
    found = [f"- [{app.env.titles[page].astext()}]({page}.html): {summary(tree)}"]
    for listed in tree.findall(toctree):
        for _, below in listed["entries"]:
            if below in app.env.titles and "generated" not in below:
                found += section(app, below)
    return found


def llms(app: Sphinx) -> str:
    """Return llms.txt: the site for a reader that takes text, with a heading for each section."""
    tree = app.env.get_doctree(app.config.root_doc)
    parts = [f"# {app.config.project}\n\n> {summary(tree)}\n"]
    for listed in tree.findall(toctree):
        for title, page in listed["entries"]:
            lines = "\n".join(section(app, page))
            parts.append(f"## {title or app.env.titles[page].astext()}\n\n{lines}\n")
    return "\n".join(parts)


def sitemap(app: Sphinx) -> str:
    """Return sitemap.xml, whose addresses begin with that of the site (DOCS_URL)."""
    base = os.environ.get("DOCS_URL", "http://localhost:8000/").rstrip("/")
    pages = sorted(app.env.found_docs)
    urls = "\n".join(f"  <url><loc>{escape(f'{base}/{page}.html')}</loc></url>" for page in pages)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}\n</urlset>\n'
    )


def write(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir)
        (folder / "llms.txt").write_text(llms(app), encoding="utf-8")
        (folder / "sitemap.xml").write_text(sitemap(app), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(Outside)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
