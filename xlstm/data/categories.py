"""Categories among the covariates of series: their vocabulary and their one-hot columns."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import frames
from xlstm.data.host import Host, floats
from xlstm.data.panels import Categories, Panel

ROLES = ("future", "static")


def encoded(where: str, panel: Panel, fitted: Categories | None = None) -> Panel:
    """Return series with numeric covariates: a column of text becomes a column of 0 and 1 for each
    category.

    The product of such columns with a matrix is a row of the matrix, as in an embedding. An unknown
    category becomes the average category: its columns hold the shares of all categories, so no
    untrained weight counts. A missing category is the category "".

    Parameters
    ----------
    where : str
        The caller, for errors.
    panel : Panel
    fitted : dict of str to dict, optional
        The share of each category in each column of text; by default computed from the panel.

    Returns
    -------
    Panel
        The encoded series. Their `categories` are those of `fitted`, or their own.

    Raises
    ------
    TypeError
        A column holds text and numbers, or text where `fitted` has numbers, or the reverse.
    ValueError
        A column of text is missing for one of the series.

    Warns
    -----
    UserWarning
        A column has unknown categories.
    """
    columns = [
        ((k, role), name, cells)
        for k, beside in enumerate(panel.covariates)
        for role in ROLES
        for name, cells in _columns(where, panel.roles, role, getattr(beside, role))
    ]
    texts = {name for _, name, cells in columns if frames.has_text(cells)}
    for name in texts.difference(texts if fitted is None else fitted):
        raise TypeError(
            f"{where}: column {checks.shown(name)} holds text, expected numbers, as in fit"
        )
    counts = defaultdict[str, Counter[str]](Counter)
    roles = defaultdict[str, list[str]](list)  # roles of each column of text, one for each series
    for (_, role), name, cells in columns:
        if name in texts or name in (fitted or ()):
            counts[name].update(_words(where, name, cells))
            roles[name].append(role)
    if fitted is None:
        fitted = {
            name: {word: n / count.total() for word, n in sorted(count.items())}
            for name, count in counts.items()
        }
    for name, shares in fitted.items():
        if len(roles[name]) < len(panel.covariates):
            raise ValueError(
                f"{where}: column {checks.shown(name)} is missing, expected it beside each series"
            )
        unknown = [word for word in counts[name].elements() if word not in shares]
        if unknown:
            unit = "series" if "static" in roles[name] else "row" + "s" * (len(unknown) > 1)
            warnings.warn(
                f"{where}: column {checks.shown(name)} has {len(unknown)} {unit} with categories that"
                " fit has not seen, which count as an average one:"
                f" {checks.few(map(checks.shown, dict.fromkeys(unknown)))}",
                stacklevel=4,
            )
    if not fitted:
        return panel
    blocks = defaultdict[tuple[int, str], list[Host]](list)
    for place, name, cells in columns:
        if name not in fitted:
            blocks[place].append(floats(where, name, cells, "numbers, as in fit")[:, None])
            continue
        shares = fitted[name]
        numbers = {word: k for k, word in enumerate(shares)}
        rows_of = np.vstack((np.eye(len(shares)), [*shares.values()]))
        words = _words(where, name, cells)
        blocks[place].append(rows_of[[numbers.get(word, len(shares)) for word in words]])
    covariates = [*panel.covariates]
    for (k, role), parts in blocks.items():
        rows = np.concatenate(parts, axis=1)
        covariates[k] = covariates[k]._replace(**{role: rows[0] if role == "static" else rows})
    return replace(panel, covariates=covariates, categories=fitted)


def _columns(where: str, roles: Any, role: str, value: Any) -> Iterator[tuple[str, Host]]:
    """Yield the name and the cells of each column of covariates; static ones have cells (1,)."""
    if value is None:
        return
    if frames.is_table(value):
        cells = frames.table_of(f"{where}: {role}", value, without=None, texts=None).values
    else:
        cells = checks.host(where, role, value, "numbers or text")
        if cells.dtype.kind in "UT":
            cells = np.array(value, object)  # keeps numbers beside text as numbers
    columns = cells.reshape(-1, 1) if role == "static" else np.atleast_2d(cells.T)
    names = getattr(roles, role) or [f"{role}[{k}]" for k in range(len(columns))]
    yield from zip(names, columns, strict=True)


def _words(where: str, name: str, cells: Host) -> list[str]:
    """Return the category of each row."""
    words = []
    for cell in cells.tolist():
        is_missing = cell is None or (isinstance(cell, float) and cell != cell)
        if not (is_missing or isinstance(cell, str)):
            raise TypeError(
                f"{where}: column {checks.shown(name)} holds {checks.shown(cell)}, expected text, as"
                " in other rows or in fit; a number is a category where the dtype is category or str"
            )
        words.append("" if is_missing else cell)
    return words
