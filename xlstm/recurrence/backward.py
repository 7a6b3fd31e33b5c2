"""Backpropagation through time over one layer and direction: an engine differentiates all steps,
and the gradients of the weights are products over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlstm.arrays.fuse import total
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Params, astype, reshape
from xlstm.engines.tape import Gradients, Tape, swapped


def run_bwd(
    tape: Tape, dy: Array | None, dstate: Sequence[Array]
) -> tuple[Params, Array, Sequence[Array]]:
    """Differentiate a layer in one direction.

    Parameters
    ----------
    tape : Tape
        From `run`.
    dy : array (N, P) or None
        The gradient of y.
    dstate : arrays (P, B), (H, B), ...
        The gradient of the final state.

    Returns
    -------
    grads : dict
        Gradients under the names of the weights.
    dx : array (N, D)
    dstate : arrays as `dstate`
        The gradient of the initial state.
    """
    step = tape.step
    xp = step.xp
    if tape.x.shape[0]:
        gradients, dstate = tape.engine.backward(tape, dy, dstate)
        grads, dx = _weights(tape, gradients)
    else:
        grads = {name: xp.zeros_like(p) for name, p in step.w.items()}
        dx = xp.zeros_like(tape.x)
    return step.cell.weights_bwd(xp, step.layer_w, grads), dx, dstate


def _weights(tape: Tape, found: Gradients) -> tuple[Params, Array]:
    """Return the gradients of the weights and of x, each a product over all steps.

    Those by the product of h come first: where its gradients are arrays of their own, these then
    make room.
    """
    step = tape.step
    x = tape.x
    xp = step.xp
    w = step.w
    rows = step.G * step.H
    every = found.arrays["zx"]  # with rows that the cell's own parameters alone need
    dzx = every if every.shape[0] == rows else every[:rows, :]
    dzh: Array = found.arrays.pop("zh", dzx)
    da: Array = found.arrays.pop("a", dzh)
    grads: Params = {}
    products: dict[str, tuple[Array, Array]] = {}
    if step.heads:
        G, N, K, _ = step.Wh.shape
        heads = xp.permute_dims(reshape(da.T, (x.shape[0], G, N, K)), (1, 2, 3, 0))
        h0 = xp.permute_dims(reshape(tape.passed, (x.shape[0], N, K)), (1, 0, 2))
        grads["Wh"] = matmul(xp, heads, h0)  # (3)
    elif "Wh" in w:  # there is a product of h
        products["Wh"] = (da, tape.passed)  # (3)
    if step.Whr is not None:
        products["Whr"] = (found.arrays["out"], tape.out)  # (5)
    if "gh" in w:
        grads["gh"] = total(xp, dzh, tape.product.T)  # (7)
    if "bh" in w:
        tape.add_sum("bh", dzh, grads, products)  # (3)
    if da is not dzx:
        grads |= _multiplied(tape, products)
        products = {}
    del da, dzh
    if step.own:
        grads |= _own(tape, every)
    more, dp = step.project_bwd(dzx, tape.normal)  # (7)
    grads |= more
    if "Wx" in w:
        products |= {"Wx": (dp, x), "dx": (dp.T, w["Wx"])}  # (1)
    if "b" in w:
        tape.add_sum("b", dzx, grads, products)  # (1)
    grads |= _multiplied(tape, products)
    dx = grads.pop("dx") if "Wx" in w else dzx.T
    return {name: reshape(grads[name], tuple(p.shape)) for name, p in w.items()}, dx


def _multiplied(tape: Tape, products: dict[str, tuple[Array, Array]]) -> Params:
    return dict(zip(products, tape.products(list(products.values())), strict=True))


def _own(tape: Tape, dzx: Array) -> Params:
    """Return the gradients of the cell's own parameters."""
    step = tape.step
    xp = step.xp
    grads: Params = {}
    for segment_tape in tape.segments:
        segment = segment_tape.segment
        k = segment.k
        n = segment.n
        dz = reshape(segment.steps(dzx.T, 0, k), (k, n, -1, step.H))
        dz = xp.permute_dims(dz, (2, 0, 3, 1))  # (rows, k, H, n)
        own = step.own
        if "drop" in step.cell.OWN and step.masks.drop is not None:
            own = {**own, "drop": step.masks.drop[:, :n]}
        carry = (c[:-1, ...] for c in segment_tape.carry)
        saved = swapped(xp, segment_tape.saved)
        for name, d in step.cell.own_bwd(xp, dz, saved, *carry, **own).items():
            d = astype(xp, d, dzx.dtype)  # a number makes float32 of bfloat16 on CuPy
            grads[name] = grads[name] + d if name in grads else d
    return grads
