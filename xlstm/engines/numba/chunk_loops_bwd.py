"""The loops backward of a chunkwise mLSTM, as plain Python that Numba compiles; numbers are those of `chunkwise_bwd`.

The formulas are those of `cells/mlstm_formulas.py`, traced, and products are those of `products.py`. `chunks.py` binds
the names below.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.engines.numba.chunk_loops import COLUMNS, INT, F, U, stand_in

read_write = keep = decay = quotient = state = den_bwd = scale_add = b_bwd = add = forget_bwd = stand_in
m_bwd = from_before = add_to_last = is_largest = share = stand_in
carray = pointer = at8 = room = call_product = as_rows = as_columns = scaled = sum_of_rows = stand_in


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
