"""The time loops of a cell, as plain Python that Numba compiles, and how threads share each step.

`jit.functions` binds F to the dtype, and compiles the loops over all steps once for each dtype.
They call the step of a cell, which is made from its trace, by its address, with a table of the
addresses of its arrays.

Arrays of a step are flat: for each gate, n sequences of H units, one after another. Arrays over all
steps have the rows of the packed batch one after another. `starts` has the first row of each step,
and the end.

Every thread runs the whole loop. A step has two parts, products and then the cell. Each part is cut
into pieces. Threads take pieces one by one (`take`) until none is left, and then wait until the
last piece is done. So no thread waits for a thread that has not begun or that the system holds up,
except for a piece that it has taken. The bits of a result do not depend on which thread does a
piece. Weights are packed as described in `products.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp  # an unsigned index never counts from the end
# Numba compiles a function for a literal number separately from other integers
INT: Any = np.int64
MOST = 12  # rows of the largest tile
SLIVERS1 = 4  # slivers of the widest tile
UNITS = 1024  # units of the cell in a piece
COLUMNS = 32  # columns of a sliver
ROWS = 48  # steps of one sequence whose products with x are computed at once
FEW = 4  # least steps of one sequence for which packing the weights pays


stand_in: Any = None
rows_times_vector = pack = room = stand_in  # of `products.py`
call_product = count_up = count_of = let_others_run = stand_in  # of `llvm.py`
# The step of a cell, for its units from `first` to `last`: `step(zx, h, new_h, carry, new_carry,
# saved, first, last, *arrays)`. The numbers say where values begin in their arrays: `zx` the
# products with x, `h` and `new_h` the h before and after the step, `carry` and `new_carry` the
# other states, `saved` the saved values. `call_step` calls it by address, with a table of the
# arrays and the numbers.
step = call_step = stand_in


def take(counts: Any, at: int, k: int, size: int, pieces: int) -> int:
    """Return a piece that no thread has taken, or -1; thread k of `size` begins with its own share.

    The share is the same at every step, so that weights stay in the cache of a core.
    """
    if size == 1:  # the same two numbers for every part
        piece: int = counts[0]
        counts[0] = piece + 1 if piece < pieces else 0
        return piece if piece < pieces else -1
    for i in range(size):
        owner = (k + i) % size
        piece = owner * pieces // size + count_up(counts, at + owner)
        if piece < (owner + 1) * pieces // size:
            return piece
    return -1


def wait(counts: Any, at: int, size: int, pieces: int) -> None:
    """Wait until all pieces are done; `counts` has the number of done pieces after the numbers of
    `take`.
    """
    while size > 1 and count_of(counts, at + size) < pieces:
        let_others_run()


def pack_together(
    W: Any, turned: bool, far: int, width: int, packed: Any, k: int, size: int, counts: Any
) -> None:
    """Pack matrices as thread k of `size` threads, which share the work; rows or columns of a
    matrix are contiguous.

    `counts` are those of the last parts of a loop, one for each packed array.
    """
    flat = W.reshape(W.size)
    lead = W.shape[-1]
    pieces = 4 * size
    while True:
        piece = take(counts, 0, k, size, pieces)
        if piece < 0:
            break
        slivers = packed.shape[0]
        pack(
            flat,
            INT(0),
            turned,
            far,
            lead,
            width,
            packed,
            slivers * piece // pieces,
            slivers * (piece + 1) // pieces,
        )
        count_up(counts, size)
    wait(counts, 0, size, pieces)


def cut(n: int, slivers: int, heads: int, size: int) -> tuple[int, int, int]:
    """Return the slivers and the rows of a piece of a product with n rows, and the pieces of a
    head.

    A piece has whole tiles. It has all rows, unless there would be too few pieces for all threads.
    """
    if slivers == 0:  # there are no weights
        return INT(1), INT(1), INT(0)
    least = (heads * slivers + 4 * size - 1) // (4 * size)
    group = (least + SLIVERS1 - 1) // SLIVERS1 * SLIVERS1
    across = (slivers + group - 1) // group
    rows = max(n, 1)
    if heads * across < size:
        rows = ((n + size - 1) // size + MOST - 1) // MOST * MOST
    return group, rows, across * ((n + rows - 1) // rows)


def product_piece(
    where: int, piece: int, cuts: Any, rows: Any, n: int, b: Any, out: Any, add: bool
) -> None:
    """Compute a piece of a product of n rows, like `product` in `products.py`, whose address is
    `where`.

    `cuts` has the slivers and the rows of a piece. `rows` has the array a, where its rows begin,
    and their distance. `out` has the array, place, line, gate and width of the result.
    """
    group, height = cuts
    a, at, row = rows
    out, place, line, gate, width = out
    slivers = b.shape[0]
    across = (slivers + group - 1) // group
    q = piece % across * group
    i = piece // across * height
    some = min(height, n - i)
    stop = min(q + group, slivers)
    call_product(
        where,
        a,
        (at + i * row, row, 1, some),
        b,
        (q, stop),
        out,
        (place + i * line, line, gate, width),
        add,
    )


def forward(
    step: Any, team: Any, arrays: Any, weights: Any, lean: bool, first: int, last: int
) -> None:
    """Run all steps of the sequences from `first` to `last`.

    Parameters
    ----------
    step : tuple
        The addresses of `products.product` and of the step of the cell, then the table and the
        numbers for the step, as in `codegen.kernel`.
    team : tuple
        The number of this thread, the number of threads, and the counts that they share.
    arrays : tuple
        x; hs, which has h of the sequences at the first step, followed by room for h after every
        step; starts; room for the products with x, (G, rows * H), for as many steps as fit; and
        room for the products with h.
    weights : tuple
        Vx (1, G, H, D) and V (heads, G, K, K), and room for them packed: Wx (slivers, D, columns)
        and Wh (heads, slivers, K, columns). Without weights of x, x already has the products.
    lean : bool
        The states except h have two places each: a step reads one and writes the other. With one
        place, a step would overwrite its input, and LLVM would not make vectors.
    """
    where, cell, table, numbers = step
    k, size, counts = team
    x, hs, starts, zx, zh = arrays
    Vx, V, Wx, Wh = weights
    H, D = (hs.shape[1], x.shape[1])
    flat = hs.reshape(hs.size)
    n0 = starts[1] - starts[0]
    heads, slivers, K, columns = Wh.shape
    steps = starts.size - 1
    only = Wh[0]
    line = 0 if size == 1 else counts.size // (2 * steps + 2)
    if size > 1 and count_of(counts, (2 * steps - 1) * line + size) > 0:
        return  # the others are at the last part
    pack_together(Vx, True, H * D, H, Wx, k, size, counts[2 * steps * line :])
    every = Wh.reshape(heads * slivers, K, columns)
    pack_together(V, True, K * K, K, every, k, size, counts[(2 * steps + 1) * line :])
    xs = x.reshape(x.size)
    zxs = zx.reshape(zx.size)
    zhs = zh.reshape(zh.size)
    until = origin = rows = group = height = some = wide = tall = 0
    for t in range(steps):
        n = min(last, starts[t + 1] - starts[t]) - first
        before = starts[t - 1] + n0 if t else 0
        if n <= 0:
            break
        fresh = 0
        if t == until:
            origin = starts[t]
            until = t + 1
            fresh = n
            while (
                last - first == n0
                and until < steps
                and (starts[until + 1] - origin) * H <= zx.shape[1]
            ):
                until += 1
                fresh = starts[until] - origin
        if n != rows:
            rows = n
            group, height, some = cut(n, slivers, heads, size)
        few = 0
        if fresh > 0:
            wide, tall, few = cut(fresh, Wx.shape[0], INT(1), size)
            if Wx.shape[0] == 0:
                few = 1
        pieces = few + heads * some
        at = 2 * t * line
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            if piece >= few:
                head = (piece - few) // some
                piece = (piece - few) % some
                place = first * H + head * K
                W = only if heads == 1 else Wh[head]
                rows_h = (flat, before * H + place, H)
                to = (zhs, place, H, zh.shape[1], K)
                product_piece(where, piece, (group, height), rows_h, n, W, to, False)
            elif Wx.shape[0]:
                rows_x = (xs, (origin + first) * D, D)
                to = (zxs, first * H, H, zx.shape[1], H)
                product_piece(where, piece, (wide, tall), rows_x, fresh, Wx, to, False)
            else:
                for g in range(zh.shape[0]):
                    for s in range(first, first + fresh):
                        at_x = U((origin + s) * D + g * H)
                        place = U(g * zx.shape[1] + s * H)
                        for j in range(U(H)):
                            zxs[place + j] = xs[at_x + j]
            count_up(counts, at + size)
        wait(counts, at, size, pieces)
        pieces = (n * H + UNITS - 1) // UNITS
        at = (2 * t + 1) * line
        p, q = (t % 2 * n0, (t + 1) % 2 * n0) if lean else (before, starts[t] + n0)
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            begin = first * H + piece * UNITS
            end = first * H + min(n * H, (piece + 1) * UNITS)
            j = (starts[t] - origin) * H
            r = starts[t] * H
            call_step(cell, j, before * H, r + n0 * H, p * H, q * H, r, begin, end, table, numbers)
            count_up(counts, at + size)
        wait(counts, at, size, pieces)


def forward_alone(where: int, x: Any, Wx: Any, Wh: Any, hs: Any, *arrays: Any) -> None:
    """Run all steps of one sequence, with unpacked weights; `step` is inlined.

    Parameters
    ----------
    where : int
        The address of `products.product`.
    x : array (T, D)
    Wx, Wh : arrays (R, D), (R, H)
        The weights, which are not packed for a few steps. Wh is (R, 0) without a product with h.
    hs : array (T + 1, H)
        h before the first step, and room for h after every step.
    arrays
        The other states, each (2 H,): a step reads one half and writes the other. Then the other
        arguments of `step`.
    """
    T, D = x.shape
    H = hs.shape[1]
    K = Wh.shape[1]
    G = Wx.shape[0] // H
    few = T < FEW
    block = 1 if few else min(T, ROWS)
    zx = np.empty((G, block * H), F)
    zh = np.zeros((G, H), F)
    xs = x.reshape(x.size)
    zxs = zx.reshape(zx.size)
    zhs = zh.reshape(zh.size)
    h = hs.reshape(hs.size)
    slivers = 0 if few else G * ((H + COLUMNS - 1) // COLUMNS)
    packed = room(slivers * (D + K) * COLUMNS)
    middle = slivers * D * COLUMNS
    packed_x = packed[:middle].reshape(slivers, D, COLUMNS)
    packed_h = packed[middle:].reshape(slivers, K, COLUMNS)
    if not few:
        pack(Wx.reshape(Wx.size), INT(0), True, H * D, D, H, packed_x, INT(0), slivers)
    if not few and K:
        pack(Wh.reshape(Wh.size), INT(0), True, H * K, K, H, packed_h, INT(0), slivers)
    for t in range(T):
        at = t % block
        if few:
            rows_times_vector(Wx, x[t], zxs)
            if K:
                rows_times_vector(Wh, hs[t], zhs)
        else:
            if at == 0:
                some = min(block, T - t)
                to = (0, H, block * H, H)
                call_product(where, xs, (t * D, D, 1, some), packed_x, (0, slivers), zxs, to, False)
            if K:
                to = (0, H, H, H)
                call_product(where, h, (t * H, H, 1, 1), packed_h, (0, slivers), zhs, to, False)
        before = t % 2 * H
        step(at * H, t * H, t * H + H, before, H - before, 0, 0, H, zx, zh, h, *arrays)


def backward(
    step: Any, team: Any, arrays: Any, weights: Any, direct: bool, first: int, last: int
) -> None:
    """Compute the gradients of all steps of the sequences from `first` to `last`.

    Parameters
    ----------
    step, team
        As for `forward`.
    arrays : tuple
        dy, which may be empty; starts; dZ for the gradients with respect to the products with x; dQ
        for those with respect to the products with h, or empty if these are the same; room for both
        at one step; and dh. At first dh is the gradient with respect to the final h, and at the end
        with respect to the initial h; so are the gradients of the other states.
    weights : tuple
        V, the weights of h, and Wh (heads, parts, ...), room for them packed. With one head, a
        product takes the gradients of all gates at once; with several heads, those of one gate
        after another.
    direct : bool
        Whether the cell has its own gradient of h before the step, which it writes to dh.
    """
    where, cell, table, numbers = step
    k, size, counts = team
    dy, starts, dZ, dQ, dz, dzh, dh = arrays
    V, Wh = weights
    heads, parts, slivers, depth, columns = Wh.shape
    G, R = (dz.shape[0], dZ.shape[1])
    H = R // G
    n0 = starts[1] - starts[0]
    steps = starts.size - 1
    K = H // heads
    line = 0 if size == 1 else counts.size // (2 * steps + 2)
    if size > 1 and count_of(counts, line + size) > 0:
        return  # the others are at the last part
    every = Wh.reshape(heads * parts * slivers, depth, columns)
    pack_together(V, False, depth * K, K, every, k, size, counts[2 * steps * line :])
    rows = group = height = some = 0
    rows_h = dQ.reshape(dQ.size) if dQ.size else dZ.reshape(dZ.size)
    for t in range(steps - 1, -1, -1):
        n = min(last, starts[t + 1] - starts[t]) - first
        before = starts[t - 1] + n0 if t else 0
        if n <= 0:
            continue
        pieces = (n * H + UNITS - 1) // UNITS
        r = starts[t] * H
        at = 2 * t * line
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            begin = first * H + piece * UNITS
            end = first * H + min(n * H, (piece + 1) * UNITS)
            if dy.size:
                add(dy, r, dh, begin, end)
            call_step(cell, 0, 0, 0, before * H, 0, r, begin, end, table, numbers)
            for g in range(G):
                to_rows(dz[g], dZ, starts[t], g * H, H, begin, end)
                if dQ.size:
                    to_rows(dzh[g], dQ, starts[t], g * H, H, begin, end)
            count_up(counts, at + size)
        wait(counts, at, size, pieces)
        if n != rows:
            rows = n
            group, height, some = cut(n, slivers, heads, size)
        pieces = heads * some
        at = (2 * t + 1) * line
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            head = piece // some
            piece = piece % some
            place = first * H + head * K
            for part in range(parts):
                rows_d = rows_h, (starts[t] + first) * R + part * H + head * K, R
                to = (dh, place, H, INT(0), K)
                more = part > 0 or direct
                product_piece(where, piece, (group, height), rows_d, n, Wh[head, part], to, more)
            count_up(counts, at + size)
        wait(counts, at, size, pieces)


def add(rows: Any, at: int, to: Any, first: int, last: int) -> None:
    """Add numbers of rows, beginning at the place `at`, to the numbers of an array from `first` to
    `last`.
    """
    flat = rows.reshape(rows.size)
    at = U(at)
    for i in range(U(first), U(last)):
        to[i] += flat[at + i]


def to_rows(units: Any, rows: Any, at: int, column: int, H: int, first: int, last: int) -> None:
    """Copy the units from `first` to `last`, H per row, to `rows` beginning at row `at` and at a
    column.
    """
    i = first
    while i < last:
        s = i // H
        end = min(last, (s + 1) * H)
        row = U(at + s)
        begin = U(s * H)
        to = U(column)
        for unit in range(U(i), U(end)):
            rows[row, to + (unit - begin)] = units[unit]
        i = end
