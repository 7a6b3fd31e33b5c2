"""The LSTM cell: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

Gate order is i o f g (input, output, forget, candidate; ONNX calls g "c"), which keeps the
sigmoid gates together. Only the gate axis has a fixed place, the first; what follows it is free:
(H, B) for one step, (n, H, B) for n steps.

The backward pass is linear in what flows back, (dh, dc). `gates_bwd` applies its coefficients to one
step; `slopes` computes them, which needs no recurrence, for any number of steps at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from xlstm.arrays.backend import Array, Namespace
from xlstm.cells.activations import clamp, clamp_bwd
from xlstm.cells.normalization import normalize, normalize_bwd
from xlstm.cells.options import Options


@dataclass(frozen=True)
class Cell(Options):
    """An LSTM cell and its options; `layers.recurrent.LSTM` describes them.

    Its own parameters are the peepholes p (3, H, 1) in order i o f (Gers & Schmidhuber 2000; coupled:
    i o), and the gain gc and bias bc (H, 1) of the normalised cell (Ba et al. 2016, eq. 22).
    """

    activations: tuple[str, ...] = ("sigmoid", "tanh", "tanh")
    clip: float | None = None
    coupled: bool = False
    cell_clip: float | None = None

    STATES = ("h", "c")
    SPLIT = False
    INNER = False

    @functools.cached_property
    def GATES(self) -> tuple[str, ...]:  # noqa: N802
        return ("i", "o", "g") if self.coupled else ("i", "o", "f", "g")

    def gates(
        self,
        xp: Namespace,
        z: Array,
        c0: Array,
        p: Array | None = None,
        gc: Array | None = None,
        bc: Array | None = None,
    ) -> tuple[Array, Array, tuple[Array, ...]]:
        """One step from pre-activations z (4, H, B) and the cell state c0 (H, B): h, c and what backward needs."""
        gate, candidate, output = self._pairs
        keeps_z = self.clip is not None or gate.from_input or candidate.from_input
        if p is not None:  # i and f look at c0
            seen = [xp.zeros_like(c0)] * len(self.GATES)
            for k in range(0, len(self.GATES) - 1, 2):
                seen[k] = p[k, ...] * c0
            z = z + xp.stack(seen)
        a = z if self.clip is None else clamp(xp, z, self.clip)
        s = gate.fwd(xp, a[:-1, ...])  # (1) i, o, f
        g = candidate.fwd(xp, a[-1, ...])  # (2)
        i, o = s[0, ...], s[1, ...]
        f = 1 - i if self.coupled else s[2, ...]
        c = f * c0  # (3) c = f c0 + i g
        c += i * g
        raw = c
        if self.cell_clip is not None:
            c = clamp(xp, c, self.cell_clip)  # (4)
        if p is not None:  # o looks at c
            zo = z[1, ...] + p[1, ...] * c
            o = gate.fwd(xp, zo if self.clip is None else clamp(xp, zo, self.clip))  # (1)
            s = xp.concat((s[:1, ...], o[None, ...], s[2:, ...]))
            if keeps_z:
                z = xp.concat((z[:1, ...], zo[None, ...], z[2:, ...]))
        v = c
        if gc is not None:
            n, r = normalize(xp, c, -2)
            v = gc * n + bc  # (5)
        u = output.fwd(xp, v)  # (6)
        saved: tuple[Array, ...] = (s, g, u)
        if keeps_z:
            saved = (*saved, z)
        if output.from_input:
            saved = (*saved, v)
        if self.cell_clip is not None:
            saved = (*saved, raw)
        if p is not None:
            saved = (*saved, c)
        if gc is not None:
            saved = (*saved, n, r)
        return o * u, c, saved  # (7) h = o * u

    def slopes(
        self,
        xp: Namespace,
        c0: Array,
        saved: Sequence[Array],
        p: Array | None = None,
        gc: Array | None = None,
        **_: Array,
    ) -> tuple[Array, ...]:
        """Coefficients of the step's derivative: dz = (ai dc, ao dh, af dc, ag dc), dc += k dh, dc0 = e dc."""
        gate, candidate, output = self._pairs
        s, g, u, *more = saved
        i, o = s[0, ...], s[1, ...]
        f = 1 - i if self.coupled else s[2, ...]
        z = more.pop(0) if self.clip is not None or gate.from_input or candidate.from_input else None
        zi, zo, zf, zg = self._rows(xp, z, 0, 1, 2, -1)
        ai = gate.bwd(xp, g - c0 if self.coupled else g, zi, i)  # (3) through i, (1)
        ao = gate.bwd(xp, u, zo, o)  # (7) through o, (1)
        af = () if self.coupled else (gate.bwd(xp, c0, zf, f),)  # (3) through f, (1)
        ag = candidate.bwd(xp, i, zg, g)  # (3) through g, (2)
        dv = output.bwd(xp, o, more.pop(0) if output.from_input else None, u)  # (7) through u, (6)
        a = xp.stack((ai, ao, *af, ag))
        if self.clip is not None:
            a = clamp_bwd(xp, a, z, self.clip)
        e, k = f, dv
        if p is not None:
            e = e + p[0, ...] * a[0, ...]  # (1) i and f look at c0
            if not self.coupled:
                e += p[2, ...] * a[2, ...]
        if self.cell_clip is not None:
            raw = more.pop(0)
            e, b = clamp_bwd(xp, e, raw, self.cell_clip), clamp_bwd(xp, a, raw, self.cell_clip)  # (4)
            a = xp.concat((b[:1, ...], a[1:2, ...], b[2:, ...]))
        look = None if p is None else p[1, ...] * a[1, ...]  # (1) o looks at c
        if gc is None:
            return (a, k if look is None else k + look, e)
        n, r = more[-2:]
        a = xp.concat((a, dv[None, ...]))  # and (dv dh), the gradient of v
        return (a, gc * dv, e, n, r) if look is None else (a, gc * dv, e, n, r, look)

    def gates_bwd(self, xp: Namespace, dh: Array, dc: Array, slopes: Sequence[Array]) -> tuple[Array, Array]:
        """Gradients dz (4, H, B) and dc0 (H, B) from dh and dc (H, B); with layer_norm dz has a fifth row, dv."""
        a, k, e, *norm = slopes
        dv = k * dh  # (7) (6)
        if norm:
            n, r, *look = norm
            dv = normalize_bwd(xp, dv, n, r, -2)  # (5)
            if look:
                dv += look[0] * dh
        dc = dc + dv
        dz = a * dc  # (3) i, f, g
        dz[1, ...] = a[1, ...] * dh  # (7) o
        if norm:
            dz[-1, ...] = a[-1, ...] * dh
        return dz, e * dc  # (3) through c0

    def own_bwd(
        self, xp: Namespace, dz: Array, c0: Array, saved: Sequence[Array], own: Sequence[str]
    ) -> dict[str, Array]:
        """Gradients of the cell's own parameters, to be summed over steps and batch: dz (4, n, H, B) and the rest."""
        grads: dict[str, Array] = {}
        if "gc" in own:
            grads["gc"], grads["bc"] = dz[-1, ...] * saved[-2], dz[-1, ...]
        if "p" in own:
            c = saved[-3] if "gc" in own else saved[-1]
            grads["p"] = dz[: 2 if self.coupled else 3, ...] * xp.stack((c0, c, c0)[: 2 if self.coupled else 3])
        return grads

    def activated(self, xp: Namespace, saved: Sequence[Array]) -> Array:
        """Gate values (4, ...) in the order of GATES."""
        return xp.concat((saved[0], saved[1][None, ...]))


# The cell without options, as functions.
PLAIN = Cell()
GATES, STATES = PLAIN.GATES, PLAIN.STATES
gates, gates_bwd, slopes, activated = PLAIN.gates, PLAIN.gates_bwd, PLAIN.slopes, PLAIN.activated
