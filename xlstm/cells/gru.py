"""The GRU cell of Cho et al. 2014, in two forms: the reset gate acts after or before the product.

The order of the gates is z r n (update, reset, candidate), as in ONNX. `Cell` resets the product
Wh h, like cuDNN, PyTorch and by default Keras. `ResetBefore` resets h before the product, like the
paper. The backward pass is split into `derivatives` and `gates_bwd`, as in `cells/lstm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from xlstm.arrays.matmul import product
from xlstm.arrays.namespace import Array, Namespace, Params, astype
from xlstm.cells import cell
from xlstm.cells.activations import SHARES


class Saved(NamedTuple):
    """The values that the backward pass needs; zg and zn are None unless an option needs them."""

    s: Array  # gates z, r (2, H, B)
    n: Array  # candidate
    h0: Array
    m: Array | None  # zh of the candidate, or None in `ResetBefore`
    zg: Array | None  # pre-activations of z, r
    zn: Array | None  # pre-activation of the candidate


class Local(NamedTuple):
    """The local derivatives of one step; `derivatives` of each cell says how the gradients
    follow.
    """

    a: Array  # az, ar, an (3, H, B): derivatives with respect to the pre-activations
    r: Array  # the reset gate (H, B): derivative of r m with respect to m, or of r h0 to h0
    z: Array  # the update gate (H, B): derivative of h with respect to the h0 in (3)


@dataclass(frozen=True)
class Cell(cell.Cell):
    """A GRU whose reset gate acts on the product: n = act(zx + r zh)."""

    activations: tuple[str, ...] = ("sigmoid", "tanh")
    clip: float | None = None

    GATES = ("z", "r", "n")
    BIASES = 2

    @property
    def SHARES(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: N802
        return self.GATES[:-1] if self._activations[0].name in SHARES else ()

    def gates(self, xp: Namespace, zx: Array, zh: Array, h0: Array) -> tuple[Array, Saved]:
        """Run one step: return h (H, B), from zx and zh (3, H, B) and h0 (H, B)."""
        zg = zx[:2, ...] + zh[:2, ...]  # (1) pre-activations
        s = self._activate(xp, 0, zg)  # (1)
        z, r = s[0, ...], s[1, ...]
        m = zh[2, ...]
        zn = zx[2, ...] + r * m  # (2) pre-activation
        n = self._activate(xp, 1, zn)  # (2)
        h = n + z * (h0 - n)  # (3) h = (1 - z) n + z h0
        return h, Saved(s, n, h0, m, self._kept(zg), self._kept(zn))

    def derivatives(self, xp: Namespace, saved: Saved) -> Local:
        """Return the local derivatives, from which the gradients follow.

        They are dzx = (az, ar, an) dh, dzh = (az, ar, r an) dh and dh0 = z dh.
        """
        az, an = self._mean_bwd(xp, saved)
        ar = self._gate_bwd(xp, 1, an * saved.m, saved)  # (2) through r, (1)
        return Local(xp.stack((az, ar, an)), saved.s[1, ...], saved.s[0, ...])

    def gates_bwd(self, xp: Namespace, local: Local, dh: Array) -> tuple[Array, Array, Array]:
        """Return the gradients dzx and dzh (3, H, B) and dh0 (H, B), from dh (H, B)."""
        dzx = local.a * dh  # (1) (2) (3)
        dzh = xp.asarray(dzx, copy=True)
        dzh[2, ...] *= local.r  # (2)
        return dzx, dzh, local.z * dh  # (3) through h0

    def activated(self, xp: Namespace, saved: Saved) -> Array:
        """Return the gate values (3, ...) in the order of GATES."""
        return xp.concat((saved.s, saved.n[None, ...]))

    def retained(self, xp: Namespace, saved: Saved) -> Array:
        """Return the update gate (H, ...), which is z in (3)."""
        return saved.s[0, ...]

    def _mean_bwd(self, xp: Namespace, saved: Saved) -> tuple[Array, Array]:
        """Return the derivatives of (3) with respect to the pre-activations of z and of n."""
        az = self._gate_bwd(xp, 0, saved.h0 - saved.n, saved)  # (3) through z, (1)
        # (3) through n, (2)
        return az, self._activate_bwd(xp, 1, 1 - saved.s[0, ...], saved.zn, saved.n)

    def _gate_bwd(self, xp: Namespace, k: int, dy: Array, saved: Saved) -> Array:
        """Return the gradient with respect to the pre-activation of gate k of (1), z or r, from
        that of the gate.
        """
        return self._activate_bwd(
            xp, 0, dy, None if saved.zg is None else saved.zg[k, ...], saved.s[k, ...]
        )


@dataclass(frozen=True)
class ResetBefore(Cell):
    """A GRU whose reset gate acts on the state: n = act(zx + Wn (r h0)), with a product within the
    cell.

    Its own parameter is Wn (H, H), the last rows of Wh, so that zh has only the rows of z and r.
    `drop` is the mask (H, B) of recurrent dropout, or 1 without it.
    """

    BIASES = 1
    OWN = ("Wn", "drop")

    def weights(self, xp: Namespace, w: Params) -> Params:
        """Return the weights with Wn separate from Wh, and with bh added to b."""
        w, H = cell.Summed.weights(self, xp, w), w["Wh"].shape[1]  # type: ignore[arg-type]
        return {**w, "Wh": w["Wh"][: 2 * H, ...], "Wn": w["Wh"][2 * H :, ...]}

    def weights_bwd(self, xp: Namespace, w: Params, grads: Params) -> Params:
        """Return the gradients of the layer's weights; that of Wn becomes the last rows of that of
        Wh.
        """
        grads = {**grads, "Wh": xp.concat((grads["Wh"], grads["Wn"]))}
        del grads["Wn"]
        return cell.Summed.weights_bwd(self, xp, w, grads)  # type: ignore[arg-type]

    def gates(  # type: ignore[override]
        self, xp: Namespace, zx: Array, zh: Array, h0: Array, Wn: Array, drop: Array | float = 1.0
    ) -> tuple[Array, Saved]:
        """Run one step: return h (H, B), from zx (3, H, B), zh (2, H, B) and h0 (H, B)."""
        zg = zx[:2, ...] + zh  # (1) pre-activations
        s = self._activate(xp, 0, zg)  # (1)
        z, r = s[0, ...], s[1, ...]
        zn = zx[2, ...] + product(xp, Wn, r * h0 * drop)  # (2) pre-activation
        n = self._activate(xp, 1, zn)  # (2)
        h = n + z * (h0 - n)  # (3) h = (1 - z) n + z h0
        return h, Saved(s, n, h0, None, self._kept(zg), self._kept(zn))

    def derivatives(  # type: ignore[override]
        self, xp: Namespace, saved: Saved, Wn: Array, drop: Array | float = 1.0
    ) -> Local:
        """Return the local derivatives, from which the gradients follow.

        They are dzx = (az dh, ar dq, an dh) and dh0 = z dh + r dq, with dq = Wn^T (an dh).
        """
        az, an = self._mean_bwd(xp, saved)
        ar = self._gate_bwd(xp, 1, saved.h0, saved)  # (2) through r, (1)
        return Local(xp.stack((az, ar, an)), saved.s[1, ...], saved.s[0, ...])

    def gates_bwd(  # type: ignore[override]
        self, xp: Namespace, local: Local, dh: Array, Wn: Array, drop: Array | float = 1.0
    ) -> tuple[Array, Array, Array]:
        """Return the gradients dzx (3, H, B), dzh (2, H, B) and dh0 (H, B) from dh (H, B)."""
        dz = local.a * dh  # (1) (2) (3)
        dq = product(xp, Wn.T, dz[2, ...]) * drop  # (2)
        dz[1, ...] = local.a[1, ...] * dq  # (2) through r, (1)
        return dz, dz[:2, ...], local.z * dh + local.r * dq  # (3) and (2) through h0

    def own_bwd(
        self, xp: Namespace, dz: Array, saved: Saved, Wn: Array, drop: Array | float = 1.0
    ) -> dict[str, Array]:
        """Return the gradient with respect to Wn, from dz (3, k, H, B)."""
        H = dz.shape[2]
        dn = dz[2, ...]
        q = saved.s[1, ...] * saved.h0 * drop  # (k, H, B)
        q = astype(xp, q, dn.dtype)  # a number makes float32 of bfloat16 on CuPy
        dn, q = (xp.reshape(xp.permute_dims(a, (1, 0, 2)), (H, -1)) for a in (dn, q))
        return {"Wn": product(xp, dn, q.T)}  # (2)
