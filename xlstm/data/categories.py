"""Categories among the covariates of series: their vocabulary, and a column of 0 and 1 for each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import frames
from xlstm.data.host import Host, Values, floats
from xlstm.data.panels import Panel, Vocabularies

ROLES = ("future", "static")
NUMBERS = "numbers, or text for categories"


def encoded(
    where: str,
    panel: Panel,
    fitted: Vocabularies | None = None,
    averages: Mapping[str, Values] | None = None,
) -> Panel:
    """Return series whose covariates are numbers: a column of text becomes one of 0 and 1 for each
    of its categories.

    The product of such columns with a matrix is a row of the matrix, as an embedding has it. For an
    unknown category the columns have their averages over the training rows. Once scaled they are
    zero, so that no weight counts that was not trained. A missing category is the category "".

    Parameters
    ----------
    where : str
        The caller, for errors.
    panel : Panel
    fitted : dict of str to list, optional
        The vocabularies by "future" and "static": the categories of each column, or None where it
        holds numbers. A role without categories is left out. By default they are learnt.
    averages : dict of str to array (K,), optional
        Averages of the covariates by role; those of the columns that are made here come last.

    Returns
    -------
    Panel
        Its `vocabularies` are those of `fitted`, or those that were learnt.

    Raises
    ------
    TypeError, ValueError
        A column holds text and numbers, or there are other columns than in `fitted`.

    Warns
    -----
    UserWarning
        A column has unknown categories.
    """
    vocabularies: Vocabularies = {}
    covariates = panel.covariates
    for role in ROLES:
        parts = [_cells(where, role, getattr(beside, role)) for beside in covariates]
        before = (fitted or {}).get(role)
        if before is None and not any(map(_has_text, parts)):
            continue
        tables = [_table(where, role, part) for part in parts]
        K = len(before or tables[0].T)
        for table in tables:
            if len(table.T) != K:
                raise ValueError(
                    f"{where}: {role} has {len(table.T)} columns, expected {K}, as in fit and in"
                    " every series"
                )
        columns = np.concatenate(tables).T  # (K, N)
        names = [f"column {checks.shown(name)}" for name in getattr(panel.roles, role)]
        names = names or [f"{role}[{k}]" for k in range(K)]
        pairs = list(zip(names, columns, strict=True))
        if fitted is None:
            before = [_vocabulary(where, *pair) for pair in pairs]
        vocabularies[role] = before = before or [None] * K
        stops = np.cumsum(widths(before))
        means = np.zeros(stops[-1]) if averages is None else averages[role][-stops[-1] :]
        blocks = []
        for pair, words, mean in zip(pairs, before, np.split(means, stops[:-1]), strict=True):
            blocks.append(_numbers(where, *pair, words, mean))
        rows = np.concatenate(blocks, axis=1)
        numbers = np.split(rows, np.cumsum([len(table) for table in tables])[:-1])
        covariates = [
            beside._replace(**{role: part[0] if role == "static" else part})
            for beside, part in zip(covariates, numbers, strict=True)
        ]
    return replace(panel, covariates=covariates, vocabularies=vocabularies)


def widths(vocabulary: Sequence[Sequence[str] | None]) -> list[int]:
    """Return how many columns stand for each column of a role."""
    return [1 if words is None else len(words) for words in vocabulary]


def vocabularies(where: str, name: str, value: Any) -> Vocabularies:
    """Check the vocabularies of a file; one that says nothing of them has none."""
    words = checks.optional(
        lambda where, name, words: checks.several(where, name, words, "categories", checks.text)
    )
    tree = checks.instance(dict, "an object")(where, name, {} if value is None else value)
    return {
        checks.choice(ROLES)(where, name, role): checks.several(
            where, f"{name}.{role}", columns, "lists of categories", words
        )
        for role, columns in tree.items()
    }


def _cells(where: str, role: str, value: Any) -> Any:
    """Return covariates as an array of objects where they hold text, else as they are."""
    if frames.is_table(value) and not frames.is_on_gpu(value):
        names = frames.names_of(where, value)
        columns = frames.table_of(f"{where}: {role}", value, without=None, texts=names)
        names = [name for name in names if name in {*columns.names, *columns.texts}]
        return columns.numbers(where, names) if columns.texts else value
    if getattr(value, "dtype", np.dtype(object)).kind in "fiub" or not isinstance(
        value, str | list | tuple | np.ndarray
    ):
        return value
    cells = np.array(value, object)
    return cells if any(isinstance(cell, str) for cell in cells.flat) else value


def _table(where: str, role: str, cells: Any) -> Host:
    """Return covariates as rows of objects: (1, S) of the static ones, else (N, K)."""
    if cells is None:
        raise ValueError(
            f"{where}: {role} is None, expected covariates as in fit and in every series"
        )
    if not _has_text(cells):
        cells = floats(where, role, cells, NUMBERS).astype(object)
    rows: Host = cells
    if role == "static":
        return np.atleast_1d(rows)[None]
    return rows[:, None] if rows.ndim == 1 else rows


def _has_text(cells: Any) -> bool:
    """Return whether `_cells` returned an array that holds text."""
    return getattr(getattr(cells, "dtype", None), "kind", "") == "O"


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and cell != cell)


def _vocabulary(where: str, name: str, cells: Host) -> list[str] | None:
    """Return the categories of a column, or None where it holds numbers."""
    return sorted({*_words(where, name, cells)}) if any(isinstance(c, str) for c in cells) else None


def _words(where: str, name: str, cells: Host) -> list[str]:
    """Return the categories of rows."""
    words = ["" if _is_missing(cell) else cell for cell in cells]
    for row, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(
                f"{where}: {name} holds {checks.shown(word)} in row {row}, expected text, as in fit"
                " or in other rows; a number stands for a category where the column has the dtype"
                " category or str"
            )
    return words


def _numbers(
    where: str, name: str, cells: Host, vocabulary: Sequence[str] | None, mean: Values
) -> Values:
    """Return the numbers of a column (N, 1), or its categories as columns of 0 and 1, (N, V)."""
    if vocabulary is None:
        return floats(where, name, cells, "numbers, as in fit")[:, None]
    places = {word: place for place, word in enumerate(vocabulary)}
    words = _words(where, name, cells)
    if unknown := [word for word in words if word not in places]:
        few = checks.few(map(checks.shown, dict.fromkeys(unknown)))
        warnings.warn(
            f"{where}: {len(unknown)} of {len(words)} rows of {name} have a category that fit has"
            f" not seen, and count as an average one: {few}",
            stacklevel=5,
        )
    return np.vstack((np.eye(len(places)), mean))[[places.get(word, -1) for word in words]]
