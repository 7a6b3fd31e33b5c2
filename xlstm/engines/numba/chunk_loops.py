"""The loops of a chunkwise mLSTM, as plain Python that Numba compiles; numbers are those of `cells/mlstm_chunks.py`.

The formulas are those of `cells/mlstm_formulas.py`, traced, and products are those of `products.py`. `chunks.py` binds
the names below.
"""

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp
INT: Any = np.int64
COLUMNS = 32


stand_in: Any = None  # for a formula or a function of `products.py`
forget = accumulate = written = m_after = stabilise = read_write = keep = stand_in
decay = denominator = quotient = state = stand_in
carray = pointer = at8 = room = pack_rows = pack_columns = call_product = rows_times_vector = stand_in


def chunks(where: int, sizes: Any, views: Any, arrays: Any, numbers: Any, first: int, last: int) -> None:
    """Compute all steps of the matrices from `first` to `last` of a batch, each a head of a sequence.

    Parameters
    ----------
    where : int
        The address of `products.product`.
    sizes : int64 array
        N heads, T steps, K columns of keys, V of values and W of states; the number of chunks, and L steps of each; and
        how many numbers lie between the states before and after a chunk, 0 where only the last ones are kept.
    views : int64 array (6, 4)
        Where q, k, v, i~, f~ and h begin, and how far their sequences, heads and steps are apart, in numbers.
    arrays : int64 array
        The addresses of m0, logf, b, w, most, r, m (float64 from b on), states (matrices, chunks + 1 or 1, K, W), s,
        den and end_m.
    numbers : float64 array
        1 / sqrt(K), and eps.
    """
    N, T, K, V, W, count, L, far = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]
    q, k, v = carray(pointer(views[0, 0]), 1), carray(pointer(views[1, 0]), 1), carray(pointer(views[2, 0]), 1)
    i, f, h = carray(pointer(views[3, 0]), 1), carray(pointer(views[4, 0]), 1), carray(pointer(views[5, 0]), 1)
    m0, logf, b = carray(pointer(arrays[0]), 1), carray(pointer(arrays[1]), 1), carray(at8(arrays[2]), 1)
    w, most, r = carray(at8(arrays[3]), 1), carray(at8(arrays[4]), 1), carray(at8(arrays[5]), 1)
    m, states, s = carray(at8(arrays[6]), 1), carray(pointer(arrays[7]), 1), carray(pointer(arrays[8]), 1)
    d, end_m = carray(pointer(arrays[9]), 1), carray(pointer(arrays[10]), 1)
    root, eps, none = F(numbers[0]), F(numbers[1]), F(-np.inf)
    by_step, by_value = (L + COLUMNS - 1) // COLUMNS, (V + COLUMNS - 1) // COLUMNS
    right, values, new = room(max(by_step, by_value) * K * COLUMNS), room(by_value * L * COLUMNS), room(K * V)
    weights, num, weighted = room(L * L), room(L * V), room(L * K)
    n, written_n, sums, more = np.empty(K, F), np.empty(K, F), np.empty(L, F), np.empty(L, F)
    read, write, steps, ones = np.empty(L, F), np.empty(L, F), np.empty(L, F), np.empty(L, F)
    for t in range(L):
        steps[t], ones[t] = F(t), F(1)
    for matrix in range(first, last):
        sequence, head = matrix // N, matrix % N
        q0, k0 = sequence * views[0, 1] + head * views[0, 2], sequence * views[1, 1] + head * views[1, 2]
        v0, i0 = sequence * views[2, 1] + head * views[2, 2], sequence * views[3, 1] + head * views[3, 2]
        f0, h0 = sequence * views[4, 1] + head * views[4, 2], sequence * views[5, 1] + head * views[5, 2]
        before = np.float64(m0[matrix])
        C = matrix * (count * far + K * W)
        for j in range(K):
            n[j] = states[C + j * W + V]
        for chunk in range(count):
            start, at = chunk * L, (matrix * count + chunk) * L
            some = min(L, T - start)
            # The gates (1) (2) (3). Past the end nothing is written, and nothing forgotten.
            for t in range(L):
                logf[at + t] = forget(f[f0 + (start + t) * views[4, 3]]) if t < some else F(0)
            decayed, largest = 0.0, -np.inf
            for t in range(L):
                given = i[i0 + (start + t) * views[3, 3]] if t < some else none
                decayed, largest = accumulate(decayed, largest, given, logf[at + t])
                b[at + t], most[at + t], w[at + t] = decayed, largest, written(given, decayed)
            m[matrix * count + chunk] = before
            end = stabilise(largest, before)
            kept = keep(before, end)
            for t in range(L):
                r[at + t] = stabilise(most[at + t], before)
                read[t], write[t] = read_write(w[at + t], r[at + t], before, end, root)
            before = m_after(before, decayed, largest)
            # P (4) (5), and its sums.
            q1, k1, v1 = q0 + start * views[0, 3], k0 + start * views[1, 3], v0 + start * views[2, 3]
            packed, q_step = as_columns(k, k1, views[1, 3], some, K, right), views[0, 3]
            call_product(where, q, q1, q_step, 1, some, packed, 0, len(packed), weights, 0, some, 0, some, False, False)
            for t in range(some):
                row, rt = U(t * some), r[at + t]
                for u in range(U(t + 1)):
                    weights[row + u] *= decay(w[U(at) + u], rt, steps[u], steps[t], root)
                for u in range(U(t + 1), U(some)):
                    weights[row + u] = F(0)
            square = weights[: some * some].reshape(some, some)
            rows_times_vector(square, ones[:some], sums[:some])
            # num and s (6).
            written_v = as_rows(v, v1, views[2, 3], V, some, values)
            call_product(where, weights, 0, some, 1, some, written_v, 0, by_value, num, 0, V, 0, V, False, False)
            scaled(q, q1, q_step, read, some, K, weighted)
            packed = as_rows(states, C, W, V, K, right)
            call_product(where, weighted, 0, K, 1, some, packed, 0, by_value, num, 0, V, 0, V, True, False)
            rows_times_vector(weighted[: some * K].reshape(some, K), n, more[:some])
            # h (7) (8).
            for t in range(some):
                s[at + t] = sums[t] + more[t]
                d[at + t] = divisor = denominator(s[at + t], b[at + t], r[at + t], eps)
                from_row, to_row = U(t * V), U(h0 + (start + t) * views[5, 3])
                for j in range(U(V)):
                    h[to_row + j] = quotient(num[from_row + j], divisor)
            for t in range(some, L):
                s[at + t] = F(0)
                d[at + t] = denominator(F(0), b[at + t], r[at + t], eps)
            # The state (9).
            scaled(k, k1, views[1, 3], write, some, K, weighted)
            sum_of_rows(weighted, ones, some, K, written_n)
            call_product(where, weighted, 0, 1, K, K, written_v, 0, by_value, new, 0, V, 0, V, False, False)
            after = C + far
            for x in range(K):
                old, to, added = U(C + x * W), U(after + x * W), U(x * V)
                for j in range(U(V)):
                    states[to + j] = state(states[old + j], kept, new[added + j])
                n[x] = state(n[x], kept, written_n[x])
                states[to + U(V)] = n[x]
            C = after
        end_m[matrix] = F(before)


def as_rows(a: Any, at: int, lead: int, width: int, depth: int, place: Any) -> Any:
    """Return a matrix (depth, width), whose rows are `lead` apart, packed for a product."""
    slivers = (width + COLUMNS - 1) // COLUMNS
    packed = place[: slivers * depth * COLUMNS].reshape(slivers, depth, COLUMNS)
    pack_rows(a, at, lead, width, depth, INT(0), slivers, packed, INT(0))
    return packed


def as_columns(a: Any, at: int, lead: int, width: int, depth: int, place: Any) -> Any:
    """Return a matrix (depth, width), whose columns are `lead` apart, packed for a product."""
    slivers = (width + COLUMNS - 1) // COLUMNS
    packed = place[: slivers * depth * COLUMNS].reshape(slivers, depth, COLUMNS)
    pack_columns(a, at, lead, width, depth, INT(0), slivers, packed, INT(0))
    return packed


def scaled(a: Any, at: int, lead: int, factors: Any, rows: int, width: int, out: Any) -> None:
    """Set the rows of `out` to those of a matrix, which are `lead` apart, each times its factor."""
    for t in range(rows):
        row, to, factor = U(at + t * lead), U(t * width), factors[t]
        for j in range(U(width)):
            out[to + j] = factor * a[row + j]


def sum_of_rows(a: Any, factors: Any, rows: int, width: int, out: Any) -> None:
    """Set `out` to the sum of the rows of a matrix, each times its factor."""
    for j in range(U(width)):
        out[j] = F(0)
    for t in range(rows):
        row, factor = U(t * width), factors[t]
        for j in range(U(width)):
            out[j] += factor * a[row + j]
