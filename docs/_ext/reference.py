"""A page for each name that a page of the reference lists, with its topic and the guide that the
page's text links to.

Where its docstring has no example, it gets that of the topic's page: the first block of code in
which the name occurs.

autosummary makes such pages too, but takes a quarter of the time of the whole site for it.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.autosummary import import_by_name

NAME = re.compile(r"^   (xlstm[\w.]*)$", re.MULTILINE)
GUIDE = re.compile(r"\[([^\]]+)\]\(\.\./(\w+)\.md")
CLASS = """.. autoclass:: {name}
   :members:
   :special-members: __call__
   :exclude-members: {fields}
   :inherited-members: tuple, Exception, BaseException, SystemExit, KeyboardInterrupt, ABC, Protocol
"""


def topics(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the topic of each public name that a page of a folder lists, in reStructuredText, and
    an example.
    """
    found = {}
    for page in folder.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        above = text.partition("```{eval-rst}")[0]
        guides = ", ".join(f":doc:`{words} </{name}>`" for words, name in GUIDE.findall(above))
        topic = f"Topic: :doc:`{title} </reference/{page.stem}>`. Guide: {guides}."
        blocks = re.findall(r"^```(pycon|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        found |= {name: (topic, example(name, blocks)) for name in NAME.findall(text)}
    return found


def example(name: str, blocks: list[tuple[str, str]]) -> str:
    """Return the first block of code in which a name occurs with that of its module, in
    reStructuredText.
    """
    module, short = name.split(".")[-2:]
    for language, code in blocks:
        if re.search(rf"\b{module}(\.| import .*)\b{short}\b", code):
            return (
                ".. rubric:: Examples\n\n.. code-block::"
                f" {language}\n\n{textwrap.indent(code, '   ')}"
            )
    return ""


def directive(name: str, value: Any) -> str:
    """Return the directive that writes the documentation of a name."""
    if inspect.isroutine(value):
        return f".. autofunction:: {name}\n"
    if not inspect.isclass(value):  # its docstring would be that of its type
        return f".. data:: {name}\n   :value: {value!r}\n"
    if issubclass(value, BaseException):
        return f".. autoexception:: {name}\n"
    return CLASS.format(
        name=name, fields=", ".join(value._fields) if issubclass(value, tuple) else ""
    )


def write(app: Sphinx) -> None:
    """Write the pages before Sphinx looks for pages; those that are as they should be keep their
    time.
    """
    folder = Path(app.srcdir, "reference")
    (folder / "generated").mkdir(exist_ok=True)
    for whole, (topic, code) in topics(folder).items():
        _, value, _, module = import_by_name(whole)
        name = whole.removeprefix(f"{module}.")
        head = f"{name}\n{'=' * len(name)}\n\n{topic}\n\n.. currentmodule:: {module}\n\n"
        body = "" if ">>>" in (inspect.getdoc(value) or "") else textwrap.indent(code, "   ")
        text = f"{head}{directive(name, value)}\n{body}"
        page = folder / "generated" / f"{whole}.rst"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def without_type(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Leave out the docstring of a constant, which is that of its type."""
    lines[:] = [] if what == "data" else lines


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", without_type)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
