"""The LSTM cell with its options; the order of gates, layout and passes are as in `cells/lstm.py`.

The options are peepholes (Gers & Schmidhuber 2000), coupled input and forget gates (Greff et al.
2017), a normalised cell state (Ba et al. 2016, eq. 22), bounds of the pre-activations and of the
cell state, and other activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells import cell
from xlstm.cells.activations import SHARES, clamp, clamp_bwd
from xlstm.cells.normalization import normalize, normalize_bwd

Own: TypeAlias = Array | None  # a parameter that only some options have


class Saved(NamedTuple):
    """The values that the backward pass needs; z and the fields after it are None unless an option
    needs them.
    """

    s: Array  # gates i, o, f (3, H, B), or i, o if coupled
    g: Array  # candidate
    u: Array  # activation of the cell state
    z: Array | None = None  # pre-activations
    v: Array | None = None  # input of the activation of the cell state
    raw: Array | None = None  # c before cell_clip
    c: Array | None = None  # with peepholes
    n: Array | None = None  # normalised c
    r: Array | None = None  # 1 / the deviation of c


class Local(NamedTuple):
    """The local derivatives of one step: first dc += k dh, then dz = (ai dc, ao dh, af dc, ag dc)
    and dc0 = e dc.

    If the cell state is normalised, k dh is the gradient with respect to n. The gradient with
    respect to c follows from it and is added to dc, and so is `look` dh. The gradients with respect
    to the gain gc and the bias bc follow from dv dh, the gradient with respect to v.
    """

    a: Array  # ai, ao, af, ag (4, H, B), or ai, ao, ag if coupled
    k: Array  # derivative of h with respect to c, or to n
    e: Array  # derivative of c with respect to c0
    n: Array | None = None  # as saved
    r: Array | None = None  # as saved
    look: Array | None = None  # derivative of h with respect to c through the peephole of o
    dv: Array | None = None  # derivative of h with respect to v


@dataclass(frozen=True)
class Cell(cell.Summed):
    """An LSTM cell with options; `layers.recurrent.LSTM` describes them.

    Its own parameters are the peepholes p (3, H, 1) in the order i o f (coupled: i o), and the gain
    gc and the bias bc (H, 1) of the normalised cell state.
    """

    activations: tuple[str, ...] = ("sigmoid", "tanh", "tanh")
    clip: float | None = None
    coupled_input_forget: bool = False
    cell_clip: float | None = None

    STATES = ("h", "c")
    REST = (0.0, 0.0)
    OWN = ("p", "gc", "bc")

    @cached_property
    def GATES(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: N802
        return ("i", "o", "g") if self.coupled_input_forget else ("i", "o", "f", "g")

    @property
    def SHARES(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: N802
        return self.GATES[:-1] if self._activations[0].name in SHARES else ()

    def gates(
        self,
        xp: Namespace,
        zx: Array,
        zh: Array,
        h0: Array,
        c0: Array,
        p: Own = None,
        gc: Own = None,
        bc: Own = None,
    ) -> tuple[Array, Array, Saved]:
        """Run one step: return h and c (H, B), from zx and zh (G, H, B) and the states before the
        step.
        """
        z = zx + zh  # (1) (2) pre-activations
        if p is not None:
            z = z + self._peep(xp, p, c0)  # (1) i and f look at c0
        s = self._activate(xp, 0, z[:-1, ...])  # (1) i, o, f
        g = self._activate(xp, 1, z[-1, ...])  # (2)
        i, o = s[0, ...], s[1, ...]
        f = 1 - i if self.coupled_input_forget else s[2, ...]  # (1)
        c = f * c0 + i * g  # (3)
        raw = None
        if self.cell_clip is not None:
            raw = c
            c = clamp(xp, c, self.cell_clip)  # (4)
        if p is not None:
            zo = z[1, ...] + p[1, ...] * c  # (1) o looks at c
            o = self._activate(xp, 0, zo)  # (1) o looks at c
            s = xp.concat((s[:1, ...], o[None, ...], s[2:, ...]))
            z = xp.concat((z[:1, ...], zo[None, ...], z[2:, ...]))
        n = r = None
        v = c
        if gc is not None:
            n, r = normalize(xp, c, -2)  # (5)
            v = gc * n + bc  # (5)
        u = self._pairs[2].fwd(xp, v)  # (6)
        v = v if self._pairs[2].from_input else None
        saved = Saved(s, g, u, self._kept(z), v, raw, None if p is None else c, n, r)
        return o * u, c, saved  # (7) h

    def derivatives(
        self, xp: Namespace, saved: Saved, c0: Array, p: Own = None, gc: Own = None, bc: Own = None
    ) -> Local:
        """Return the local derivatives of `gates`."""
        s, g, u, z = saved[:4]
        i, o = s[0, ...], s[1, ...]
        f = self.retained(xp, saved)
        zi, zo, zf, zg = (None if z is None else z[k, ...] for k in (0, 1, 2, -1))
        # (3) through i, (1)
        ai = self._activate_bwd(xp, 0, g - c0 if self.coupled_input_forget else g, zi, i)
        ao = self._activate_bwd(xp, 0, u, zo, o)  # (7) through o, (1)
        # (3) through f, (1)
        af = () if self.coupled_input_forget else (self._activate_bwd(xp, 0, c0, zf, f),)
        ag = self._activate_bwd(xp, 1, i, zg, g)  # (3) through g, (2)
        a = xp.stack((ai, ao, *af, ag))
        dv = self._pairs[2].bwd(xp, o, saved.v, u)  # (7) through u, (6)
        e = f  # (3) through c0
        if p is not None:
            e = e + p[0, ...] * a[0, ...]  # (1) i and f look at c0
            if not self.coupled_input_forget:
                e = e + p[2, ...] * a[2, ...]  # (1)
        if self.cell_clip is not None:
            e, b = (clamp_bwd(xp, d, saved.raw, self.cell_clip) for d in (e, a))  # (4)
            # (4) but not o, which looks at the bounded c
            a = xp.concat((b[:1, ...], a[1:2, ...], b[2:, ...]))
        look = None if p is None else p[1, ...] * a[1, ...]  # (1) o looks at c
        if gc is None:
            # (7) through v, and (1) through o
            return Local(a, dv if look is None else dv + look, e)
        return Local(a, gc * dv, e, saved.n, saved.r, look, dv)  # (5) through n

    def gates_bwd(  # type: ignore[override]
        self, xp: Namespace, local: Local, dh: Array, dc: Array, **own: Array
    ) -> tuple[Array, Array, None, Array]:
        """Return the gradients dzx and dzh (G, H, B) and dc0 (H, B).

        If the cell state is normalised, dzx has one more row, the gradient with respect to v.
        """
        a, k, e, n, r, look, dv = local
        dn = k * dh  # (7) (6)
        if n is not None:
            dn = normalize_bwd(xp, dn, n, r, -2)  # (5)
        if look is not None and n is not None:
            dn = dn + look * dh  # (1) o looks at c
        dc = dc + dn  # (3) the gradient with respect to c, from the next step and from h
        dz = a * dc  # (3) i, f, g
        dz[1, ...] = a[1, ...] * dh  # (7) o
        if dv is None:
            return dz, dz, None, e * dc  # (3) through c0
        # (3) through c0, (5) the gradient with respect to v
        return xp.concat((dz, (dv * dh)[None, ...])), dz, None, e * dc

    def own_bwd(
        self,
        xp: Namespace,
        dz: Array,
        saved: Saved,
        c0: Array,
        p: Own = None,
        gc: Own = None,
        bc: Own = None,
    ) -> dict[str, Array]:
        """Return the gradients with respect to p, gc and bc, summed over steps and sequences, from
        dz (rows, k, H, B).
        """
        grads: dict[str, Array] = {}
        if gc is not None:
            grads |= {"gc": dz[-1, ...] * saved.n, "bc": dz[-1, ...]}  # (5)
        if p is not None:
            seen = (c0, saved.c, c0)[: p.shape[0]]
            grads["p"] = dz[: p.shape[0], ...] * xp.stack(seen)  # (1)
        return {name: xp.sum(d, axis=(-3, -1)) for name, d in grads.items()}

    def activated(self, xp: Namespace, saved: Saved) -> Array:
        """Return the gate values (G, ...) in the order of GATES."""
        return xp.concat((saved.s, saved.g[None, ...]))

    def retained(self, xp: Namespace, saved: Saved) -> Array:
        """Return the forget gate (H, ...), which is f in (3)."""
        return 1 - saved.s[0, ...] if self.coupled_input_forget else saved.s[2, ...]

    def _peep(self, xp: Namespace, p: Array, c0: Array) -> Array:
        """Return the terms (G, H, B) that the peepholes of i and f, which look at c0, add to the
        pre-activations.
        """
        seen = [xp.zeros_like(c0)] * len(self.GATES)
        for k in range(0, len(self.GATES) - 1, 2):
            seen[k] = p[k, ...] * c0  # (1)
        return xp.stack(seen)
