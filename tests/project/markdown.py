"""The code blocks of Markdown pages."""

import re
from pathlib import Path


def blocks(page: Path, language: str = "python") -> list[str]:
    """Return the code blocks of a page in a language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )


def cells(page: Path) -> list[str]:
    """Return the programs of the cells of a notebook in Markdown, without their options."""
    found = blocks(page, r"\{code-cell\} python")
    return [re.sub(r"\A---\n.*?^---\n", "", cell, flags=re.DOTALL | re.MULTILINE) for cell in found]
