"""Matrix products for compiled loops, as plain Python that Numba compiles; `vectors.py` has the innermost loop.

The factor on the right is packed: `slivers` of `columns` columns, two vectors of the processor, each with all its rows
one after the other, (slivers, K, columns). Packed once, it serves all steps of a loop, where BLAS packs at every call.
Sums run over k in order, so the bits of a result do not depend on how the work is divided.

`jit` binds the names below to a dtype's own functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp
INT: Any = np.int64  # Numba compiles a function for a literal number apart from that for other integers
MOST, COLUMNS, LANES = 12, 32, 16  # rows of the largest tile, columns of a sliver, and numbers of a vector
SLIVERS1 = SLIVERS2 = SLIVERS4 = SLIVERS6 = 1  # slivers that a tile of so many rows takes

DEPTH = 256  # so many rows of both factors of `products_over_rows` stay in the cache
PANELS = 40  # so many panels of the left one, and no more, stay in the cache of a core
BLOCK = 96  # rows of the left factor of `product_of_rows` that stay in the cache of a core
FEW = 3  # columns after the last whole sliver that are computed one by one
TOGETHER = 16  # rows that are copied side by side: a processor foresees no more streams
LINE = 16  # numbers of a cache line, or of two
SIZES = ("DEPTH", "PANELS", "BLOCK", "FEW", "TOGETHER", "LINE")


stand_in: Any = None
# Functions of `vectors.py`: tile has MOST rows, tile_half has as many of one vector, the others as their names say.
tile = tile_half = tile1 = tile2 = tile4 = tile6 = tile8 = stand_in
copy_panel = copy_sliver = copy_turned = call_product = stand_in
carray = pointer = address_of = stand_in


def pack(W: Any, packed: Any, first: int, last: int) -> None:
    """Pack matrices (gates, heads, K, columns), all gates of one head after the other: slivers `first` to `last`."""
    (gates, heads, K, width), flat = W.shape, W.reshape(W.size)
    per = packed.shape[0] // (gates * heads)
    while first < last:
        m, q = first // per, first % per
        stop = min(per, q + last - first)
        at = (m % gates * heads + m // gates) * K * width
        pack_rows(flat, at, width, width, K, q, stop, packed, first)
        first += stop - q


def pack_transposed(W: Any, packed: Any, first: int, last: int) -> None:
    """Do what `pack` does for the transposed of matrices (gates, heads, columns, K)."""
    (gates, heads, width, K), flat = W.shape, W.reshape(W.size)
    per = packed.shape[0] // (gates * heads)
    while first < last:
        m, q = first // per, first % per
        stop = min(per, q + last - first)
        at = (m % gates * heads + m // gates) * K * width
        pack_columns(flat, at, K, width, K, q, stop, packed, first)
        first += stop - q


def pack_rows(W: Any, at: int, lead: int, width: int, K: int, first: int, last: int, packed: Any, to: int) -> None:
    """Copy the slivers from `first` to `last` of a matrix (K, width) to those of `packed` from `to` on.

    Its numbers are W[at + k lead + j]. Each sliver has K rows, and zeros after the last column.
    """
    whole = min(last, width // COLUMNS)
    for row in range(0, K, TOGETHER):
        stop = min(K, row + TOGETHER)
        for q in range(first, whole):
            for k in range(row, stop):
                place = ((to + q - first) * K + k) * COLUMNS
                copy_sliver(W, at + k * lead + q * COLUMNS, packed, place)
    if max(first, whole) < last:
        sliver, column = packed[to + whole - first], whole * COLUMNS
        for k in range(U(K)):
            start = U(at + column) + k * U(lead)
            for j in range(U(COLUMNS)):
                sliver[k, j] = W[start + j] if j < U(width - column) else F(0)


def pack_columns(W: Any, at: int, lead: int, width: int, K: int, first: int, last: int, packed: Any, to: int) -> None:
    """Do what `pack_rows` does for a matrix whose columns are contiguous: its numbers are W[at + j lead + k]."""
    deep = K // LANES * LANES
    for q in range(first, last):
        sliver, start, wide = to + q - first, at + q * COLUMNS * lead, min(COLUMNS, width - q * COLUMNS)
        whole = wide // LANES * LANES
        for j in range(0, whole, LANES):
            for k in range(0, deep, LANES):
                copy_turned(W, start + j * lead + k, lead, packed, (sliver * K + k) * COLUMNS + j, COLUMNS)
        for j in range(U(COLUMNS)):
            for k in range(U(deep if j < U(whole) else 0), U(K)):
                packed[sliver, k, j] = W[U(start) + j * U(lead) + k] if j < U(wide) else F(0)


def product(
    a: Any,
    at: int,
    row: int,
    pace: int,
    n: int,
    b: Any,
    first: int,
    stop: int,
    out: Any,
    place: int,
    line: int,
    gate: int,
    width: int,
    add: bool,
    far: bool,
) -> None:
    """Multiply n rows by slivers from `first` to `stop` of packed matrices, one for each gate g, of `width` columns:

        out[place + g gate + i line + j] = sum over k of a[at + i row + k pace] b[k, g, j]

    or add this to it. Indices count numbers from the first of an array. Each sliver comes from far memory once, for all
    rows, and the next one is asked for meanwhile. If `far`, it is rows of a that come from there, each for the first
    sliver: the next ones are asked for meanwhile. `first`, and `stop` where it is not the end of b, is a multiple of
    the number of slivers that the tile of the remaining n % MOST rows takes (`loops.cut` sees to it).
    """
    K, columns = b.shape[1], b.shape[2]
    per, whole = (width + columns - 1) // columns, n // MOST * MOST
    left, last, end = n - whole, at + whole * row, place + whole * line
    between = (address_of(a) - address_of(b)) // a.itemsize  # numbers from the first of b to the first of a
    short = (width + LANES - 1) // LANES % 2 == 1  # the last sliver of a gate has columns for one vector alone
    for q in range(first, stop):
        half = short and q % per + 1 == per
        for i in range(0, whole, MOST):
            ahead, to = (columns + i // MOST * (columns // 2)) * K, place + i * line
            if far and q == first:
                ahead = between + at + (i + MOST) * row - q * K * columns
            if half:
                tile_half(a, at + i * row, row, pace, MOST, b, q, ahead, out, to, line, gate, width, per, add)
            else:
                tile(a, at + i * row, row, pace, MOST, b, q, ahead, out, to, line, gate, width, per, add)
        # The tiles of few rows take several slivers, when the last of these is reached.
        q1, final = q + 1, q + 1 == stop
        if left == 0:
            pass
        elif left == 1:
            if final or q1 % SLIVERS1 == 0:
                tile1(a, last, row, pace, left, b, q - q % SLIVERS1, 0, out, end, line, gate, width, per, add)
        elif left == 2:
            if final or q1 % SLIVERS2 == 0:
                tile2(a, last, row, pace, left, b, q - q % SLIVERS2, 0, out, end, line, gate, width, per, add)
        elif left <= 4:
            if final or q1 % SLIVERS4 == 0:
                tile4(a, last, row, pace, left, b, q - q % SLIVERS4, 0, out, end, line, gate, width, per, add)
        elif left <= 6:
            if final or q1 % SLIVERS6 == 0:
                tile6(a, last, row, pace, left, b, q - q % SLIVERS6, 0, out, end, line, gate, width, per, add)
        elif left <= 8:
            tile8(a, last, row, pace, left, b, q, columns * K, out, end, line, gate, width, per, add)
        else:
            tile(a, last, row, pace, left, b, q, columns * K, out, end, line, gate, width, per, add)


def column_of_product(
    a: Any,
    at: int,
    row: int,
    pace: int,
    M: int,
    K: int,
    b: Any,
    start: int,
    far: int,
    spare: Any,
    out: Any,
    place: int,
    line: int,
    add: bool,
) -> None:
    """Set M numbers out[place + i line] = sum over k of a[at + i row + k pace] b[start + k far], or add this to them.

    Either `row` or `pace` is 1; `spare` is room for K + M numbers. With a `pace` of 1, sums are in the quickest order.
    """
    column, sums = spare[:K], spare[K:]
    for k in range(U(K)):
        column[k] = b[U(start) + k * U(far)]
    if pace == 1:
        for i in range(U(M)):
            found, first = F(0), U(at) + i * U(row)
            for k in range(U(K)):
                found += a[first + k] * column[k]
            sums[i] = found
    else:
        sums.fill(F(0))
        for k in range(U(K)):
            factor, first = column[k], U(at) + k * U(pace)
            for i in range(U(M)):
                sums[i] += a[first + i] * factor
    for i in range(U(M)):
        to = U(place) + i * U(line)
        out[to] = out[to] + sums[i] if add else sums[i]


def products_of_batch(
    where: int,
    M: int,
    K: int,
    N: int,
    a: int,
    row: int,
    pace: int,
    a_step: int,
    b: int,
    lead: int,
    turned: bool,
    b_step: int,
    out: int,
    line: int,
    out_step: int,
    add: bool,
    first: int,
    last: int,
) -> None:
    """Set the matrices from `first` to `last` of a batch out (M, N) = a (M, K) @ b (K, N), or add the products to them.

    All are given by their addresses, and `where` is that of `product`. Row i and column k of the matrix m of a are
    a[m a_step + i row + k pace]. Row k and column j of b are b[m b_step + k lead + j], or b[m b_step + j lead + k]
    where b is `turned`. Row i and column j of out are out[m out_step + i line + j].
    """
    left, right, result = carray(pointer(a), 1), carray(pointer(b), 1), carray(pointer(out), 1)
    width = N - N % COLUMNS if N % COLUMNS <= FEW else N
    slivers, (near, far) = (width + COLUMNS - 1) // COLUMNS, (lead, 1) if turned else (1, lead)
    whole, spare = room(slivers * min(K, DEPTH) * COLUMNS), room(K + M)
    for m in range(first, last):
        for j in range(width, N):
            column, to = m * b_step + j * near, m * out_step + j
            column_of_product(left, m * a_step, row, pace, M, K, right, column, far, spare, result, to, line, add)
        for start in range(0, K, DEPTH):
            some = min(DEPTH, K - start)
            packed = whole[: slivers * some * COLUMNS].reshape(slivers, some, COLUMNS)
            if m == first or b_step or some < K:
                if turned:
                    pack_columns(right, m * b_step + start, lead, width, some, INT(0), slivers, packed, INT(0))
                else:
                    pack_rows(right, m * b_step + start * lead, lead, width, some, INT(0), slivers, packed, INT(0))
            from_row = m * a_step + start * pace
            more = add or start > 0
            to = m * out_step
            call_product(
                where, left, from_row, row, pace, M, packed, 0, slivers, result, to, line, 0, width, more, False
            )


def pack_blocks(W: Any, turned: bool, per: int, packed: Any, first: int, last: int) -> None:
    """Pack a matrix by equal blocks of its rows, `per` slivers each: the slivers from `first` to `last`.

    W is the matrix (K, width), or the transposed of one that is `turned`.
    """
    flat, lead, deep = W.reshape(W.size), W.shape[1], packed.shape[1]
    while first < last:
        block, q = first // per, first % per
        stop = min(per, q + last - first)
        if turned:
            pack_columns(flat, block * deep, lead, W.shape[0], deep, q, stop, packed, first)
        else:
            pack_rows(flat, block * deep * lead, lead, lead, deep, q, stop, packed, first)
        first += stop - q


def product_of_rows(where: int, a: Any, b: Any, out: Any, first: int, last: int) -> None:
    """Set the rows from `first` to `last` of out (n, width) = a (n, K) @ b.

    b is packed by equal blocks of its rows, (blocks, slivers, rows, columns). Where it is narrow, it is a that comes
    from far memory. `where` is the address of `product`.
    """
    (K, width), flat, to = (a.shape[1], out.shape[1]), a.reshape(a.size), out.reshape(out.size)
    blocks, slivers, deep = b.shape[:3]
    far = width <= COLUMNS
    for start in range(first, last, BLOCK):
        n = min(BLOCK, last - start)
        for block in range(blocks):
            at = start * K + block * deep
            row = start * width
            call_product(where, flat, at, K, 1, n, b[block], 0, slivers, to, row, width, 0, width, block > 0, far)


def product_of_few_rows(where: int, W: Any, a: Any, blocks: int, out: Any, first: int, last: int) -> None:
    """Set the columns from `first` to `last` of out (n, width) = a (n, K) @ W^T, for few rows and a large W (width, K).

    W is the left factor of the transposed product, as it lies: it comes from far memory, and packed it would go there
    and come back. Every part packs a^T, by equal blocks of its rows. `where` is the address of `product`.
    """
    (n, width), K = out.shape, W.shape[1]
    flat, rows, to, turned = W.reshape(W.size), a.reshape(a.size), out.reshape(out.size), room(BLOCK * n)
    slivers, deep = (n + COLUMNS - 1) // COLUMNS, K // blocks
    packed = room(blocks * slivers * deep * COLUMNS).reshape(blocks, slivers, deep, COLUMNS)
    for k in range(blocks):
        pack_columns(rows, k * deep, K, n, deep, INT(0), slivers, packed[k], INT(0))
    for start in range(first, last, BLOCK):
        some = min(BLOCK, last - start)
        for k in range(blocks):
            at = start * K + k * deep
            call_product(where, flat, at, K, 1, some, packed[k], 0, slivers, turned, 0, n, 0, n, k > 0, True)
        turn(turned, n, some, n, to, start, width)


def turn(rows: Any, lead: int, height: int, width: int, to: Any, place: int, line: int) -> None:
    """Copy a matrix (height, width), its rows `lead` apart, to its transposed, whose rows are `line` apart."""
    high, wide = height // LANES * LANES, width // LANES * LANES
    for i in range(0, high, LANES):
        for k in range(0, wide, LANES):
            copy_turned(rows, i * lead + k, lead, to, place + k * line + i, line)
    for k in range(U(width)):
        for i in range(U(high if k < U(wide) else 0), U(height)):
            to[U(place) + k * U(line) + i] = rows[i * U(lead) + k]


def products_over_rows(a: Any, bs: Any, outs: Any, first: int, last: int) -> None:
    """Set the rows from `first` to `last` of each out (M, width) = a^T b, from rows a (N, M) and b (N, width)."""
    if first == last:
        return
    N, most, slivers = a.shape[0], min(PANELS, (last - first + MOST - 1) // MOST), 0
    for b in bs:
        slivers += (b.shape[1] + COLUMNS - 1) // COLUMNS
    left, right = room(most * DEPTH * MOST).reshape(most, DEPTH, MOST), room(slivers * DEPTH * COLUMNS)
    for start in range(0, N, DEPTH):
        some, q = min(DEPTH, N - start), INT(0)
        packed = right[: slivers * some * COLUMNS].reshape(slivers, some, COLUMNS)
        for b in bs:
            every = (b.shape[1] + COLUMNS - 1) // COLUMNS
            width = b.shape[1]
            pack_rows(b.reshape(b.size), start * width, width, width, some, INT(0), every, packed, q)
            q += every
        for row in range(first, last, PANELS * MOST):
            stop, q = min(last, row + PANELS * MOST), 0
            pack_panels(a, start, some, row, stop, left)
            for b, out in zip(bs, outs):  # noqa: B905
                width = b.shape[1]
                for column in range(0, width, COLUMNS):
                    for i in range(row, stop, MOST):
                        n, rest, place = min(MOST, stop - i), width - column, i * width + column
                        at = (i - row) * DEPTH
                        tile(left, at, 1, MOST, n, packed, q, 0, out, place, width, 0, rest, 1, start > 0)
                    q += 1


def room(size: int) -> Any:
    """Return room for numbers that begins with a cache line, so that no vector lies in two."""
    found = np.empty(size + LINE, F)
    first = -address_of(found) // found.itemsize % LINE
    return found[first : first + size]


def vector_over_rows(a: Any, b: Any, out: Any, first: int, last: int) -> None:
    """Set the rows from `first` to `last` of out (M, 1) = a^T b, from rows a (N, M) and b (N, 1)."""
    first, last = U(first), U(last)
    for i in range(first, last):
        out[i, 0] = F(0)
    for k in range(U(a.shape[0])):
        for i in range(first, last):
            out[i, 0] += a[k, i] * b[k, 0]


def pack_panels(a: Any, start: int, K: int, first: int, last: int, panels: Any) -> None:
    """Copy K rows of the columns from `first` to `last` of a matrix, MOST columns to a panel (K, MOST)."""
    whole, rest, wide = (last - first) // MOST, (last - first) % MOST, a.shape[1]
    for row in range(0, K, TOGETHER):
        stop = min(K, row + TOGETHER)
        for p in range(whole):
            for k in range(row, stop):
                copy_panel(a, (start + k) * wide + first + p * MOST, panels, (p * panels.shape[1] + k) * MOST)
    if rest:
        for k in range(U(K)):
            for i in range(U(rest)):
                panels[whole, k, i] = a[U(start) + k, U(first + whole * MOST) + i]


def product_of_vector(W: Any, x: Any, out: Any, first: int, last: int) -> None:
    """Set the numbers from `first` to `last` of out = W @ x; `first` is a multiple of 4."""
    rows_times_vector(W[first:last], x, out[first:last])


def rows_times_vector(W: Any, x: Any, y: Any) -> None:
    """Set y = W @ x, four rows at a time; sums are in the order that is quickest."""
    whole, high, wide = U(y.shape[0] // 4 * 4), U(y.shape[0]), U(x.shape[0])
    for i in range(U(0), whole, U(4)):
        a, b, c, d = F(0), F(0), F(0), F(0)
        for k in range(wide):
            a += W[i, k] * x[k]
            b += W[i + U(1), k] * x[k]
            c += W[i + U(2), k] * x[k]
            d += W[i + U(3), k] * x[k]
        y[i], y[i + U(1)], y[i + U(2)], y[i + U(3)] = a, b, c, d
    for i in range(whole, high):
        a = F(0)
        for k in range(wide):
            a += W[i, k] * x[k]
        y[i] = a
