"""A cell's time loop compiled: forward with what it keeps, forward alone, and backward.

The cell itself is traced. Arrays are flat but for time and gates, and have the names that `pointwise.py` gives them;
M is the H units of n sequences.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from xlstm.engines.numba import compiled
from xlstm.engines.numba.compiled import Kernel
from xlstm.engines.pointwise import pointwise

# Rows are those of a packed batch, `at` the first of step 0 and `width` those from a step to the next. Between rows
# and columns arrays are copied in tiles of 16, a line of the cache.
LOOPS = """@compiled
def times(x, W, y):
    # y = x @ W, eight rows of W at a time
    whole, high, wide = U(x.shape[0] // 8 * 8), U(x.shape[0]), U(y.shape[0])
    y[:] = F(0)
    for i in range(U(0), whole, U(8)):
        p, q = x[i : i + U(8)], W[i : i + U(8)]
        a, b, c, d, e, f, g, h = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
        for j in range(wide):
            y[j] += ((a * q[0, j] + b * q[1, j]) + (c * q[2, j] + d * q[3, j])) + (
                (e * q[4, j] + f * q[5, j]) + (g * q[6, j] + h * q[7, j])
            )
    for i in range(whole, high):
        a = x[i]
        for j in range(wide):
            y[j] += a * W[i, j]


@compiled
def product(W, x, y, rows):
    # y = W @ x with W in pieces (pieces, R, K) along x, so many rows at once; or, without any, with heads (G N, K, K),
    # which may go from the rows of a head to those of its gates or the reverse
    K = W.shape[2]
    if rows == 0:
        heads = min(x.shape[0], y.shape[0]) // K
        if x.shape[0] < y.shape[0] or W.shape[0] == heads:
            for j in range(W.shape[0]):
                n = j % heads * K
                np.dot(W[j], x[n : n + K], y[j * K : j * K + K])
        else:
            y[:] = F(0)
            for j in range(W.shape[0]):
                n = j % heads * K
                y[n : n + K] += np.dot(W[j], x[j * K : j * K + K])
        return
    for i in range(0, W.shape[1], rows):
        np.dot(W[0, i : i + rows], x[:K], y[i : i + rows])
        for piece in range(1, W.shape[0]):
            y[i : i + rows] += np.dot(W[piece, i : i + rows], x[piece * K : piece * K + K])


@compiled
def lay(columns, rows, at, first):
    # columns as rows from `at` on, from column `first` on
    at, first, high, wide = U(at), U(first), U(columns.shape[0]), U(columns.shape[1])
    for tile in range(U(0), high, U(16)):
        for one in range(wide):
            for i in range(tile, min(tile + U(16), high)):
                rows[at + one, first + i] = columns[i, one]


@compiled
def stand(rows, at, first, columns, more):
    # the reverse; with `more` it is added
    at, first, high, wide = U(at), U(first), U(columns.shape[0]), U(columns.shape[1])
    for tile in range(U(0), high, U(16)):
        for one in range(wide):
            if more:
                for i in range(tile, min(tile + U(16), high)):
                    columns[i, one] += rows[at + one, first + i]
            else:
                for i in range(tile, min(tile + U(16), high)):
                    columns[i, one] = rows[at + one, first + i]
"""
FORWARD = """@compiled
def run(x, y, at, width, steps, Wx, Wh, rowsx, rowsh, xs, {names}):
    batch = xs.shape[1]
    before, through = zx.reshape(zx.size // batch, batch), zh.reshape(zh.size // batch, batch)
    state = h.reshape(h.size // batch, batch)
    for t in range(steps):
        row = at + t * width
        if Wx.size:
            stand(x, row, 0, xs, False)
            product(Wx, xs, before, rowsx)
        else:
            stand(x, row, 0, before, False)
        product(Wh, state, through, rowsh)
        step(0, t, 0, h.size, {names})
        lay(state, y, row, 0)


@compiled
def alone(x, y, at, steps, WxT, WhT, {names}):
    # one sequence: the products of x of a block of steps are one product
    block = zx.shape[0]
    rows = zx.reshape(block, zx.size // block)
    for start in range(0, steps, block):
        some = min(block, steps - start)
        np.dot(x[at + start : at + start + some], WxT, rows[:some])
        for j in range(some):
            times(h, WhT, zh.reshape(zh.size))
            step(j, start + j, 0, h.size, {names})
            y[at + start + j, :] = h


@compiled
def single(x, Wx, Wh, {rest}):
    # one step of one sequence
    zx, zh = np.empty((1, Wx.shape[0] // h.size, h.size), F), np.empty((Wx.shape[0] // h.size, h.size), F)
    np.dot(Wx, x, zx.reshape(zx.size))
    np.dot(Wh, h, zh.reshape(zh.size))
    step(0, 0, 0, h.size, {names})"""
BACKWARD = """@compiled
def run(dy, at, width, steps, WhT, rows, dZ, dQ, {names}):
    H = WhT.shape[1] if rows else WhT.shape[0] // dz.shape[0] * WhT.shape[1]  # without rows of a tile these are heads
    R, batch = H * dz.shape[0], dh.size // H
    state, dzs, through = dh.reshape(H, batch), dz.reshape(R, batch), THROUGH.reshape(R, batch)
    for t in range(steps - 1, -1, -1):
        row = at + t * width
        if dy.size:
            stand(dy, row, 0, state, True)
        step(0, t, 0, dh.size, {names})
        lay(dzs, dZ, row, 0)
        product(WhT, through, state, rows)
        APART


@compiled
def alone(dy, at, steps, Wh, dZ, dQ, {names}):
    # one sequence
    state, dzs, through = dh.reshape(dh.size, 1), dz.reshape(dz.size, 1), THROUGH.reshape(dz.size, 1)
    for t in range(steps - 1, -1, -1):
        row = at + t
        if dy.size:
            stand(dy, row, 0, state, True)
        step(0, t, 0, dh.size, {names})
        lay(dzs, dZ, row, 0)
        times(THROUGH.reshape(dz.size), Wh, dh)
        APART"""
TOGETHER = BACKWARD.replace("THROUGH", "dz").replace("        APART", "")
# The state has a gradient beside that of the product, and the product of h one that is not that of x.
APART = BACKWARD.replace("THROUGH", "dzh").replace("APART", "dh += dh0\n        lay(through, dQ, row, 0)")


class Kernels(NamedTuple):
    """Of one cell and dtype."""

    forward: Kernel
    lean: Kernel  # forward that keeps nothing
    backward: Kernel
    carried: tuple[str, ...]  # the states but h
    saved: dict[str, int | None]  # what the cell saves, and its rows, None for an array without that axis


def of(cell: Any, dtype: Any, own: tuple[tuple[str, int], ...], added: tuple[str, ...]) -> Kernels | None:
    """The loops of a cell, or None where they cannot be: it is not element by element, or the dtype is another.

    `own` has the cell's own parameters and their rows, `added` which of b and bh there are. The cell's numbers are
    arguments of the kernels.
    """
    return _of(cell.form, dtype, own, added)


@functools.cache
def _of(form: Any, dtype: Any, own: tuple[tuple[str, int], ...], added: tuple[str, ...]) -> Kernels | None:
    step = pointwise(form, own, added)
    if step is None or dtype.name not in compiled.FLOATS:
        return None
    states = dict.fromkeys(step.carried)
    before = {"zx": "j", **dict.fromkeys((*states, *step.saved), "t")}
    after, still = before | dict.fromkeys(states, "t + 1"), before | dict.fromkeys(states, "0")
    back = APART if form.SPLIT else TOGETHER
    return Kernels(
        Kernel(dtype.name, step.forward, step.before, before, after, FORWARD, LOOPS, step.numbers),
        Kernel(dtype.name, step.lean, step.before, still, still, FORWARD, LOOPS, step.numbers),
        Kernel(dtype.name, step.backward, step.after, before, before, back, LOOPS, step.numbers),
        step.carried,
        dict(step.saved),
    )
