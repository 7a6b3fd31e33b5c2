"""Backpropagation through time over one layer and direction.

An engine differentiates all steps. The gradients of the weights are then products over all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlstm.arrays.namespace import Array, Namespace, Params, astype, reshape
from xlstm.arrays.rows import no_gradient, per_sequence, row_products
from xlstm.engines.tape import Gradients, Tape, swapped
from xlstm.recurrence.packing import Packing


def run_bwd(
    tape: Tape, dy: Array | None, dstate: Sequence[Array], packing: Packing
) -> tuple[Params, Array, Sequence[Array]]:
    """Differentiate a layer in one direction.

    Parameters
    ----------
    tape : Tape
        From `run`.
    dy : array (N, P) or None
        The upstream gradient, of the loss with respect to y.
    dstate : arrays (P, B), (H, B), ...
        The gradient with respect to the final state.
    packing : Packing
        The packing of the batch.

    Returns
    -------
    grads : dict
        Gradients under the names of the weights; they follow `per_sequence`.
    dx : array (N, D)
        The gradient with respect to x.
    dstate : arrays as `dstate`
        The gradient with respect to the initial state.
    """
    step = tape.step
    xp = step.xp
    w = step.layer_w
    if not tape.x.shape[0]:
        grads = {name: no_gradient(xp, p) for name, p in w.items()}
        return grads, xp.zeros_like(tape.x), dstate
    apart = None if per_sequence.get() is None else packing
    gradients, dstate = tape.engine.backward(tape, dy, dstate)
    grads, dx = _weights(tape, gradients, apart)
    if apart is None:
        grads = step.cell.weights_bwd(xp, w, grads)
    elif step.w is not w:
        every = [
            step.cell.weights_bwd(xp, w, {name: g[b, ...] for name, g in grads.items()})
            for b in range(apart.B)
        ]
        grads = {name: xp.stack([own[name] for own in every]) for name in w}
    return grads, dx, dstate


def _weights(tape: Tape, found: Gradients, apart: Packing | None) -> tuple[Params, Array]:
    """Return the gradients with respect to the weights and x, each a product over all steps.

    The product of h comes first: if its gradients are arrays of their own, their memory is free
    afterwards. If `apart` is a packing, each sequence has its own gradients of the weights.
    """
    step = tape.step
    xp = step.xp
    w = step.w
    rows = step.G * step.H
    every = found.arrays["zx"]  # with rows that only the cell's own parameters need
    dzx = every if every.shape[0] == rows else every[:rows, :]
    dzh: Array = found.arrays.pop("zh", dzx)
    da: Array = found.arrays.pop("a", dzh)
    grads: Params = {}
    products: dict[str, tuple[Array, Array]] = {}
    if step.heads:
        G, N, K, _ = step.Wh.shape
        dz = reshape(_spread(xp, da.T, apart), (-1, G, N, K))
        h0 = reshape(_spread(xp, tape.passed, apart), (-1, 1, N, K))
        by_head = [xp.permute_dims(a, (1, 2, 0, 3)) for a in (dz, h0)]  # (G or 1, N, rows, K)
        grads["Wh"] = row_products(xp, *by_head)  # (3)
    elif "Wh" in w:  # the cell has a product of h
        products["Wh"] = (da, tape.passed)  # (3)
    if step.Whr is not None:
        products["Whr"] = (found.arrays["out"], tape.out)  # (5)
    if "gh" in w:
        tape.add_sum("gh", dzh, grads, products, tape.product.T)  # (7)
    if "bh" in w:
        tape.add_sum("bh", dzh, grads, products)  # (3)
    if da is not dzx:
        grads |= _multiplied(tape, products, apart)
        products = {}
    del da, dzh
    if step.own:
        grads |= _own(tape, every, apart)
    dp = step.project_bwd(dzx, tape.normal)  # (7)
    if tape.normal is not None:
        tape.add_sum("gx", dzx, grads, products, tape.normal[0])  # (7)
    if "Wx" in w:
        products |= {"Wx": (dp, tape.x), "dx": (dp.T, w["Wx"])}  # (1)
    if "b" in w:
        tape.add_sum("b", dzx, grads, products)  # (1)
    grads |= _multiplied(tape, products, apart)
    dx = grads.pop("dx") if "Wx" in w else dzx.T
    outer = () if apart is None else (apart.B,)
    return {name: reshape(grads[name], (*outer, *p.shape)) for name, p in w.items()}, dx


def _spread(xp: Namespace, rows: Array, apart: Packing | None) -> Array:
    """Return packed rows (N, F) as rows (T*B, F) of all sequences, or unchanged."""
    return rows if apart is None else reshape(apart.unpack(xp, rows), (-1, rows.shape[1]))


def _multiplied(
    tape: Tape, products: dict[str, tuple[Array, Array]], apart: Packing | None
) -> Params:
    if apart is None:
        return dict(zip(products, tape.products(list(products.values())), strict=True))
    xp = tape.step.xp
    return {
        # dx is no sum over steps
        name: tape.products([(a, b)])[0]
        if name == "dx"
        else row_products(xp, *(_spread(xp, rows, apart) for rows in (a.T, b)))
        for name, (a, b) in products.items()
    }


def _own(tape: Tape, dzx: Array, apart: Packing | None) -> Params:
    """Return the gradients with respect to the cell's own parameters."""
    step = tape.step
    xp = step.xp
    sums: list[Params] = [{} for _ in range(1 if apart is None else apart.B)]
    sequences = [0] if apart is None else apart.sequences.tolist()
    for segment_tape in tape.segments:
        segment = segment_tape.segment
        k = segment.k
        n = segment.n
        dz = reshape(segment.steps(dzx.T, 0, k), (k, n, -1, step.H))
        dz = xp.permute_dims(dz, (2, 0, 3, 1))  # (rows, k, H, n)
        saved = swapped(xp, segment_tape.saved)
        own = step.own
        columns = [slice(n)] if apart is None else [slice(b, b + 1) for b in range(n)]
        for part, sequence in zip(columns, sequences, strict=False):
            grads = sums[sequence]
            if "drop" in step.cell.OWN and step.masks.drop is not None:
                own = {**own, "drop": step.masks.drop[:, part]}
            carry = (c[:-1, :, part] for c in segment_tape.carry)
            saved_part = saved._make(None if a is None else a[..., part] for a in saved)
            own_grads = step.cell.own_bwd(xp, dz[..., part], saved_part, *carry, **own)
            for name, d in own_grads.items():
                d = astype(xp, d, dzx.dtype)  # on CuPy, bfloat16 times a number is float32
                grads[name] = grads[name] + d if name in grads else d
    if apart is None:
        return sums[0]
    some = sums[sequences[0]]  # the longest
    return {
        name: xp.stack([grads.get(name, xp.zeros_like(d)) for grads in sums])
        for name, d in some.items()
    }
