"""The time loops of a cell, as plain Python that Numba compiles.

`jit.functions` compiles them for a cell: it binds `step` to the cell's own step, which is made from its trace, and F to
the dtype. `step(j, t, first, last, *arrays)` computes the units from `first` to `last` of time step t, of which the
products of x are zx[:, j]. Arrays are flat but for time and gates: M are the H units of each of n sequences.

Rows are those of a packed batch: `at` is the first row of step 0, and `width` is the distance from a step to the next.
Weights are packed as `products.py` says, for every head: there is one of all units where a layer has no heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp  # an unsigned index never counts from the end


def step(j: int, t: int, first: int, last: int, *arrays: Any) -> None:
    """Stand for the step of a cell."""
    raise NotImplementedError


def product(*arguments: Any) -> None:
    """Stand for `products.product`."""
    raise NotImplementedError


def rows_times_vector(*arguments: Any) -> None:
    """Stand for `products.rows_times_vector`."""
    raise NotImplementedError


def forward(
    x: Any, y: Any, at: int, width: int, steps: int, Wx: Any, Wh: Any, zx: Any, zh: Any, h: Any, *arrays: Any
) -> None:
    """Run a segment: the products of x for as many steps as zx (G, steps, M) holds, of h, the cell, and y."""
    M, (N, H), D = h.size, y.shape, x.shape[1]
    n, G, heads, block = M // H, zh.shape[0], Wh.shape[0], zx.shape[1]
    for start in range(0, steps, block):
        some, row = min(block, steps - start), at + start * width
        if Wx.size:
            product(x, row * D, D, some * n, Wx, zx, 0, H, block * M, H, False)
        else:
            for s in range(some * n):
                for g in range(G):
                    zx[g, s // n, s % n * H : (s % n + 1) * H] = x[row + s, g * H : (g + 1) * H]
        for j in range(some):
            for head in range(heads):
                K = Wh.shape[2]
                product(h, head * K, H, n, Wh[head], zh, head * K, H, M, K, False)
            step(j, start + j, 0, M, zx, zh, h, *arrays)
            row = at + (start + j) * width
            y[row : row + n] = h.reshape(n, H)


def forward_step(x: Any, Wx: Any, Wh: Any, h: Any, *arrays: Any) -> None:
    """Run one step of one sequence, with weights as they are."""
    G = Wx.shape[0] // h.size
    zx, zh = np.empty((G, 1, h.size), F), np.empty((G, h.size), F)
    rows_times_vector(Wx, x, zx.reshape(zx.size))
    rows_times_vector(Wh, h, zh.reshape(zh.size))
    step(0, 0, 0, h.size, zx, zh, h, *arrays)


def backward(
    dy: Any,
    at: int,
    width: int,
    steps: int,
    Wh: Any,
    dZ: Any,
    dQ: Any,
    dz: Any,
    dzh: Any,
    dh0: Any,
    dh: Any,
    *arrays: Any,
) -> None:
    """Differentiate a segment; dQ and dh0 take what `Gradients` and the cell keep apart, or are empty.

    Wh (heads, G, ...) is packed for products with the gradients of one gate.
    """
    heads, G, _, K, _ = Wh.shape
    H, M = heads * K, dh.size
    n = M // H
    for t in range(steps - 1, -1, -1):
        row = at + t * width
        if dy.size:
            add(dy, row * H, dh)
        step(0, t, 0, M, dz, dzh, dh0, dh, *arrays)
        for g in range(G):
            to_rows(dz[g], dZ, row, g * H, H)
            if dQ.size:
                to_rows(dzh[g], dQ, row, g * H, H)
            for head in range(heads):
                product(dzh, g * M + head * K, H, n, Wh[head, g], dh, head * K, H, 0, K, g > 0)
        if dh0.size:
            dh += dh0


def add(rows: Any, at: int, to: Any) -> None:
    """Add numbers of rows (N, H), from a place on, to an array (n * H,)."""
    flat, at = rows.reshape(rows.size), U(at)
    for i in range(U(to.size)):
        to[i] += flat[at + i]


def to_rows(units: Any, rows: Any, at: int, first: int, H: int) -> None:
    """Copy an array (n * H,) to rows from `at` on, from column `first` on."""
    at, first, wide = U(at), U(first), U(H)
    for s in range(U(units.size // H)):
        for i in range(wide):
            rows[at + s, first + i] = units[s * wide + i]
