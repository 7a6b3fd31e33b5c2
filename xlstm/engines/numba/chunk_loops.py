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
den_bwd = scale_add = b_bwd = add = forget_bwd = m_bwd = stand_in
from_before = add_to_last = is_largest = share = stand_in
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


def chunks_bwd(where: int, sizes: Any, views: Any, arrays: Any, numbers: Any, first: int, last: int) -> None:
    """Compute the gradients of all steps of the matrices from `first` to `last` of a batch, from the last chunk on.

    Parameters
    ----------
    where : int
        The address of `products.product`.
    sizes : int64 array
        N heads, T steps, K columns of keys, V of values and W of states; the number of chunks, and L steps of each; and
        whether there are gradients through the maximum (3).
    views : int64 array (11, 4)
        Where q, k, v, f~, h, dh, dq, dk, dv, di~ and df~ begin, and how far their sequences, heads and steps are apart.
    arrays : int64 array
        The addresses of logf, b, w, most, r, m (float64 from b on), states (matrices, chunks + 1, K, W), s, den, and of
        the gradients of the final state, which become those of the initial one: dC (matrices, K, W) and dm.
    numbers : float64 array
        1 / sqrt(K), and eps.
    """
    N, T, K, V, W, count, L = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]
    of_q, of_k, of_v = carray(pointer(views[0, 0]), 1), carray(pointer(views[1, 0]), 1), carray(pointer(views[2, 0]), 1)
    f, h, dh = carray(pointer(views[3, 0]), 1), carray(pointer(views[4, 0]), 1), carray(pointer(views[5, 0]), 1)
    to_q, to_k, to_v = carray(pointer(views[6, 0]), 1), carray(pointer(views[7, 0]), 1), carray(pointer(views[8, 0]), 1)
    di, df = carray(pointer(views[9, 0]), 1), carray(pointer(views[10, 0]), 1)
    f_step, h_step, dh_step, di_step, df_step = views[3, 3], views[4, 3], views[5, 3], views[9, 3], views[10, 3]
    logf, b, w = carray(pointer(arrays[0]), 1), carray(at8(arrays[1]), 1), carray(at8(arrays[2]), 1)
    most, r, m = carray(at8(arrays[3]), 1), carray(at8(arrays[4]), 1), carray(at8(arrays[5]), 1)
    states, s, den = carray(pointer(arrays[6]), 1), carray(pointer(arrays[7]), 1), carray(pointer(arrays[8]), 1)
    dC, dm = carray(pointer(arrays[9]), 1), carray(pointer(arrays[10]), 1)
    root, eps, zero = F(numbers[0]), F(numbers[1]), INT(0)  # Numba compiles a function once more for a literal 0
    widest = max(K, V, L) + COLUMNS - 1
    right, place = room(max(K, V, L) * (widest - widest % COLUMNS)), np.empty(len(views), np.int64)
    P, dS, dnum, weighted, new = room(L * L), room(L * L), room(L * V), room(L * K), room(K * W)
    q, k, v, dq, dk, dv = room(L * K), room(L * K), room(L * V), room(L * K), room(L * K), room(L * V)
    n, dn, read, write = np.empty(K, F), np.empty(K, F), np.empty(L, F), np.empty(L, F)
    dh_h, ds, dw, db, steps = np.empty(L, F), np.empty(L, F), np.empty(L, F), np.empty(L, F), np.empty(L, F)
    for t in range(L):
        steps[t] = F(t)
    for matrix in range(first, last):
        d0, dend = matrix * K * W, dm[matrix]
        for back in range(count):
            chunk = count - 1 - back
            start, at, C = chunk * L, (matrix * count + chunk) * L, (matrix * (count + 1) + chunk) * K * W
            some = min(L, T - start)
            for x in range(len(views)):
                place[x] = matrix // N * views[x, 1] + matrix % N * views[x, 2] + start * views[x, 3]
            f1, h1, dh1, di1, df1 = place[3], place[4], place[5], place[9], place[10]
            # Copies, as rows that lie a power of two apart take each other's places in the cache.
            copy_rows(of_q, place[0], views[0, 3], q, zero, K, some, K)
            copy_rows(of_k, place[1], views[1, 3], k, zero, K, some, K)
            copy_rows(of_v, place[2], views[2, 3], v, zero, V, some, V)
            forgotten = inner(states, C + K * W, dC, d0, K * W)
            if back == 0:
                dend -= forgotten
            for x in range(K):
                n[x], dn[x] = states[C + x * W + V], dC[d0 + x * W + V]
            # [dnum, ds] (7) (8), and the weights of (6) and (9).
            m0, end = m[matrix * count + chunk], r[at + L - 1]
            for t in range(some):
                from_row, to_row = U(dh1 + t * dh_step), U(t * V)
                for j in range(U(V)):
                    dnum[to_row + j] = quotient(dh[from_row + j], den[at + t])
                dh_h[t] = inner(dh, dh1 + t * dh_step, h, h1 + t * h_step, V)
                ds[t] = den_bwd(dh_h[t], den[at + t], s[at + t], b[at + t], r[at + t])
                read[t], write[t] = read_write(w[at + t], r[at + t], m0, end, root)
            for t in range(some, L):
                dh_h[t] = ds[t] = F(0)
            # P and dS, the gradient of Q K^T (4) (5) (6).
            packed = as_columns(k, zero, K, some, K, right)
            call_product(where, q, 0, K, 1, some, packed, 0, len(packed), P, 0, some, 0, some, False, False)
            packed = as_columns(v, zero, V, some, V, right)
            call_product(where, dnum, 0, V, 1, some, packed, 0, len(packed), dS, 0, some, 0, some, False, False)
            for t in range(some):
                row, rt, dst = U(t * some), r[at + t], ds[t]
                for u in range(U(t + 1)):
                    D = decay(w[U(at) + u], rt, steps[u], steps[t], root)
                    P[row + u] *= D
                    dS[row + u] = (dS[row + u] + dst) * D
                for u in range(U(t + 1), U(some)):
                    P[row + u] = dS[row + u] = F(0)
            # dQ (6) (5).
            packed = as_columns(states, C, W, K, V, right)
            call_product(where, dnum, 0, V, 1, some, packed, 0, len(packed), dq, 0, K, 0, K, False, False)
            for t in range(some):
                row, factor, dst = U(t * K), read[t], ds[t]
                for j in range(U(K)):
                    dq[row + j] = scale_add(dq[row + j] + dst * n[j], factor, F(0))
            packed = as_rows(k, zero, K, K, some, right)
            call_product(where, dS, 0, some, 1, some, packed, 0, len(packed), dq, 0, K, 0, K, True, False)
            # dK (9) (5).
            packed = as_columns(dC, d0, W, K, V, right)
            call_product(where, v, 0, V, 1, some, packed, 0, len(packed), dk, 0, K, 0, K, False, False)
            for t in range(some):
                row, factor = U(t * K), write[t]
                for j in range(U(K)):
                    dk[row + j] = scale_add(dk[row + j] + dn[j], factor, F(0))
            packed = as_rows(q, zero, K, K, some, right)
            call_product(where, dS, 0, 1, some, some, packed, 0, len(packed), dk, 0, K, 0, K, True, False)
            # dV (9) (6), and what the chunk reads of the state before it (6).
            scaled(k, zero, K, write, some, K, weighted)
            packed = as_rows(dC, d0, W, V, K, right)
            call_product(where, weighted, 0, K, 1, some, packed, 0, len(packed), dv, 0, V, 0, V, False, False)
            scaled(q, zero, K, read, some, K, weighted)
            packed = as_rows(dnum, zero, V, V, some, right)
            call_product(where, P, 0, 1, some, some, packed, 0, len(packed), dv, 0, V, 0, V, True, False)
            call_product(where, weighted, 0, 1, K, K, packed, 0, len(packed), new, 0, W, 0, V, False, False)
            sum_of_rows(weighted, ds, some, K, dn)
            for x in range(K):
                new[x * W + V] = dn[x]
            # The gradient of the state before (9).
            kept = keep(m0, end)
            for x in range(U(K * W)):
                dC[U(d0) + x] = state(dC[U(d0) + x], kept, new[x])
            copy_rows(dq, zero, K, to_q, place[6], views[6, 3], some, K)
            copy_rows(dk, zero, K, to_k, place[7], views[7, 3], some, K)
            copy_rows(dv, zero, V, to_v, place[8], views[8, 3], some, V)
            # w_s enters everything that step s writes, b_t everything that step t reads (4) (6) (9).
            for t in range(L):
                dw[t] = inner(k, t * K, dk, t * K, K) if t < some else F(0)
                db[t] = b_bwd(dh_h[t], ds[t], s[at + t], dw[t])
            if sizes[7]:
                dend = maximum_bwd(w, most, den, at, m0, dh_h, eps, steps, dend, dw, db)
            for back_t in range(L):
                t = L - 1 - back_t
                forgotten = add(forgotten, db[t])
                if t < some:
                    di[di1 + t * di_step] = dw[t]
                    df[df1 + t * df_step] = forget_bwd(forgotten, f[f1 + t * f_step], logf[at + t])
        dm[matrix] = inner(states, matrix * (count + 1) * K * W, dC, d0, K * W) + (dend if sizes[7] else F(0))


def maximum_bwd(
    w: Any, most: Any, den: Any, at: int, m0: Any, dh_h: Any, eps: Any, steps: Any, dend: Any, dw: Any, db: Any
) -> Any:
    """Add to the gradients of w and b of a chunk those through m (3); return the gradient of m before it.

    `dend` is that of m after it. The choice of the maximum cancels out of h, C and n, except for how much eps weighs;
    it also changes the final m.
    """
    L, total = len(steps), F(0)
    for t in range(L):
        old, dm = from_before(m0, most[at + t]), m_bwd(dh_h[t], den[at + t], eps)
        total += old * dm
        dm = add_to_last(dm, dend, steps[t], steps[L - 1])
        count = F(0)
        for u in range(U(L)):
            count += is_largest(w[U(at) + u], most[at + t], steps[u], steps[t])
        part = share(old, dm, count)
        db[t] += dm
        for u in range(U(L)):
            d = part * is_largest(w[U(at) + u], most[at + t], steps[u], steps[t])
            dw[u] += d
            db[u] -= d
    return state(dend, from_before(m0, most[at + L - 1]), total)


def inner(a: Any, at: int, b: Any, place: int, size: int) -> Any:
    """Return the inner product of `size` numbers of two arrays; the sum is in the order that is quickest."""
    found = F(0)
    for j in range(U(size)):
        found += a[U(at) + j] * b[U(place) + j]
    return found


def copy_rows(a: Any, at: int, lead: int, to: Any, place: int, line: int, rows: int, width: int) -> None:
    """Copy the rows of a matrix, which are `lead` apart, to where they are `line` apart."""
    for t in range(rows):
        row, into = U(at + t * lead), U(place + t * line)
        for j in range(U(width)):
            to[into + j] = a[row + j]
