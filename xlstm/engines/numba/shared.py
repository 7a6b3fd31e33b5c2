"""A segment whose products of h are shared out among threads, for weights that do not fit the cache of a core."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from xlstm.arrays.namespace import Array
from xlstm.arrays.threads import Team
from xlstm.engines.segments import Segment


def forward(
    team: Team,
    loops: ModuleType,
    Wh: Array,
    segment: Segment,
    products: Array,
    y: Array,
    zx: Array,
    zh: Array,
    h: Array,
    given: Sequence[Any],
) -> None:
    """Run `loops.forward` from products of x (N, R), each step by the whole team."""
    n, H, R = segment.n, Wh.shape[1], Wh.shape[0]
    hs, zxs, zhs = h.reshape(H, n), zx.reshape(R, n), zh.reshape(R, n)

    def units(t: int, first: int, last: int) -> None:
        row = segment.rows(t).start
        for gate in range(0, R, H):
            loops.to_columns(products, row, gate + first, zxs[gate + first : gate + last])
        loops.step(0, t, first * n, last * n, zx, zh, h, *given)
        loops.to_rows(hs[first:last], y, row, first)

    for t in range(segment.k):
        team.product(Wh, hs, zhs)
        team.share(H, functools.partial(units, t))


def backward(
    team: Team,
    loops: ModuleType,
    WhT: Array,
    segment: Segment,
    dy: Array,
    dZ: Array,
    dQ: Array,
    dz: Array,
    dzh: Array,
    dh0: Array,
    dh: Array,
    given: Sequence[Any],
) -> None:
    """Run `loops.backward`, each step by the whole team."""
    n, (H, R) = segment.n, WhT.shape
    dhs, dzs, dzhs = dh.reshape(H, n), dz.reshape(R, n), dzh.reshape(R, n)

    def units(t: int, first: int, last: int) -> None:
        row = segment.rows(t).start
        if dy.size:
            loops.add_to_columns(dy, row, first, dhs[first:last])
        loops.step(0, t, first * n, last * n, dz, dzh, dh0, dh, *given)
        for gate in range(0, R, H):
            loops.to_rows(dzs[gate + first : gate + last], dZ, row, gate + first)
            if dQ.size:
                loops.to_rows(dzhs[gate + first : gate + last], dQ, row, gate + first)

    for t in range(segment.k - 1, -1, -1):
        team.share(H, functools.partial(units, t))
        team.product(WhT, dzhs, dhs)
        if dh0.size:
            dh += dh0
