"""The time loops of a cell, as plain Python that Numba compiles, and how threads share each step.

`jit.functions` binds F to the dtype, and compiles the loops over all steps once for each dtype. They call the step of a
cell, which is made from its trace, by its address, with a table of the addresses of its arrays.

Arrays of a step are flat: n sequences of H units, one after the other, for each gate. Arrays over all steps have the
rows of the packed batch one after the other; `starts` has the first row of each step, and the end.

Every thread runs the whole loop. The work of a step has two parts, products and then the cell, and each of them is cut
into pieces which threads take one by one (`take`), until none is left; then they wait until the last piece is done.
So nobody waits for a thread that has not begun or that the system holds up, but for the piece that it has; and the bits
of a result do not depend on who does a piece. Weights are packed as `products.py` says.

Heads do not meet in a loop, so a thread may also run the units from `low` to `high`, which are those of whole heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp  # an unsigned index never counts from the end
INT: Any = np.int64  # Numba compiles a function for a literal number apart from that for other integers
MOST = 12  # rows of the largest tile; below, how many slivers the smaller tiles take
SLIVERS1 = SLIVERS2 = SLIVERS4 = SLIVERS6 = 1
UNITS = 1024  # of the cell in a piece
PATIENCE = 2000  # times that a waiting thread asks before it lets others have the core
SIZES = ("UNITS", "PATIENCE")


stand_in: Any = None
rows_times_vector = pack_transposed = call_product = stand_in  # of `products.py` and `vectors.py`
count_up = count_of = let_others_run = stand_in  # of `shared_memory.py`
# The step of a cell, for its units from `first` to `last`: `step(zx, h, new_h, carry, new_carry, saved, first, last,
# *arrays)`. In their arrays the products of x begin at `zx`, h before and after the step at `h` and `new_h`, the other
# states at `carry` and `new_carry`, and what is saved at `saved`. `call_step` calls it by its address, with a table of
# the arrays and with the numbers.
step = call_step = stand_in


def take(counts: Any, at: int, k: int, size: int, pieces: int) -> int:
    """Return a piece that nobody has taken, or -1: thread k of `size` begins with its own share.

    A share is the same at every step, so that weights stay in the cache of a core.
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
    """Wait until all pieces are done, of which `counts` has the number after those of `take`."""
    asked = 0
    while size > 1 and count_of(counts, at + size) < pieces:
        asked += 1
        if asked > PATIENCE:
            let_others_run()


def cut(n: int, slivers: int, heads: int, size: int) -> tuple[int, int, int]:
    """Return the slivers and the rows of a piece of a product with n rows, and the number of pieces of a head.

    A piece has whole tiles, and all rows unless there would be too few pieces for all threads.
    """
    left = n % MOST
    group = SLIVERS6
    if left == 1:
        group = SLIVERS1
    elif left == 2:
        group = SLIVERS2
    elif left in (3, 4):
        group = SLIVERS4
    elif left == 0 or left > 6:
        group = 1
    group = (heads * slivers // (4 * size) + group) // group * group
    across, rows = (slivers + group - 1) // group, max(n, 1)
    if heads * across < size:
        rows = ((n + size - 1) // size + MOST - 1) // MOST * MOST
    return group, rows, across * ((n + rows - 1) // rows)


def count_pieces(n: int, H: int, low: int, high: int) -> int:
    """Return into how many pieces the cell's work on some units of n sequences is cut."""
    return (n * H + UNITS - 1) // UNITS if high - low == H else n


def units_of(piece: int, first: int, n: int, H: int, low: int, high: int) -> tuple[int, int]:
    """Return the first unit and the end of a piece of the cell's work on n sequences from `first` on."""
    if high - low == H:
        return first * H + piece * UNITS, first * H + min(n * H, (piece + 1) * UNITS)
    return (first + piece) * H + low, (first + piece) * H + high


def product_piece(
    where: int,
    piece: int,
    group: int,
    rows: int,
    a: Any,
    at: int,
    row: int,
    n: int,
    b: Any,
    out: Any,
    place: int,
    line: int,
    gate: int,
    width: int,
    add: bool,
) -> None:
    """Do a piece of a product, which has `rows` rows and `group` slivers; its function lies at `where`."""
    slivers = b.shape[0]
    across = (slivers + group - 1) // group
    q, i = piece % across * group, piece // across * rows
    some, stop = min(rows, n - i), min(q + group, slivers)
    from_row, to = at + i * row, place + i * line
    call_product(where, a, from_row, row, 1, some, b, q, stop, out, to, line, gate, width, add, False)


def forward(
    where: int,
    cell: int,
    k: int,
    size: int,
    first: int,
    last: int,
    low: int,
    high: int,
    counts: Any,
    table: Any,
    numbers: Any,
    x: Any,
    hs: Any,
    starts: Any,
    Vx: Any,
    Wx: Any,
    V: Any,
    Wh: Any,
    zx: Any,
    zh: Any,
    lean: bool,
) -> None:
    """Run all steps of some units of the sequences from `first` to `last` as thread k of `size`.

    Wx and Wh are packed, and Wx has the columns of these units alone. Unless Vx (G, 1, units, D) and V (G, heads, K, K)
    are empty, the others are room for these, of which a thread packs its own heads. hs has h of the sequences of the
    first step, and then takes that after every step. The products of x are made for as many steps as zx (G, rows * H)
    holds. If `lean`, the states but h have two places, of which a step reads one and writes the other: with one place a
    step would overwrite what it reads, and LLVM would make no vectors. `where` is the address of `products.product`,
    and `cell` that of the step, which takes `table` and `numbers` as `codegen.kernel` says.
    """
    (H, D), flat, n0 = (hs.shape[1], x.shape[1]), hs.reshape(hs.size), starts[1] - starts[0]
    slivers, K = Wh.shape[1], Wh.shape[2]
    heads, start_head, some_units = (high - low) // K, low // K, high - low
    steps, only = starts.size - 1, Wh[0]
    if V.size:
        every = Wh.reshape(Wh.shape[0] * slivers, K, Wh.shape[3])
        pack_transposed(V, every, start_head * slivers, (start_head + heads) * slivers)
        if Vx.size:
            pack_transposed(Vx, Wx, INT(0), Wx.shape[0])
    line = 0 if size == 1 else counts.size // (2 * steps)
    if size > 1 and count_of(counts, (2 * steps - 1) * line + size) > 0:
        return  # the others are at the last part
    xs, zxs, zhs = x.reshape(x.size), zx.reshape(zx.size), zh.reshape(zh.size)
    until = origin = rows = group = height = some = wide = tall = 0
    for t in range(steps):
        n, before = min(last, starts[t + 1] - starts[t]) - first, starts[t - 1] + n0 if t else 0
        if n <= 0:
            break
        fresh = 0
        if t == until:
            origin, until, fresh = starts[t], t + 1, n
            while last - first == n0 and until < steps and (starts[until + 1] - origin) * H <= zx.shape[1]:
                until += 1
                fresh = starts[until] - origin
        if n != rows:
            rows, (group, height, some) = n, cut(n, slivers, heads, size)
        few = 0
        if fresh > 0:
            wide, tall, few = cut(fresh, Wx.shape[0], INT(1), size)
            if Wx.shape[0] == 0:
                few = 1
        pieces, at = few + heads * some, 2 * t * line
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            if piece >= few:
                head, piece = start_head + (piece - few) // some, (piece - few) % some
                place, W = first * H + head * K, only if Wh.shape[0] == 1 else Wh[head]
                product_piece(
                    where, piece, group, height, flat, before * H + place, H, n, W, zhs, place, H, zh.shape[1], K, False
                )
            elif Wx.shape[0]:
                row, place, gate = (origin + first) * D, first * H + low, zx.shape[1]
                product_piece(where, piece, wide, tall, xs, row, D, fresh, Wx, zxs, place, H, gate, some_units, False)
            else:
                for g in range(zh.shape[0]):
                    for s in range(first, first + fresh):
                        at_gate, to = (origin + s) * D + g * H + low, g * zx.shape[1] + s * H + low
                        copy(xs, at_gate, zxs, to, some_units)
            count_up(counts, at + size)
        wait(counts, at, size, pieces)
        pieces, at = count_pieces(n, H, low, high), (2 * t + 1) * line
        p, q = (t % 2 * n0, (t + 1) % 2 * n0) if lean else (before, starts[t] + n0)
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            begin, end = units_of(piece, first, n, H, low, high)
            j, r = (starts[t] - origin) * H, starts[t] * H
            call_step(cell, j, before * H, r + n0 * H, p * H, q * H, r, begin, end, table, numbers)
            count_up(counts, at + size)
        wait(counts, at, size, pieces)


def forward_step(x: Any, Wx: Any, Wh: Any, h: Any, *arrays: Any) -> None:
    """Run one step of one sequence from x (1, D), with the weights as they are; `step` is put inline.

    Every state is (2 H,): the one before the step, and room for the one after it.
    """
    H = h.size // 2
    G = Wx.shape[0] // H
    zx, zh = np.empty((G, H), F), np.empty((G, H), F)
    rows_times_vector(Wx, x[0], zx.reshape(zx.size))
    rows_times_vector(Wh, h[:H], zh.reshape(zh.size))
    step(0, 0, H, 0, H, 0, 0, H, zx, zh, h, *arrays)


def backward(
    where: int,
    cell: int,
    k: int,
    size: int,
    first: int,
    last: int,
    low: int,
    high: int,
    counts: Any,
    table: Any,
    numbers: Any,
    dy: Any,
    starts: Any,
    Wh: Any,
    dZ: Any,
    dQ: Any,
    dz: Any,
    dzh: Any,
    direct: bool,
    dh: Any,
) -> None:
    """Differentiate all steps of some units of the sequences from `first` to `last` as thread k of `size`.

    dh and the gradients of the other states are those of the final state, and become those of the initial one. dQ
    takes the gradients of the products of h, or is empty where these are those of x. If `direct`, the cell has a
    gradient of h before the step, which it writes to dh. Wh (heads, parts, ...) is packed for products with the
    gradients of all gates, or with those of one after the other where there are several heads.
    """
    (parts, slivers), (G, R) = Wh.shape[1:3], (dz.shape[0], dZ.shape[1])
    H, n0 = R // G, starts[1] - starts[0]
    K = H // Wh.shape[0]
    heads, start_head = (high - low) // K, low // K
    line = 0 if size == 1 else counts.size // (2 * (starts.size - 1))
    if size > 1 and count_of(counts, line + size) > 0:
        return  # the others are at the last part
    rows = group = height = some = 0
    rows_h = dQ.reshape(dQ.size) if dQ.size else dZ.reshape(dZ.size)
    for t in range(starts.size - 2, -1, -1):
        n, before = min(last, starts[t + 1] - starts[t]) - first, starts[t - 1] + n0 if t else 0
        if n <= 0:
            continue
        pieces, r, at = count_pieces(n, H, low, high), starts[t] * H, 2 * t * line
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            begin, end = units_of(piece, first, n, H, low, high)
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
            rows, (group, height, some) = n, cut(n, slivers, heads, size)
        pieces, at = heads * some, (2 * t + 1) * line
        while True:
            piece = take(counts, at, k, size, pieces)
            if piece < 0:
                break
            head, piece = start_head + piece // some, piece % some
            place = first * H + head * K
            for part in range(parts):
                start, more = (starts[t] + first) * R + part * H + head * K, part > 0 or direct
                W = Wh[head, part]
                product_piece(where, piece, group, height, rows_h, start, R, n, W, dh, place, H, INT(0), K, more)
            count_up(counts, at + size)
        wait(counts, at, size, pieces)


def copy(rows: Any, at: int, to: Any, place: int, n: int) -> None:
    """Copy n numbers of an array, from one place on, to another array."""
    at, place = U(at), U(place)
    for i in range(U(n)):
        to[place + i] = rows[at + i]


def add(rows: Any, at: int, to: Any, first: int, last: int) -> None:
    """Add numbers of rows, from the place `at` on, to those of an array from `first` to `last`."""
    flat, at = rows.reshape(rows.size), U(at)
    for i in range(U(first), U(last)):
        to[i] += flat[at + i]


def to_rows(units: Any, rows: Any, at: int, column: int, H: int, first: int, last: int) -> None:
    """Copy the units from `first` to `last`, H to a row, to rows from `at` on, from a column on."""
    i = first
    while i < last:
        s = i // H
        end = min(last, (s + 1) * H)
        row, begin, to = U(at + s), U(s * H), U(column)
        for unit in range(U(i), U(end)):
            rows[row, to + (unit - begin)] = units[unit]
        i = end
