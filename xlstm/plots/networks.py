"""Plots of networks: distributions of parameters, and gradients back through time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.namespace import Array, Params
from xlstm.arrays.random import generator
from xlstm.data.host import Host
from xlstm.layers.sequence import Leaf, SequenceLayer
from xlstm.plots import figures

MOST = 120  # the most panels of one figure
BINS = 40
LETTERS = 28  # the most in a line of a panel's title
LEAST = 3  # fewest steps, for two norms of a state
STATES = ("h", "c", "C")  # states that carry content; n and m only scale them
LAYER = checks.instance(SequenceLayer, "a recurrent layer, a stack, or a model of them")


class Parameter(NamedTuple):
    """The name, shape and L2 norm of a parameter, and the mean, deviation, minimum and maximum of
    its values.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    mean: float
    deviation: float
    least: float
    greatest: float


def parameter_table(params: Params) -> list[Parameter]:
    """Return the norm and the distribution of each parameter in numbers.

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
        `params` is not a dict of arrays of finite numbers, or is empty.
    """
    rows = []
    for name, array in checks.mapping("parameters", params).items():
        values = to_numpy(array)
        if values.dtype.kind not in "fiu" or values.size == 0 or not np.all(np.isfinite(values)):
            raise ValueError(
                f"parameters: {name} is {checks.shown(values)}, expected finite numbers"
            )
        wide = values.astype(np.float64)
        numbers = (np.linalg.norm(wide), wide.mean(), wide.std(), wide.min(), wide.max())
        rows.append(Parameter(name, tuple(values.shape), *map(float, numbers)))
    return rows


def parameters(params: Params) -> Any:
    """Draw a histogram of each parameter, titled with its name, shape and L2 norm.

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
        As for `parameter_table`, or there are more than 120 parameters.
    """
    rows = parameter_table(params)
    if len(rows) > MOST:
        raise ValueError(
            f"parameters: there are {len(rows)} parameters, expected at most {MOST}; draw some at a"
            " time"
        )
    figure, panels = figures.panels(len(rows), 3, 1.35, "value")
    for k, (axes, row) in enumerate(zip(panels, rows, strict=True)):
        axes.hist(to_numpy(params[row.name]).reshape(-1), BINS, color=figures.DARK)
        axes.axvline(0, color="0.3", linewidth=0.6)
        axes.locator_params(nbins=4)
        shape = " x ".join(map(str, row.shape)) or "a number"
        title = f"{textwrap.fill(row.name, LETTERS)}\n{shape}, norm {row.norm:.3g}"
        figures.label(axes, title, y="count" if k % 3 == 0 else "", size=figures.SMALL)
    return figure


class GradientNorm(NamedTuple):
    """The L2 norm of a gradient at each step, over all sequences and units.

    Attributes
    ----------
    of : str
        The variable that the gradient is taken with respect to: "x", the input of the step, or "h",
        "c" or "C", the state after the step.
    layer : str
        The number of the state's layer or block, or an empty text.
    norms : array (T,) or (T - 1,)
        The norm at each step. The gradient starts at y of the last step, so norms of states end one
        step before it.
    factor : float
        The mean factor by which the norm changes with each step back in time. Below 1 the gradient
        vanishes; above 1 it grows.
    """

    of: str
    layer: str
    norms: Host
    factor: float


def gradient_norms(
    layer: Any, params: Params, x: Array, dy: Any = None, state: Any = None, seed: int = 0
) -> list[GradientNorm]:
    """Return how much of a gradient at the last step's y reaches each earlier step.

    The layer runs step by step, and `layer.backward` passes the gradient with respect to the state
    from step to step. So these are the exact gradients of backpropagation through time. Dropout and
    zoneout draw no masks.

    Parameters
    ----------
    layer : SequenceLayer
        A recurrent layer, block, stack or model that runs in one direction.
    params : dict of str to array
    x : array (T, B, D), or (B, T, D) with `batch_first`; or whole numbers for a language model
        The input, with three steps or more.
    dy : array (B, O), optional
        The gradient of a loss with respect to y of the last step; by default random numbers of norm
        1.
    state : tuple, optional
        The initial state.
    seed : int
        The seed of the random numbers.

    Returns
    -------
    list of GradientNorm

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong shape, x has fewer than three steps, or the gradient is not finite.
        Or the layer has a reverse direction, which sees the last step first.
    """
    LAYER("gradients", "layer", layer)
    if layer.directions != ("",):
        raise ValueError(
            f"gradients: {checks.shown(layer)} has a reverse direction, expected a layer"
            " without one"
        )
    axis = int(layer.batch_first)
    if getattr(x, "ndim", 0) < 2 or x.shape[axis] < LEAST:
        raise ValueError(f"gradients: x is {checks.shown(x)}, expected {LEAST} time steps or more")
    T = x.shape[axis]
    saved = []
    for t in range(T):
        step = x[:, t : t + 1, ...] if axis else x[t : t + 1, ...]
        y, state, of_step = layer.forward(params, step, state, train=False, keep=True)
        saved.append(of_step)
    dstate = None
    size = {"B": math.prod(y.shape[:-1]), "O": int(y.shape[-1])}  # one step of B sequences
    if dy is None:
        values = generator(seed, where="gradients").standard_normal(tuple(size.values()))
        values /= np.linalg.norm(values)
    else:
        values = to_numpy(dy)
        checks.shape("gradients", "dy", values, size)
    d = like(values.reshape(y.shape), y)
    by_name: dict[tuple[str, str], list[float]] = {}  # from the last step to the first
    for t in range(T - 1, -1, -1):
        _, dx, dstate = layer.backward(params, saved[t], d, dstate)
        d = None
        if dx is not None:
            by_name.setdefault(("x", ""), []).append(_norm(dx))
        if t:  # the sequence has no state before its first step
            for of, name, array in _leaves(layer.states, dstate):
                by_name.setdefault((of, name), []).append(_norm(array))
    results = []
    for (of, name), each in by_name.items():
        norms = np.array(each[::-1])
        if not np.all(np.isfinite(norms)):
            raise ValueError(
                f"gradients: that of {of} is not finite{f' in layer {name}' if name else ''}"
            )
        # The mean factor between the first and the last norm; NaN if the last norm is 0.
        factor = (norms[0] / norms[-1]) ** (1 / (len(norms) - 1)) if norms[-1] else math.nan
        results.append(GradientNorm(of, name, norms, float(factor)))
    return results


def gradients(norms: Sequence[GradientNorm] | Mapping[str, Sequence[GradientNorm]]) -> Any:
    """Draw norms of gradients over time on a logarithmic axis, with a panel for each of x, h and c.

    Parameters
    ----------
    norms : list of GradientNorm, or dict of str to such lists
        The results of `gradient_norms`. A dict draws several lists over each other, by name.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        `norms` is empty, or does not come from `gradient_norms`.
    """
    runs = norms if isinstance(norms, Mapping) else {"": norms}
    lines = [(str(name), line) for name, several in runs.items() for line in several]
    if not lines or not all(isinstance(line, GradientNorm) for _, line in lines):
        raise ValueError(
            f"gradients: norms is {checks.shown(norms)}, expected the result of gradient_norms"
        )
    kinds = sorted({line.of for _, line in lines}, key=("h", "c", "C", "x").index)
    below = "time step t; the gradient comes from the last one"
    figure, panels = figures.panels(len(kinds), 1, 2.2, below, sharex=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for k, (name, line) in enumerate(pair for pair in lines if pair[1].of == kind):
            words = f"{name} layer {line.layer}" if line.layer else name
            text = f"{words.strip()}: {line.factor:.3g}" if words else f"{line.factor:.3g}"
            look = figures.line(k, len(line.norms) // 8)
            axes.plot(np.where(line.norms > 0, line.norms, np.nan), label=text, **look)
        axes.set_yscale("log")
        figures.whole_numbers(axes.xaxis)
        axes.set_ylabel(
            rf"$\Vert \partial L / \partial {kind}_t \Vert$", fontsize=figures.TEXT, parse_math=True
        )
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        title = "mean factor\na step back"
        figures.legend(axes, title=title, title_fontsize=figures.SMALL, **place)
    return figure


def _leaves(leaves: Any, state: Any, block: str = "") -> Iterator[tuple[str, str, Array]]:
    """Yield the name, the layer or block, and the array of each state that carries content."""
    for k, (leaf, part) in enumerate(zip(leaves, state, strict=True)):
        if not isinstance(leaf, Leaf):
            yield from _leaves(leaf, part, block or str(k))
        elif leaf.name in STATES and leaf.before:
            yield from ((leaf.name, str(n), part[n, ...]) for n in range(part.shape[0]))
        elif leaf.name in STATES:
            yield leaf.name, block, part


def _norm(array: Array) -> float:
    return float(np.linalg.norm(to_numpy(array).astype(np.float64)))
