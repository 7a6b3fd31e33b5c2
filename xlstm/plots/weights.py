"""The parameters of a model: their names, shapes, norms and distributions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.plots import figures

MOST = 120  # panels of one figure
BINS = 40
LETTERS = 28  # of a line of a panel's title


class Parameter(NamedTuple):
    """A parameter: its name, shape, L2 norm, and the mean, deviation, least and greatest of its values."""

    name: str
    shape: tuple[int, ...]
    norm: float
    mean: float
    deviation: float
    least: float
    greatest: float


def parameter_table(params: Params) -> list[Parameter]:
    """Return the numbers of every parameter.

    Parameters
    ----------
    params : dict of str to array
        Parameters of a model or a layer, on any backend.

    Returns
    -------
    list of Parameter

    Raises
    ------
    ValueError, TypeError
        `params` is no dict of arrays or is empty, or a number in it is not finite.
    """
    found = []
    for name, values in _host("parameter_table", params).items():
        wide = values.astype(np.float64)
        norm = float(np.linalg.norm(wide))
        numbers = (norm, wide.mean(), wide.std(), wide.min(), wide.max())
        found.append(Parameter(name, tuple(values.shape), *map(float, numbers)))
    return found


def parameters(params: Params) -> Any:
    """Draw the histogram of every parameter, under its name, shape and L2 norm.

    Parameters
    ----------
    params : dict of str to array
        Parameters of a model or a layer, on any backend, at most 120.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        As `parameter_table` does; or there are more than 120.
    """
    host = _host("parameters", params)
    if len(host) > MOST:
        raise ValueError(f"parameters: there are {len(host)} parameters, expected at most {MOST}; draw some at a time")
    figure, panels = figures.panels(len(host), 3, 1.35)
    for k, (axes, row) in enumerate(zip(panels, parameter_table(params), strict=True)):
        axes.hist(host[row.name].reshape(-1), BINS, color=figures.DARK)
        axes.axvline(0, color="0.3", linewidth=0.6)
        axes.locator_params(nbins=4)
        shape = " x ".join(map(str, row.shape)) or "a number"
        title = f"{_folded(row.name)}\n{shape}, norm {row.norm:.3g}"
        figures.label(axes, title, "value" if k + 3 >= len(host) else "", "count" if k % 3 == 0 else "", figures.SMALL)
    return figure


def _folded(name: str) -> str:
    """Return a name in lines that are no wider than a panel, folded at its dots where it has some."""
    lines = [""]
    for part in re.findall(r"[^.]*\.?", name):
        if lines[-1] and len(lines[-1] + part) > LETTERS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _host(where: str, params: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    found = {name: np.asarray(to_numpy(values)) for name, values in checks.mapping(where, params).items()}
    for name, values in found.items():
        if values.dtype.kind not in "fiu" or values.size == 0:
            raise TypeError(f"{where}: {name} is {checks.shown(values)}, expected an array of numbers")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{where}: {name} is not finite")
    return found
