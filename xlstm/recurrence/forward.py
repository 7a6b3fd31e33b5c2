"""The forward pass over one layer and direction: an engine is chosen, and runs all steps."""

from __future__ import annotations

from collections.abc import Sequence

from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.cell import Cell
from xlstm.engines import engine
from xlstm.engines.segments import Widths
from xlstm.engines.step import Masks, Step
from xlstm.engines.tape import Tape


def run(
    xp: Namespace,
    cell: Cell,
    w: Params,
    x: Array,
    widths: Widths,
    state: Sequence[Array],
    masks: Masks,
    keep: str,
) -> tuple[Array, Sequence[Array], Tape]:
    """Run a layer in one direction.

    Parameters
    ----------
    xp : namespace
    cell : Cell
    w : dict
        Weights of the layer and direction under their last names; see `Step`.
    x : array (N, D)
        Packed rows of x, or of the products Wx x, (N, R), where `w` has no Wx.
    widths : list of (steps, width)
        The segments of the packed batch.
    state : arrays (P, B), (H, B), ...
        The state before the first step.
    masks : Masks
    keep : {"nothing", "states", "all"}
        How much is kept for `backward`. With "states" the rest is rematerialised when it is asked for.

    Returns
    -------
    y : array (N, P)
        h after every step.
    state : arrays as `state`
        The state of each sequence at its own end.
    tape : Tape
    """
    step = Step(xp, cell, w, masks)
    return engine.choose(step, widths).forward(step, x, state, widths, keep)
