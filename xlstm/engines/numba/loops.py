"""The time loops of a cell and the products within, as plain Python that Numba compiles.

`jit.functions` compiles them for a cell: it binds `step` to the cell's own step, which is made from its trace, and F to
the dtype. `step(j, t, first, last, *arrays)` computes the units from `first` to `last` of time step t, of which the
products of x are in row j of zx. Arrays are flat but for time and gates: M are the H units of n sequences.

Rows are those of a packed batch: `at` is the first row of step 0, and `width` is the distance from a step to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp  # an unsigned index never counts from the end


def step(j: int, t: int, first: int, last: int, *arrays: Any) -> None:
    """Stand for the step of a cell."""
    raise NotImplementedError


def multiply_vector(x: Any, W: Any, y: Any) -> None:
    """Set y = x @ W, eight rows of W at a time."""
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


def multiply(W: Any, x: Any, y: Any, rows: int) -> None:
    """Set y = W @ x with W in pieces (pieces, R, K) along x, `rows` rows at once.

    With rows = 0 they are heads (G N, K, K), which go from the rows of a head to those of its gates, or the reverse.
    """
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


def to_rows(columns: Any, rows: Any, at: int, first: int) -> None:
    """Copy columns (H, n) to rows from `at` on, from column `first` on, in tiles of a cache line."""
    at, first, high, wide = U(at), U(first), U(columns.shape[0]), U(columns.shape[1])
    for tile in range(U(0), high, U(16)):
        for one in range(wide):
            for i in range(tile, min(tile + U(16), high)):
                rows[at + one, first + i] = columns[i, one]


def to_columns(rows: Any, at: int, first: int, columns: Any) -> None:
    """Copy rows from `at` on to columns (H, n)."""
    at, first, high, wide = U(at), U(first), U(columns.shape[0]), U(columns.shape[1])
    for tile in range(U(0), high, U(16)):
        for one in range(wide):
            for i in range(tile, min(tile + U(16), high)):
                columns[i, one] = rows[at + one, first + i]


def add_to_columns(rows: Any, at: int, first: int, columns: Any) -> None:
    """Add rows from `at` on to columns (H, n)."""
    at, first, high, wide = U(at), U(first), U(columns.shape[0]), U(columns.shape[1])
    for tile in range(U(0), high, U(16)):
        for one in range(wide):
            for i in range(tile, min(tile + U(16), high)):
                columns[i, one] += rows[at + one, first + i]


def forward(
    x: Any,
    y: Any,
    at: int,
    width: int,
    steps: int,
    Wx: Any,
    Wh: Any,
    rowsx: int,
    rowsh: int,
    xs: Any,
    zx: Any,
    zh: Any,
    h: Any,
    *arrays: Any,
) -> None:
    """Run a segment: the products of x and of h, the cell, and y."""
    n = xs.shape[1]
    zxs, zhs, hs = zx.reshape(zx.size // n, n), zh.reshape(zh.size // n, n), h.reshape(h.size // n, n)
    for t in range(steps):
        row = at + t * width
        if Wx.size:
            to_columns(x, row, 0, xs)
            multiply(Wx, xs, zxs, rowsx)
        else:
            to_columns(x, row, 0, zxs)
        multiply(Wh, hs, zhs, rowsh)
        step(0, t, 0, h.size, zx, zh, h, *arrays)
        to_rows(hs, y, row, 0)


def forward_alone(
    x: Any, y: Any, at: int, steps: int, WxT: Any, WhT: Any, zx: Any, zh: Any, h: Any, *arrays: Any
) -> None:
    """Run a segment of one sequence, where the products of x of a block of steps are one product."""
    block = zx.shape[0]
    rows = zx.reshape(block, zx.size // block)
    for start in range(0, steps, block):
        some = min(block, steps - start)
        np.dot(x[at + start : at + start + some], WxT, rows[:some])
        for j in range(some):
            multiply_vector(h, WhT, zh.reshape(zh.size))
            step(j, start + j, 0, h.size, zx, zh, h, *arrays)
            y[at + start + j, :] = h


def forward_step(x: Any, Wx: Any, Wh: Any, h: Any, *arrays: Any) -> None:
    """Run one step of one sequence."""
    G = Wx.shape[0] // h.size
    zx, zh = np.empty((1, G, h.size), F), np.empty((G, h.size), F)
    np.dot(Wx, x, zx.reshape(zx.size))
    np.dot(Wh, h, zh.reshape(zh.size))
    step(0, 0, 0, h.size, zx, zh, h, *arrays)


def backward(
    dy: Any,
    at: int,
    width: int,
    steps: int,
    WhT: Any,
    rows: int,
    dZ: Any,
    dQ: Any,
    dz: Any,
    dzh: Any,
    dh0: Any,
    dh: Any,
    *arrays: Any,
) -> None:
    """Differentiate a segment; dQ and dh0 take what `Gradients` and the cell keep apart, or are empty."""
    H = WhT.shape[1] if rows else WhT.shape[0] // dz.shape[0] * WhT.shape[1]  # without rows of a tile these are heads
    R, n = H * dz.shape[0], dh.size // H
    dhs, dzs, dzhs = dh.reshape(H, n), dz.reshape(R, n), dzh.reshape(R, n)
    for t in range(steps - 1, -1, -1):
        row = at + t * width
        if dy.size:
            add_to_columns(dy, row, 0, dhs)
        step(0, t, 0, dh.size, dz, dzh, dh0, dh, *arrays)
        to_rows(dzs, dZ, row, 0)
        multiply(WhT, dzhs, dhs, rows)
        if dQ.size:
            to_rows(dzhs, dQ, row, 0)
        if dh0.size:
            dh += dh0


def backward_alone(
    dy: Any, at: int, steps: int, Wh: Any, dZ: Any, dQ: Any, dz: Any, dzh: Any, dh0: Any, dh: Any, *arrays: Any
) -> None:
    """Differentiate a segment of one sequence."""
    for t in range(steps - 1, -1, -1):
        row = at + t
        if dy.size:
            dh += dy[row]
        step(0, t, 0, dh.size, dz, dzh, dh0, dh, *arrays)
        dZ[row, :] = dz.reshape(dz.size)
        multiply_vector(dzh.reshape(dz.size), Wh, dh)
        if dQ.size:
            dQ[row, :] = dzh.reshape(dz.size)
        if dh0.size:
            dh += dh0
