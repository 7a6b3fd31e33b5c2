"""Linear maps of the last axis, y = x W^T + b: of the whole axis, or head by head."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from xlstm.arrays import block_diagonal, headwise
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, Params, add_over
from xlstm.arrays.rows import column_sums, row_products
from xlstm.layers.initializers import constant, normal, uniform
from xlstm.layers.module import Module, SameWidth, Weights, rows


@dataclass(frozen=True)
class Linear(Module):
    """An affine map of the last axis, y = x W^T + b.

    Parameters
    ----------
    input_size, output_size : int
        Widths I and O. Parameters are `W` (O, I) and `b` (O,).
    bias : bool
        Whether there is a `b`.
    std : float, optional
        If you give it, initial weights are N(0, std^2) and biases 0. By default both are
        U(-1/sqrt(I), 1/sqrt(I)), as in `torch.nn.Linear`.
    """

    input_size: int
    output_size: int
    _: KW_ONLY
    bias: bool = True
    std: float | None = None

    _symbol = "I"

    @property
    def weights(self) -> Weights:
        O = {"O": self.output_size}  # noqa: E741
        draw = draw_bias = uniform(self.input_size**-0.5)
        if self.std is not None:
            draw = normal(self.std)
            draw_bias = constant(0.0)
        weights: Weights = {"W": ({**O, "I": self.input_size}, draw)}
        return weights | ({"b": (O, draw_bias)} if self.bias else {})

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Array]:
        y = matmul(xp, x, p["W"].T)
        if self.bias:
            y = add_over(xp, y, p["b"])
        return y, x

    def apply_bwd(self, xp: Namespace, p: Params, kept: Array, dy: Array) -> tuple[Params, Array]:
        dz = rows(dy)
        grads = {"W": row_products(xp, dz, rows(kept))}
        if self.bias:
            grads["b"] = column_sums(xp, dz)
        return grads, matmul(xp, dy, p["W"])


@dataclass(frozen=True)
class HeadwiseLinear(SameWidth, Module):
    """A linear map of each head by itself, y[n] = x[n] W[n]^T + b[n]; its matrix is block-diagonal.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads, each K = D / N wide. Parameters are `W` (N, K, K) and `b` (D,).
    bias : bool
        Whether there is a `b`, which begins at 0.
    std : float, optional
        Standard deviation of the initial weights, by default sqrt(2 / (5 K)) (Nguyen & Salazar
        2019).
    """

    size: int
    num_heads: int
    _: KW_ONLY
    bias: bool = False
    std: float | None = None

    HEADED = ("size",)

    @property
    def weights(self) -> Weights:
        K = self.size // self.num_heads
        std = math.sqrt(2 / (5 * K)) if self.std is None else self.std
        weights: Weights = {"W": ({"N": self.num_heads, "K": K, "K ": K}, normal(std))}
        return weights | ({"b": ({"D": self.size}, constant(0.0))} if self.bias else {})

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        y, kept = self.beside(xp, [(p, x)])
        return y, kept[0]

    def beside(
        self, xp: Namespace, maps: Sequence[tuple[Params, Array]]
    ) -> tuple[Array, list[Any]]:
        """Return several maps of this kind side by side, and the values that `apply_bwd` needs.

        Parameters
        ----------
        xp
            The namespace of the arrays.
        maps : sequence of (params, array (..., D))
            The parameters and the x of each map.


        Returns
        -------
        y : array (..., G D)
            The G results, one after the other along the last axis.
        kept : list
        """
        Ws = [p["W"] for p, _ in maps]
        if block_diagonal.takes(xp, Ws[0]):
            heads = [x for _, x in maps]
            y = block_diagonal.products(xp, heads, Ws)
        else:
            Ws = [headwise.joined(xp, W) for W in Ws]
            heads = [
                headwise.split(xp, x, self.size, W.shape[0])[0, ...]
                for (_, x), W in zip(maps, Ws, strict=True)
            ]
            pairs = [(x, xp.matrix_transpose(W)) for x, W in zip(heads, Ws, strict=True)]
            y = headwise.products(xp, pairs, maps[0][1])
        if self.bias:
            y = add_over(xp, y, xp.concat([p["b"] for p, _ in maps]))
        return y, list(zip(heads, Ws, strict=True))

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Array]:
        (grads,), (dx,) = self.beside_bwd(xp, [(p, kept, [dy])], [0], [None])
        return grads, dx

    def beside_bwd(
        self,
        xp: Namespace,
        maps: Sequence[tuple[Params, Any, Sequence[Array]]],
        of: Sequence[int],
        add: Sequence[Array | None],
    ) -> tuple[list[Params], list[Array]]:
        """Return the gradients with respect to each map's parameters, and to each different x.

        Parameters
        ----------
        xp
            The namespace of the arrays.
        maps : sequence of (params, kept, sequence of array (..., D))
            `kept` is what `beside` kept; the gradient with respect to y is the sum of the arrays.
        of : sequence of int
            For each map the number of its x.
        add : sequence of array (..., D) or None
            For each x an array to add to its gradient, or None.
        """
        grads = list[Params]()
        dxs = list(add)
        if block_diagonal.takes(xp, maps[0][0]["W"]):
            params, kept, more = zip(*maps, strict=True)
            xs = {k: heads for k, (heads, _) in zip(of, kept, strict=True)}
            every = [xs[k] for k in range(len(add))]
            Ws = [p["W"] for p in params]
            dxs, dWs = block_diagonal.products_bwd(xp, more, every, Ws, of, add)
            grads = [{"W": dW} for dW in dWs]
            if self.bias:
                for own, dys in zip(grads, more, strict=True):
                    own["b"] = column_sums(xp, functools.reduce(operator.add, dys))
            return grads, dxs
        for (_, (heads, W), dys), k in zip(maps, of, strict=True):
            dy = functools.reduce(operator.add, dys)
            dz = headwise.split(xp, dy, self.size, W.shape[0])[0, ...]
            dW = row_products(xp, dz, heads)
            grads.append({"W": headwise.parted(xp, dW, self.num_heads)})
            if self.bias:
                grads[-1]["b"] = column_sums(xp, dy)
            dx = headwise.products(xp, [(dz, W)], dy)
            dxs[k] = dx if dxs[k] is None else dxs[k] + dx
        return grads, dxs
