"""Pages of single names name their topic: the page of the reference, whose text links to the guide."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"^   (xlstm[\w.]*)$", re.MULTILINE)
GUIDE = re.compile(r"\[([^\]]+)\]\(\.\./(\w+)\.md")


def topics(folder: Path) -> dict[str, str]:
    """Return a sentence in reStructuredText for each public name that a page of a folder lists."""
    found = {}
    for page in folder.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        guides = " and ".join(f":doc:`{words} </{name}>`" for words, name in GUIDE.findall(text.split("```")[0]))
        for name in NAME.findall(text):
            found[name] = f"Topic: :doc:`{title} </reference/{page.stem}>`. Guide: {guides}."
    return found
