"""A page for each name that a page of the reference lists, with its topic and the guide that the page's text links to.

autosummary makes such pages too, but takes a quarter of the time of the whole site for it.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.autosummary import import_by_name

NAME = re.compile(r"^   (xlstm[\w.]*)$", re.MULTILINE)
GUIDE = re.compile(r"\[([^\]]+)\]\(\.\./(\w+)\.md")
CLASS = """.. autoclass:: {name}
   :members:
   :inherited-members: tuple, Exception, BaseException, SystemExit, KeyboardInterrupt, ABC, Protocol
"""


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


def directive(name: str, value: Any) -> str:
    """Return the directive that writes the documentation of a name."""
    if not inspect.isclass(value):
        kind = "function" if inspect.isroutine(value) else "data"
    elif issubclass(value, BaseException):
        kind = "exception"
    else:
        return CLASS.format(name=name)
    return f".. auto{kind}:: {name}\n"


def write(app: Sphinx) -> None:
    """Write the pages before Sphinx looks for pages; those that are as they should be keep their time."""
    folder = Path(app.srcdir, "reference")
    (folder / "generated").mkdir(exist_ok=True)
    for whole, topic in topics(folder).items():
        _, value, _, module = import_by_name(whole)
        name = whole.removeprefix(f"{module}.")
        head = f"{name}\n{'=' * len(name)}\n\n{topic}\n\n.. currentmodule:: {module}\n\n"
        text, page = head + directive(name, value), folder / "generated" / f"{whole}.rst"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
