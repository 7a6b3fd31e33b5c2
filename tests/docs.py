"""The code blocks of Markdown pages."""

import re
from pathlib import Path


def blocks(page: Path, language: str = "python") -> list[str]:
    """Return the code blocks of a page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
