"""A page for each source file, with an anchor at each line, and links to them from the
reference.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
SOURCE = "source/"  # the folder of these pages


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the page of each file of the package."""
    for path in sorted((ROOT / "xlstm").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        code = app.builder.highlighter.highlight_block(
            path.read_text(encoding="utf-8"), "python", lineanchors="line"
        )
        yield (
            SOURCE + file,
            {"title": file, "body": f"<h1>{file}</h1>{code}", "parents": []},
            "page.html",
        )


def assigned(name: str, value: Any) -> tuple[Path, int]:
    """Return the file and the line in which a constant of a module gets its value; of other values
    no file of ours.
    """
    for module in [
        one for key, one in sys.modules.items() if "xlstm." in key and vars(one).get(name) is value
    ]:
        for line, code in enumerate(inspect.getsource(module).splitlines(), 1):
            if code.startswith(f"{name} = "):
                return Path(module.__file__ or ""), line
    return Path(), 0


def link(domain: str, info: dict[str, str]) -> str | None:
    """Return the address of the line where a name of the reference is defined, from the pages of
    single names.
    """
    value: Any = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        value = getattr(value, name)
    value = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "func", None) or value)
    try:
        path = Path(inspect.getsourcefile(value) or "")
        line = inspect.getsourcelines(value)[1]
    except TypeError:
        path, line = assigned(info["fullname"], value)
    inside = path.is_relative_to(ROOT / "xlstm")
    return f"../../{SOURCE}{path.relative_to(ROOT).as_posix()}.html#line-{line}" if inside else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
