"""One HTML page with pictures and tables, which needs no other file, no script and no network."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from xlstm.arrays import checks
from xlstm.plots import figures

OPEN = 30  # rows, up to which a table is shown at once
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; }
h2 { margin-top: 2.2rem; border-bottom: 2px solid #333; }
"""


def page(
    title: str,
    pictures: Mapping[str, Any],
    tables: Mapping[str, Sequence[Any]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return an HTML page of figures and tables.

    Parameters
    ----------
    title : str
    pictures : dict of str to Figure
        Figures by their headings; they become SVG inside the page.
    tables : dict of str to list of NamedTuple, optional
        Rows of numbers by their headings, such as `parameter_table` returns. A heading may be that of a picture.
    notes : list of str
        Lines under the title.

    Returns
    -------
    str
        The text of the page, to be written as UTF-8.

    Raises
    ------
    ValueError, TypeError
        An argument is of another kind.
    """
    rows = {} if tables is None else dict(tables)
    name = html.escape(checks.text("page", "title", title))
    parts = [f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>{name}</title>']
    parts.append(f"<style>{STYLE}</style></head><body><h1>{name}</h1>")
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    for heading in dict.fromkeys([*pictures, *rows]):
        shown = html.escape(heading)
        parts.append(f"<h2>{shown}</h2>")
        if heading in pictures:
            code = base64.b64encode(figures.svg(pictures[heading])).decode()
            parts.append(f'<img alt="{shown}" src="data:image/svg+xml;base64,{code}"/>')
        if rows.get(heading):
            parts.append(_table(rows[heading]))
    return "\n".join([*parts, "</body></html>\n"])


def _table(rows: Sequence[Any]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0]._fields)
    body = "\n".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    if len(rows) <= OPEN:
        return table
    return f"<details><summary>{len(rows)} rows</summary>{table}</details>"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(" x ".join(map(str, value)) if isinstance(value, tuple) else str(value))
