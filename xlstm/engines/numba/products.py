"""Matrix products for compiled loops, as plain Python that Numba compiles; `llvm.py` has the
innermost loop.

The right factor is packed into `slivers`, (slivers, K, columns). A sliver has two vectors of
columns, and all its rows one after another. The factor is packed once for all steps of a loop,
while BLAS packs at every call. Sums run over k in order, so the bits of a result do not depend on
how the work is divided.

`jit` binds the names below to functions for a dtype.
"""

# Numba finds the types of these functions.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp
# Numba compiles a function for a literal number separately from other integers
INT: Any = np.int64
MOST = 12
COLUMNS = 32
LANES = 16  # rows of the largest tile, columns of a sliver, and numbers of a vector
SLIVERS1 = SLIVERS2 = SLIVERS4 = 1  # slivers of a tile with 1, 2 or 4 rows

DEPTH = 256  # rows of both factors of `products_over_rows` that stay in the cache
PANELS = 40  # most panels of the left factor that stay in the cache of a core
BLOCK = 96  # rows of the left factor of `product_of_rows` that stay in the cache of a core
TOGETHER = 16  # rows that are copied side by side: processors prefetch no more streams
LINE = 16  # numbers of a cache line, or of two


stand_in: Any = None
# from `llvm.py`: tile has MOST rows, the others as many as their names say
tile = tile1 = tile2 = tile4 = tile8 = stand_in
copy_turned = call_product = stand_in


def pack(W, start, turned, far, lead, width, packed, first, last):
    """Pack the slivers from `first` to `last` of all matrices (K, width).

    The first matrix begins at W[start], and the others follow at a distance of `far`. Rows of a
    matrix are `lead` apart; if it is `turned`, its columns are.
    """
    K = packed.shape[1]
    per = (width + COLUMNS - 1) // COLUMNS
    while first < last:
        at = start + first // per * far
        q = first % per
        stop = min(per, q + last - first)
        if turned:
            pack_columns(W, at, lead, width, K, q, stop, packed, first)
        else:
            pack_rows(W, at, lead, width, K, q, stop, packed, first)
        first += stop - q


def packed_in(place, W, start, turned, lead, width, K):
    """Return a matrix, which lies as in `pack`, packed in a given room."""
    slivers = (width + COLUMNS - 1) // COLUMNS
    packed = place[: slivers * K * COLUMNS].reshape(slivers, K, COLUMNS)
    pack(W, start, turned, INT(0), lead, width, packed, INT(0), slivers)
    return packed


def pack_rows(W, at, lead, width, K, first, last, packed, to):
    """Copy the slivers from `first` to `last` of a matrix (K, width) to the slivers of `packed`
    beginning at `to`.

    The numbers of the matrix are W[at + k lead + j]. Each sliver has K rows, and zeros after the
    last column.
    """
    whole = min(last, width // COLUMNS)
    for row in range(0, K, TOGETHER):
        stop = min(K, row + TOGETHER)
        for q in range(first, whole):
            for k in range(row, stop):
                start = U(at + k * lead + q * COLUMNS)
                sliver = packed[to + q - first]
                for j in range(U(COLUMNS)):
                    sliver[k, j] = W[start + j]
    if max(first, whole) < last:
        sliver = packed[to + whole - first]
        column = whole * COLUMNS
        for k in range(U(K)):
            start = U(at + column) + k * U(lead)
            for j in range(U(COLUMNS)):
                sliver[k, j] = W[start + j] if j < U(width - column) else F(0)


def pack_columns(W, at, lead, width, K, first, last, packed, to):
    """Do the same as `pack_rows` for a matrix with contiguous columns: its numbers are W[at + j
    lead + k].
    """
    flat = packed.reshape(packed.size)
    for q in range(first, last):
        place = (to + q - first) * K * COLUMNS
        wide = min(COLUMNS, width - q * COLUMNS)
        turn(W, at + q * COLUMNS * lead, lead, wide, K, flat, place, COLUMNS)
        for k in range(U(K)):
            for j in range(U(wide), U(COLUMNS)):
                flat[U(place) + k * U(COLUMNS) + j] = F(0)


def turn(rows, at, lead, height, width, to, place, line):
    """Copy the transpose of a matrix (height, width), with rows `lead` apart, to rows that are
    `line` apart.
    """
    high = height // LANES * LANES
    wide = width // LANES * LANES
    for i in range(0, high, LANES):
        for k in range(0, wide, LANES):
            copy_turned(rows, at + i * lead + k, lead, to, place + k * line + i, line)
    for k in range(U(width)):
        for i in range(U(high if k < U(wide) else 0), U(height)):
            to[U(place) + k * U(line) + i] = rows[U(at) + i * U(lead) + k]


def product(a, rows, b, slivers, out, to, add):
    """Multiply n rows by the slivers from `first` to `stop` of packed matrices.

    There is a matrix of `width` columns for each gate g:

        out[place + g gate + i line + j] = sum over k of a[at + i row + k pace] * b[k, g, j]

    or, with `add`, the sum is added to `out`. `rows` is (at, row, pace, n), `slivers` is (first,
    stop), and `to` is (place, line, gate, width). Indices count numbers from the first one of an
    array. Each sliver comes from far memory only once, for all rows, and the next sliver is
    prefetched meanwhile. The tile of the remaining n % MOST rows takes several slivers: `first`
    must be a multiple of their number, and so must `stop` unless it is the end of b. `loops.cut`
    ensures this.
    """
    at, row, pace, n = rows
    first, stop = slivers
    place, line, gate, width = to
    K = b.shape[1]
    per = (width + COLUMNS - 1) // COLUMNS
    whole = n // MOST * MOST
    left = n - whole
    last = at + whole * row
    end = place + whole * line
    rest = (last, row, pace, left)
    to_rest = (end, line, gate, width, per)
    slivers_at_once = 1  # slivers of the tile for the remaining rows
    if left == 1:
        slivers_at_once = SLIVERS1
    elif left == 2:
        slivers_at_once = SLIVERS2
    elif left <= 4:
        slivers_at_once = SLIVERS4
    ahead = 0 if left <= 4 else COLUMNS * K
    for q in range(first, stop):
        for i in range(0, whole, MOST):
            tile(
                a,
                (at + i * row, row, pace, MOST),
                b,
                (q, (COLUMNS + i // MOST * LANES) * K),
                out,
                (place + i * line, line, gate, width, per),
                add,
            )
        # Tiles of few rows take several slivers, once the last of these is reached.
        if left == 0 or (q + 1 < stop and (q + 1) % slivers_at_once):
            continue
        begin = (q - q % slivers_at_once, ahead)
        if left == 1:
            tile1(a, rest, b, begin, out, to_rest, add)
        elif left == 2:
            tile2(a, rest, b, begin, out, to_rest, add)
        elif left <= 4:
            tile4(a, rest, b, begin, out, to_rest, add)
        elif left <= 8:
            tile8(a, rest, b, begin, out, to_rest, add)
        else:
            tile(a, rest, b, begin, out, to_rest, add)


def product_of_rows(where, a, b, out, first, last):
    """Set the rows from `first` to `last` of out (n, width) to a (n, K) @ b.

    b is packed in equal blocks of its rows, (blocks, slivers, rows, columns). `where` is the
    address of `product`.
    """
    K, width = (a.shape[1], out.shape[1])
    flat = a.reshape(a.size)
    to = out.reshape(out.size)
    blocks, slivers, deep = b.shape[:3]
    for start in range(first, last, BLOCK):
        n = min(BLOCK, last - start)
        for block in range(blocks):
            at = start * K + block * deep
            place = start * width
            call_product(
                where,
                flat,
                (at, K, 1, n),
                b[block],
                (0, slivers),
                to,
                (place, width, 0, width),
                block > 0,
            )


def product_of_few_rows(where, W, a, blocks, out, first, last):
    """Set the columns from `first` to `last` of out (n, width) to a (n, K) @ W^T, for few rows and
    a large W (width, K).

    W is the left factor of the transposed product, and is not packed: it comes from far memory, and
    a packed copy would go there and come back. Every part packs a^T, in equal blocks of its rows.
    `where` is the address of `product`.
    """
    n, width = out.shape
    K = W.shape[1]
    flat = W.reshape(W.size)
    to = out.reshape(out.size)
    turned = room(BLOCK * n)
    slivers = (n + COLUMNS - 1) // COLUMNS
    deep = K // blocks
    packed = room(blocks * slivers * deep * COLUMNS).reshape(blocks * slivers, deep, COLUMNS)
    pack(a.reshape(a.size), INT(0), True, deep, K, n, packed, INT(0), blocks * slivers)
    for start in range(first, last, BLOCK):
        some = min(BLOCK, last - start)
        for k in range(blocks):
            at = start * K + k * deep
            b = packed[k * slivers : (k + 1) * slivers]
            call_product(
                where, flat, (at, K, 1, some), b, (0, slivers), turned, (0, n, 0, n), k > 0
            )
        turn(turned, 0, n, some, n, to, start, width)


def products_over_rows(a, bs, outs, first, last):
    """Set the rows from `first` to `last` of each out (M, width) to a^T b, from rows a (N, M) and b
    (N, width).
    """
    if first == last:
        return
    N = a.shape[0]
    most = min(PANELS, (last - first + MOST - 1) // MOST)
    slivers = 0
    for b in bs:
        slivers += (b.shape[1] + COLUMNS - 1) // COLUMNS
    left = room(most * DEPTH * MOST).reshape(most, DEPTH, MOST)
    right = room(slivers * DEPTH * COLUMNS)
    for start in range(0, N, DEPTH):
        some = min(DEPTH, N - start)
        q = INT(0)
        packed = right[: slivers * some * COLUMNS].reshape(slivers, some, COLUMNS)
        for b in bs:
            every = (b.shape[1] + COLUMNS - 1) // COLUMNS
            width = b.shape[1]
            pack_rows(
                b.reshape(b.size), start * width, width, width, some, INT(0), every, packed, q
            )
            q += every
        for row in range(first, last, PANELS * MOST):
            stop = min(last, row + PANELS * MOST)
            q = 0
            pack_panels(a, start, some, row, stop, left)
            for b, out in zip(bs, outs):  # noqa: B905
                width = b.shape[1]
                for column in range(0, width, COLUMNS):
                    for i in range(row, stop, MOST):
                        tile(
                            left,
                            ((i - row) * DEPTH, 1, MOST, min(MOST, stop - i)),
                            packed,
                            (q, 0),
                            out,
                            (i * width + column, width, 0, width - column, 1),
                            start > 0,
                        )
                    q += 1


def room(size):
    """Return room for `size` numbers that begins with a cache line, so that no vector lies in two
    lines.
    """
    whole = np.empty(size + LINE, F)
    first = -np.int64(whole.ctypes.data) // whole.itemsize % LINE
    return whole[first : first + size]


def vector_over_rows(a, b, out, first, last):
    """Set the rows from `first` to `last` of out (M, 1) to a^T b, from rows a (N, M) and b (N,
    1).
    """
    first = U(first)
    last = U(last)
    for i in range(first, last):
        out[i, 0] = F(0)
    for k in range(U(a.shape[0])):
        for i in range(first, last):
            out[i, 0] += a[k, i] * b[k, 0]


def pack_panels(a, start, K, first, last, panels):
    """Copy K rows of the columns from `first` to `last` of a matrix into panels (K, MOST)."""
    whole = (last - first) // MOST
    rest = (last - first) % MOST
    for row in range(0, K, TOGETHER):
        stop = min(K, row + TOGETHER)
        for p in range(whole):
            for k in range(row, stop):
                for j in range(U(MOST)):
                    panels[p, k, j] = a[U(start + k), U(first + p * MOST) + j]
    if rest:
        for k in range(U(K)):
            for i in range(U(rest)):
                panels[whole, k, i] = a[U(start) + k, U(first + whole * MOST) + i]


def rows_times_vector(W, x, y):
    """Set y to W @ x, four rows at a time, with sums in the fastest order."""
    whole = U(y.shape[0] // 4 * 4)
    high = U(y.shape[0])
    wide = U(x.shape[0])
    for i in range(U(0), whole, U(4)):
        a = F(0)
        b = F(0)
        c = F(0)
        d = F(0)
        for k in range(wide):
            a += W[i, k] * x[k]
            b += W[i + U(1), k] * x[k]
            c += W[i + U(2), k] * x[k]
            d += W[i + U(3), k] * x[k]
        y[i] = a
        y[i + U(1)] = b
        y[i + U(2)] = c
        y[i + U(3)] = d
    for i in range(whole, high):
        a = F(0)
        for k in range(wide):
            a += W[i, k] * x[k]
        y[i] = a
