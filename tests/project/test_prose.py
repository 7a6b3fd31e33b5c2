"""Prose keeps to CONTRIBUTING.md: the field's words, short paragraphs, and sentences that begin as
sentences do.
"""

import re

import pytest

from tests.conftest import ROOT
from tests.project.test_docs import PROSE, names

PAGES = [*PROSE, *(ROOT / name for name in ("CHANGELOG.md", "bench/NOTES.md", "bench/README.md"))]
CODE = sorted((ROOT / "xlstm").rglob("*.py"))
# CONTRIBUTING.md shows some of them.
TEXTS = [path for path in [*PAGES, *CODE] if path.name != "CONTRIBUTING.md"]
WORDS = re.compile(
    r"\b(?:[Gg]radients?|[Dd]erivatives?) by (?![A-Z]|hand|name|autograd)|\b[Mm]end\b|at hand\b|(?<=[.:|] )(?:What|Of) "
)
LONGEST = 650  # characters: five lines of a page


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_words_are_the_fields(path):
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert [text[m.start() - 30 : m.end() + 20] for m in WORDS.finditer(text)] == []


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_paragraphs_are_short(path):
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*[-*] |\s*\d+\. )", text)
    prose = [part for part in paragraphs if not part.lstrip().startswith(("|", "<", "$$", "!["))]
    assert [part[:60] for part in prose if len(" ".join(part.split())) > LONGEST] == []
