"""The directive `equations`: formulas, and the lines of code that carry their numbers, read when
the site is built.

    ```{equations} xlstm/cells/lstm.py gates
    c &= f \\odot c_0 + i \\odot g \\tag{3}
    ```

Each line of its content is a formula, and its tag names the numbers in the comment of a line of
that function, here `# (3)`. A formula without a tag is a step on the way to the next one. The build
fails where a tag has no line of code, and where a numbered line in any function of a file that a
page shows has no formula on that page.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from source_pages import SOURCE
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
Numbers = tuple[int, ...]
TAG = re.compile(r"\\tag\{([\d, ]+)\}")


class Numbered(NamedTuple):
    """A statement whose comment has numbers."""

    function: str  # such as "Cell.gates"
    numbers: Numbers
    lines: frozenset[int]  # those of the statement and of the `if` or `for` around it


def numbers_in(text: str, pattern: str) -> Numbers:
    return tuple(sorted(map(int, re.findall(pattern, text))))


def statements(
    body: list[Any], name: str = "", around: frozenset[int] = frozenset()
) -> Iterator[tuple]:
    """Yield each statement of some source: the function it is in, its own lines, and those with
    what is around it.
    """
    for one in body:
        inner = getattr(one, "body", None)
        own = frozenset(range(one.lineno, inner[0].lineno if inner else one.end_lineno + 1))
        if isinstance(one, ast.FunctionDef | ast.ClassDef):
            fields = isinstance(one, ast.ClassDef)  # whose comments describe values
            inner = [part for part in one.body if not fields or isinstance(part, ast.FunctionDef)]
            yield from statements(inner, f"{name}.{one.name}".lstrip("."))
        else:
            yield name, own, own | around
            yield from statements([*(inner or []), *getattr(one, "orelse", [])], name, own | around)


def numbered(file: str) -> list[Numbered]:
    """Return the statements of a file whose comments have numbers; a comment alone belongs to the
    next statement.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    known = list(statements(ast.parse(text).body))
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        numbers = numbers_in(token.string, r"\((\d+)\)")
        if token.type == tokenize.COMMENT and numbers:
            line = token.start[0]
            alone = not token.line[: token.start[1]].strip()
            for function, own, lines in known:
                if function and (min(own) == line + 1 if alone else line in own):
                    found.append(Numbered(function, numbers, lines | {line}))
    return found


class Equations(SphinxDirective):
    required_arguments = 2
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the formulas, the lines of code with their numbers, and a link to the first of
        them.
        """
        file, function = self.arguments
        self.env.note_dependency(str(ROOT / file))
        tags = {numbers_in(one, r"\d+") for one in TAG.findall("\n".join(self.content))}
        shown = [one for one in numbered(file) if one.function == function and one.numbers in tags]
        if missing := tags - {one.numbers for one in shown}:
            where = f"{self.env.docname}, line {self.lineno}"
            raise SphinxError(
                f"{where}: no line of {function} in {file} has the numbers {sorted(missing)}"
            )
        rows = [TAG.sub(r"& \\quad (\1)", formula) for formula in self.content if formula.strip()]
        formulas = "\\begin{aligned}" + " \\\\ ".join(rows) + "\\end{aligned}"
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        at = sorted(set().union(*(one.lines for one in shown)))
        code = textwrap.dedent("\n".join(lines[k - 1] for k in at))
        block = nodes.literal_block(
            code, code, language="python", equations=(file, [one[:2] for one in shown])
        )
        page = self.env.app.builder.get_relative_uri(self.env.docname, SOURCE + file)
        link = nodes.reference(
            "", f"{function} in {file}", refuri=f"{page}#line-{at[0]}", internal=True
        )
        below = nodes.paragraph("", "", link, classes=["equations"])
        return [nodes.math_block(formulas, formulas, nowrap=True), block, below]


def check(app: Sphinx, page: nodes.document) -> None:
    """Fail where a numbered line in a function of a file that a page shows has no formula on the
    page.
    """
    shown: dict[str, list[tuple[str, Numbers]]] = {}
    for block in page.findall(
        lambda node: isinstance(node, nodes.literal_block) and "equations" in node
    ):
        file, found = block["equations"]
        shown.setdefault(file, []).extend(found)
    for file, found in shown.items():
        for one in numbered(file):
            if one[:2] not in found:
                where = f"line {max(one.lines)} of {file}, in {one.function}"
                raise SphinxError(
                    f"{app.env.docname}: no formula has the numbers {one.numbers} of {where}"
                )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("equations", Equations)
    app.connect("doctree-read", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
