"""Small pictures for the index of the gallery: each has the first picture of a page, which a
notebook drew.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)
SIZE = (480, 300)  # pixels, twice the space that it takes
DRAWN = re.compile(r'src="\.\./(_images/[^"]+\.png)"')


def write(app: Sphinx, error: Exception | None) -> None:
    """Write _images/gallery-PAGE.png for each page of the gallery: a picture in the middle of a
    white one of `SIZE`.
    """
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for page in sorted(app.env.found_docs):
        folder, _, name = page.partition("/")
        if folder == "gallery" and name != "index":
            drawn = DRAWN.search((site / f"{page}.html").read_text(encoding="utf-8"))
            if drawn is None:
                log.warning("%s has no picture for the index of the gallery", page)
                continue
            picture = Image.open(site / drawn[1]).convert("RGBA")
            picture.thumbnail(SIZE)
            small = Image.new("RGB", SIZE, "white")
            small.paste(
                picture,
                tuple((a - b) // 2 for a, b in zip(SIZE, picture.size, strict=True)),
                picture,
            )
            small.save(site / f"_images/gallery-{name}.png")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
