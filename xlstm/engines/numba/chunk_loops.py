"""The loops of a chunkwise mLSTM, as plain Python for Numba, with the numbers of
`cells/mlstm_chunks.py`.

Formulas are traces of `cells/mlstm_formulas.py`, and products come from `products.py`. `chunks.py`
binds the names below.
"""

# Numba finds the types of these functions.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any

import numpy as np

F: Any = np.float32
U: Any = np.uintp
INT: Any = np.int64
COLUMNS = 32


stand_in: Any = None  # stands for a formula or a function of `products.py`
forget = accumulate = written = m_after = stabilise = read_write = keep = stand_in
decay = denominator = quotient = state = stand_in
den_bwd = scale_add = b_bwd = add = forget_bwd = m_bwd = stand_in
from_before = add_to_last = is_largest = share = stand_in
room = packed_in = call_product = rows_times_vector = stand_in


def chunks(where, sizes, far, views, logs, arrays, numbers, first, last):
    """Compute all steps of the matrices from `first` to `last` of a batch; each matrix is one head
    of a sequence.

    Parameters
    ----------
    where : int
        The address of `products.product`.
    sizes : tuple of int
        N heads, T steps, K columns of keys, V of values; the number of chunks, and L steps of each;
        and the distance, in numbers, of the states before and after a chunk, 0 if only the last
        state is kept.
    far : tuple of (int, int, int)
        For each of `views`, the distance of sequences, of heads and of steps, in numbers.
    views : tuple of array (1,)
        The first numbers of q, k, v, i~, f~ and h.
    logs : tuple of float64 array
        b, w, most, m and r, as in `Logs`.
    arrays : tuple of array
        m0, logf, states (matrices, chunks + 1 or 1, K, V + 1), s, den and end_m, each flat.
    numbers : float64 array
        1 / sqrt(K), and eps.
    """
    N, T, K, V, count, L, next_state = sizes
    q, k, v, i, f, h = views
    q_far, k_far, v_far, i_far, f_far, h_far = far
    b, w, most, m, r = logs
    m0, logf, states, s, den, end_m = arrays
    W = V + 1
    root = F(numbers[0])
    eps = F(numbers[1])
    # Numba compiles a function anew for a literal
    zero = INT(0)
    unit = INT(1)
    no = np.bool_(False)
    yes = np.bool_(True)
    by_step = (L + COLUMNS - 1) // COLUMNS
    by_value = (V + COLUMNS - 1) // COLUMNS
    right = room(max(by_step, by_value) * K * COLUMNS)
    values = room(by_value * L * COLUMNS)
    new = room(K * V)
    weights = room(L * L)
    num = room(L * V)
    weighted = room(L * K)
    n = np.empty(K, F)
    written_n = np.empty(K, F)
    sums = np.empty(L, F)
    more = np.empty(L, F)
    read = np.empty(L, F)
    write = np.empty(L, F)
    steps = np.arange(L).astype(F)
    ones = np.ones(L, F)
    for matrix in range(first, last):
        before = np.float64(m0[matrix])
        C = matrix * (count * next_state + K * W)
        for j in range(K):
            n[j] = states[C + j * W + V]
        for chunk in range(count):
            start = chunk * L
            spot = (matrix // N, matrix % N, start)
            at = (matrix * count + chunk) * L
            some = min(L, T - start)
            q0 = place_of(q_far, spot)
            k0 = place_of(k_far, spot)
            v0 = place_of(v_far, spot)
            i0 = place_of(i_far, spot)
            f0 = place_of(f_far, spot)
            h0 = place_of(h_far, spot)
            # The gates (1) (2) (3).
            for t in range(some):
                logf[at + t] = forget(f[f0 + t * f_far[2]])
            decayed = 0.0
            largest = -np.inf
            for t in range(some):
                gate = i[i0 + t * i_far[2]]
                decayed, largest = accumulate(decayed, largest, gate, logf[at + t])
                b[at + t] = decayed
                most[at + t] = largest
                w[at + t] = written(gate, decayed)
            m[matrix * count + chunk] = before
            end = stabilise(largest, before)
            remains = keep(before, end)
            for t in range(some):
                r[at + t] = stabilise(most[at + t], before)
                read[t], write[t] = read_write(w[at + t], r[at + t], before, end, root)
            before = m_after(before, decayed, largest)
            # P (4) (5), and its sums.
            multiply(
                where,
                q,
                (q0, q_far[2], unit, some),
                right,
                k,
                (k0, True, k_far[2], some, K),
                weights,
                no,
            )
            for t in range(some):
                row = U(t * some)
                rt = r[at + t]
                for u in range(U(t + 1)):
                    weights[row + u] *= decay(w[U(at) + u], rt, steps[u], steps[t], root)
                for u in range(U(t + 1), U(some)):
                    weights[row + u] = F(0)
            square = weights[: some * some].reshape(some, some)
            rows_times_vector(square, ones[:some], sums[:some])
            # num and s (6).
            written_v = multiply(
                where,
                weights,
                (zero, some, unit, some),
                values,
                v,
                (v0, False, v_far[2], V, some),
                num,
                no,
            )
            scaled(q, q0, q_far[2], read, some, K, weighted)
            multiply(
                where, weighted, (zero, K, unit, some), right, states, (C, False, W, V, K), num, yes
            )
            rows_times_vector(weighted[: some * K].reshape(some, K), n, more[:some])
            # h (7) (8).
            for t in range(some):
                s[at + t] = sums[t] + more[t]
                den[at + t] = divisor = denominator(s[at + t], b[at + t], r[at + t], eps)
                from_row = U(t * V)
                to_row = U(h0 + t * h_far[2])
                for j in range(U(V)):
                    h[to_row + j] = quotient(num[from_row + j], divisor)
            # The state (9).
            scaled(k, k0, k_far[2], write, some, K, weighted)
            sum_of_rows(weighted, ones, some, K, written_n)
            call_product(
                where, weighted, (0, 1, K, K), written_v, (0, by_value), new, (0, V, 0, V), False
            )
            after = C + next_state
            for x in range(K):
                old = U(C + x * W)
                to = U(after + x * W)
                added = U(x * V)
                for j in range(U(V)):
                    states[to + j] = state(states[old + j], remains, new[added + j])
                n[x] = state(n[x], remains, written_n[x])
                states[to + U(V)] = n[x]
            C = after
        end_m[matrix] = F(before)


def multiply(where, a, rows, place, b, lies, out, add):
    """Set the n rows of `out` (n, width) to a @ b, or add a @ b to them; return b packed.

    `rows` is (at, row, pace, n): the numbers of a are a[at + i row + k pace]. `lies` is (start,
    turned, lead, width, K), as for `packed_in` in `products.py`. `place` is the room for b (K,
    width) packed.
    """
    packed = packed_in(place, b, *lies)
    width = lies[3]
    call_product(where, a, rows, packed, (0, len(packed)), out, (0, width, 0, width), add)
    return packed


def place_of(far, spot):
    """Return where the steps of a `spot`, which is a sequence, head and step, begin in an array.

    `far` has the distance of sequences, heads and steps in that array.
    """
    return spot[0] * far[0] + spot[1] * far[1] + spot[2] * far[2]


def scaled(a, at, lead, factors, rows, width, out):
    """Set the rows of `out` to the rows of a matrix, `lead` apart, each times its factor."""
    for t in range(rows):
        row = U(at + t * lead)
        to = U(t * width)
        factor = factors[t]
        for j in range(U(width)):
            out[to + j] = factor * a[row + j]


def sum_of_rows(a, factors, rows, width, out):
    """Set `out` to the sum of the rows of a matrix, each times its factor."""
    for j in range(U(width)):
        out[j] = F(0)
    for t in range(rows):
        row = U(t * width)
        factor = factors[t]
        for j in range(U(width)):
            out[j] += factor * a[row + j]


def chunks_bwd(where, sizes, far, views, logs, arrays, numbers, first, last):
    """Compute the gradients of all steps of the matrices from `first` to `last` of a batch,
    beginning with the last chunk.

    Parameters
    ----------
    where : int
        The address of `products.product`.
    sizes : tuple of int
        N heads, T steps, K columns of keys, V of values; the number of chunks, and L steps of each;
        and whether there are gradients through the maximum (3).
    far : tuple of (int, int, int)
        For each of `views`, the distance of sequences, of heads and of steps, in numbers.
    views : tuple of array (1,)
        The first numbers of q, k, v, f~, h, dh, dq, dk, dv, di~ and df~.
    logs : tuple of float64 array
        b, w, most, m and r, as in `Logs`.
    arrays : tuple of array
        logf, states (matrices, chunks + 1, K, V + 1), s, den, and the gradients dC (matrices, K, V
        + 1) and dm. These are with respect to the final state, and at the end with respect to the
        initial one. Each array is flat.
    numbers : float64 array
        1 / sqrt(K), and eps.
    """
    N, T, K, V, count, L, through_maximum = sizes
    of_q, of_k, of_v, f, h, dh, to_q, to_k, to_v, di, df = views
    q_far, k_far, v_far, f_far, h_far, dh_far, dq_far, dk_far, dv_far, di_far, df_far = far
    b, w, most, m, r = logs
    logf, states, s, den, dC, dm = arrays
    W = V + 1
    root = F(numbers[0])
    eps = F(numbers[1])
    # Numba compiles a function anew for a literal
    zero = INT(0)
    unit = INT(1)
    no = np.bool_(False)
    yes = np.bool_(True)
    widest = max(K, V, L) + COLUMNS - 1
    right = room(max(K, V, L) * (widest - widest % COLUMNS))
    P = room(L * L)
    dS = room(L * L)
    dnum = room(L * V)
    weighted = room(L * K)
    new = room(K * W)
    q = room(L * K)
    k = room(L * K)
    v = room(L * V)
    dq = room(L * K)
    dk = room(L * K)
    dv = room(L * V)
    n = np.empty(K, F)
    dn = np.empty(K, F)
    read = np.empty(L, F)
    write = np.empty(L, F)
    dh_h = np.empty(L, F)
    ds = np.empty(L, F)
    dw = np.empty(L, F)
    db = np.empty(L, F)
    steps = np.arange(L).astype(F)
    for matrix in range(first, last):
        d0 = matrix * K * W
        dend = dm[matrix]
        for back in range(count):
            chunk = count - 1 - back
            start = chunk * L
            spot = (matrix // N, matrix % N, start)
            at = (matrix * count + chunk) * L
            C = (matrix * (count + 1) + chunk) * K * W
            some = min(L, T - start)
            f1 = place_of(f_far, spot)
            h1 = place_of(h_far, spot)
            dh1 = place_of(dh_far, spot)
            di1 = place_of(di_far, spot)
            df1 = place_of(df_far, spot)
            # Copies: rows that lie a power of two apart would evict each other from the cache.
            copy_rows(of_q, place_of(q_far, spot), q_far[2], q, zero, K, some, K)
            copy_rows(of_k, place_of(k_far, spot), k_far[2], k, zero, K, some, K)
            copy_rows(of_v, place_of(v_far, spot), v_far[2], v, zero, V, some, V)
            forgotten = inner(states, C + K * W, dC, d0, K * W)
            if back == 0:
                dend -= forgotten
            for x in range(K):
                n[x] = states[C + x * W + V]
                dn[x] = dC[d0 + x * W + V]
            # [dnum, ds] (7) (8), and the weights of (6) and (9).
            m0 = m[matrix * count + chunk]
            end = r[at + some - 1]
            for t in range(some):
                from_row = U(dh1 + t * dh_far[2])
                to_row = U(t * V)
                for j in range(U(V)):
                    dnum[to_row + j] = quotient(dh[from_row + j], den[at + t])
                dh_h[t] = inner(dh, dh1 + t * dh_far[2], h, h1 + t * h_far[2], V)
                ds[t] = den_bwd(dh_h[t], den[at + t], s[at + t], b[at + t], r[at + t])
                read[t], write[t] = read_write(w[at + t], r[at + t], m0, end, root)
            # The rows of left factors: of keys, of values, and of steps, also transposed.
            of_keys = (zero, K, unit, some)
            of_values = (zero, V, unit, some)
            of_steps = (zero, some, unit, some)
            turned = (zero, unit, some, some)
            # P and dS, the gradient with respect to Q K^T (4) (5) (6).
            multiply(where, q, of_keys, right, k, (zero, True, K, some, K), P, no)
            multiply(where, dnum, of_values, right, v, (zero, True, V, some, V), dS, no)
            for t in range(some):
                row = U(t * some)
                rt = r[at + t]
                dst = ds[t]
                for u in range(U(t + 1)):
                    D = decay(w[U(at) + u], rt, steps[u], steps[t], root)
                    P[row + u] *= D
                    dS[row + u] = (dS[row + u] + dst) * D
                for u in range(U(t + 1), U(some)):
                    P[row + u] = dS[row + u] = F(0)
            # dQ (6) (5).
            multiply(where, dnum, of_values, right, states, (C, True, W, K, V), dq, no)
            for t in range(some):
                row = U(t * K)
                factor = read[t]
                dst = ds[t]
                for j in range(U(K)):
                    dq[row + j] = scale_add(dq[row + j] + dst * n[j], factor, F(0))
            multiply(where, dS, of_steps, right, k, (zero, False, K, K, some), dq, yes)
            # dK (9) (5).
            multiply(where, v, of_values, right, dC, (d0, True, W, K, V), dk, no)
            for t in range(some):
                row = U(t * K)
                factor = write[t]
                for j in range(U(K)):
                    dk[row + j] = scale_add(dk[row + j] + dn[j], factor, F(0))
            multiply(where, dS, turned, right, q, (zero, False, K, K, some), dk, yes)
            # dV (9) (6), and the chunk's reads of the state before it (6).
            scaled(k, zero, K, write, some, K, weighted)
            multiply(where, weighted, of_keys, right, dC, (d0, False, W, V, K), dv, no)
            scaled(q, zero, K, read, some, K, weighted)
            packed = multiply(where, P, turned, right, dnum, (zero, False, V, V, some), dv, yes)
            call_product(
                where, weighted, (0, 1, K, K), packed, (0, len(packed)), new, (0, W, 0, V), False
            )
            sum_of_rows(weighted, ds, some, K, dn)
            for x in range(K):
                new[x * W + V] = dn[x]
            # The gradient with respect to the state before the chunk (9).
            remains = keep(m0, end)
            for x in range(U(K * W)):
                dC[U(d0) + x] = state(dC[U(d0) + x], remains, new[x])
            to = place_of(dq_far, spot)
            copy_rows(dq, zero, K, to_q, to, dq_far[2], some, K)
            to = place_of(dk_far, spot)
            copy_rows(dk, zero, K, to_k, to, dk_far[2], some, K)
            to = place_of(dv_far, spot)
            copy_rows(dv, zero, V, to_v, to, dv_far[2], some, V)
            # w_s scales everything that step s writes, b_t everything that step t reads (4) (6)
            # (9).
            for t in range(some):
                dw[t] = inner(k, t * K, dk, t * K, K)
                db[t] = b_bwd(dh_h[t], ds[t], s[at + t], dw[t])
            if through_maximum:
                dend = maximum_bwd(w, most, den, at, m0, dh_h, eps, steps[:some], dend, dw, db)
            for back_t in range(some):
                t = some - 1 - back_t
                forgotten = add(forgotten, db[t])
                di[di1 + t * di_far[2]] = dw[t]
                df[df1 + t * df_far[2]] = forget_bwd(forgotten, f[f1 + t * f_far[2]], logf[at + t])
        dm[matrix] = inner(states, matrix * (count + 1) * K * W, dC, d0, K * W) + (
            dend if through_maximum else F(0)
        )


def maximum_bwd(w, most, den, at, m0, dh_h, eps, steps, dend, dw, db):
    """Add to the gradients of w and b of a chunk those through m (3); return the gradient with
    respect to m before the chunk.

    `dend` is the gradient with respect to m after it. The choice of the maximum cancels out of h, C
    and n, except for the weight of eps. It also changes the final m.
    """
    L = len(steps)
    total = F(0)
    for t in range(L):
        old = from_before(m0, most[at + t])
        dm = m_bwd(dh_h[t], den[at + t], eps)
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


def inner(a, at, b, place, size):
    """Return the inner product of `size` numbers of two arrays, summed in the fastest order."""
    total = F(0)
    for j in range(U(size)):
        total += a[U(at) + j] * b[U(place) + j]
    return total


def copy_rows(a, at, lead, to, place, line, rows, width):
    """Copy the rows of a matrix, which are `lead` apart, to rows that are `line` apart."""
    for t in range(rows):
        row = U(at + t * lead)
        into = U(place + t * line)
        for j in range(U(width)):
            to[into + j] = a[row + j]
