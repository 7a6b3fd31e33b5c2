"""The bases of residual blocks and of stacks, and two feed-forward layers.

A gated layer computes y = (act(x G^T) * (x U^T)) D^T (Dauphin et al. 2017; Shazeer 2020), a
residual layer y = act(x H^T) O^T + x R^T (Das et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params, add_over, room
from xlstm.arrays.rows import summed
from xlstm.cells.activations import FEED_FORWARD
from xlstm.layers import initializers
from xlstm.layers.linear import Linear
from xlstm.layers.module import Backward, Forward, Module, Parts, SameWidth, Weight, Weights
from xlstm.layers.sequence import Derivatives, Scanned, SequenceLayer, State, WithState
from xlstm.recurrence.packing import Span

MULTIPLE = 64  # inner widths are multiples of this


@dataclass(frozen=True)
class Block(SameWidth, SequenceLayer):
    """The base of the blocks of a stack: x' = x + mix(norm(x)); y = x' + ffn(ffn_norm(x')).

    A subclass gives `mix` and `mix_bwd`, and the parts `norm`, `ffn_norm` and `ffn`; the last two
    are optional. A block knows the number of blocks in its stack, and its own place.
    """

    size: int
    num_heads: int = 4
    _: KW_ONLY
    conv_kernel_size: int = 4
    dropout: float = 0.0
    num_blocks: int = 1
    index: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index >= self.num_blocks:
            where = type(self).__name__
            raise ValueError(
                f"{where}: index is {self.index}, expected less than num_blocks, {self.num_blocks}"
            )

    @property
    def ffn_rate(self) -> float:
        """Rate of dropout of the feed-forward layer's output."""
        return 0.0

    @property
    def _small(self) -> float:
        """Standard deviation of initial weights (Nguyen & Salazar 2019)."""
        return math.sqrt(2 / (5 * self.size))

    def mix(self, run: Forward, u: Array, state: State) -> WithState:
        """Return the term to add to x, from its norm u, and the final state."""
        raise NotImplementedError

    def mix_bwd(self, run: Backward, dy: Array, dstate: Any) -> WithState:
        """Return the gradients with respect to u and the initial state; a None dstate is zero."""
        raise NotImplementedError

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        run = Forward(self, span.xp, p, span)
        x, end = self.over_time(run, x, state)
        return self.at_each_step(run, x), end, run.kept

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        run = Backward(self, span.xp, p, kept, span)
        dy = self.at_each_step_bwd(run, dy)
        du, start = self.mix_bwd(run, dy, dstate)  # (2)
        return run.grads, run("norm", du, add=dy), start  # (1)

    def over_time(self, run: Forward, x: Array, state: State) -> WithState:
        """Return x plus the term that mixes time, and the final state."""
        m, end = self.mix(run, run("norm", x), state)  # (1) (2)
        return x + m, end

    def at_each_step(self, run: Forward, x: Array) -> Array:
        """Return x plus the feed-forward layer's output, which depends on each step alone."""
        if "ffn" not in self.parts:
            return x
        return x + run.dropped("ffn_mask", run("ffn", run("ffn_norm", x)), self.ffn_rate)  # (3) (4)

    def at_each_step_bwd(self, run: Backward, dy: Array) -> Array:
        """Differentiate `at_each_step`: return the gradient with respect to x."""
        if "ffn" not in self.parts:
            return dy
        return run("ffn_norm", run("ffn", run.dropped("ffn_mask", dy)), add=dy)  # (4) (3)


class Backbone(SameWidth, SequenceLayer):
    """A stack of blocks, and a norm. Subclasses have the fields `size` and `num_blocks`.

    Parameters are `blocks.{k}....` and `norm.w`. The state is a tuple of the blocks' states.
    """

    num_blocks: int

    @cached_property
    def blocks(self) -> list[Any]:
        """The blocks, from the input on."""
        raise NotImplementedError

    @property
    def norm(self) -> Any:
        """The norm after the last block, or None."""
        raise NotImplementedError

    @cached_property
    def parts(self) -> Parts:
        parts = {f"blocks.{k}": block for k, block in enumerate(self.blocks)}
        return parts | ({} if self.norm is None else {"norm": self.norm})

    @cached_property
    def states(self) -> State:
        """The leaves of the state of each block."""
        return tuple(block.states for block in self.blocks)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        run = Forward(self, span.xp, p, span)
        ends = []
        for k, start in enumerate(state):
            x, end = run(f"blocks.{k}", x, start)
            ends.append(end)
        return run("norm", x) if "norm" in self.parts else x, tuple(ends), run.kept

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        run = Backward(self, span.xp, p, kept, span)
        starts = []
        if "norm" in self.parts:
            dy = run("norm", dy)
            run.final("norm")
        for k in range(self.num_blocks - 1, -1, -1):
            dy, start = run(f"blocks.{k}", dy, None if dstate is None else dstate[k])
            run.final(f"blocks.{k}")
            starts.append(start)
        return run.grads, dy, tuple(starts[::-1])


class GatesOfHeads(Linear):
    """The pre-activations of the input and forget gates of N heads, by `W` (2N, I) and `b` (2N,).

    The rows of the input gates come first. W begins at 0, and `initializers.mlstm_bias` draws b.
    """

    def __init__(self, input_size: int, num_heads: int) -> None:
        super().__init__(input_size, 2 * num_heads)

    @property
    def weights(self) -> Weights:
        weights = super().weights
        b: Weight = weights["b"][0], lambda rng, shape: initializers.mlstm_bias(rng, shape[0] // 2)
        return {"W": (weights["W"][0], initializers.constant(0.0)), "b": b}


def widened(where: str, name: str, factor: float, size: int) -> int:
    """Return an inner width: `factor` times `size`, rounded up to a multiple of 64.

    `name` is the name of the factor in errors.

    Raises
    ------
    ValueError
        The width is larger than any size may be.
    """
    if factor * size > checks.LARGEST:
        raise ValueError(
            f"{where}: {name} is {factor}, expected at most {checks.LARGEST / size:g} for size"
            f" {size}"
        )
    # with a tiny factor the product rounds to 0
    return max(MULTIPLE, round_up(factor * size, MULTIPLE))


def round_up(size: float, multiple: int) -> int:
    """Return the least multiple of `multiple` that is at least `size`."""
    return multiple * math.ceil(size / multiple)


@dataclass(frozen=True)
class GatedFeedForward(SameWidth, Module):
    """A gated feed-forward layer: GEGLU with "gelu", SwiGLU with "silu".

    The layer multiplies two products of x. This overflows if both exceed the square root of the
    dtype's largest number.

    Parameters
    ----------
    size : int
        Width D of x and y.
    hidden_size : int
        Inner width U. Parameters are `up.W` (2U, D), with the rows of the gate first, and `down.W`
        (D, U).
    activation : {"gelu", "silu", "relu", "square_relu", "sigmoid", "selu"}
        Activation of the gate.
    bias : bool
        Whether there are `up.b` and `down.b`.
    num_blocks : int
        The number of blocks in the stack, which sets initial weights: N(0, 4 / (num_blocks^2 D))
        for `down`, and N(0, 2 / (5 D)) for `up`.
    """

    size: int
    hidden_size: int
    _: KW_ONLY
    activation: str = "gelu"
    bias: bool = False
    num_blocks: int = 1

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        U = self.hidden_size
        narrow = 2 / (self.num_blocks * math.sqrt(D))
        return {
            "up": Linear(D, 2 * U, bias=self.bias, std=math.sqrt(2 / (5 * D))),
            "down": Linear(U, D, bias=self.bias, std=narrow),
        }

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        run = Forward(self, xp, p)
        z = run("up", x)  # (1)
        gate, value = z[..., : self.hidden_size], z[..., self.hidden_size :]
        a, u = fuse(xp, _gated, gate, value, activation=self.activation)  # (2)
        return run("down", u), {**run.kept, "gate": gate, "value": value, "a": a}  # (3)

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Array]:
        run = Backward(self, xp, p, kept)
        du = run("down", dy)  # (3)
        U = self.hidden_size
        dz = room(xp, du, (*du.shape[:-1], 2 * U))
        arrays = (du, kept["gate"], kept["value"], kept["a"])
        out = (dz[..., :U], dz[..., U:])
        summed(xp, _gated_bwd, *arrays, sums=0, out=out, activation=self.activation)  # (2)
        return run.grads, run("up", dz)  # (1)


@dataclass(frozen=True)
class ResidualFeedForward(Module):
    """A feed-forward layer beside a linear one: y = output(act(hidden(x))) + residual(x).

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        Widths I, U and O. Parameters are `hidden.W` (U, I), `output.W` (O, U), `residual.W` (O, I),
        and a `b` for each.
    activation : {"gelu", "silu", "relu", "square_relu", "sigmoid", "selu"}
    """

    input_size: int
    hidden_size: int
    output_size: int
    _: KW_ONLY
    activation: str = "relu"

    @cached_property
    def parts(self) -> Parts:
        I = self.input_size  # noqa: E741
        U = self.hidden_size
        O = self.output_size  # noqa: E741
        return {"hidden": Linear(I, U), "output": Linear(U, O), "residual": Linear(I, O)}

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        run = Forward(self, xp, p)
        z = run("hidden", x)  # (1)
        a = fuse(xp, FEED_FORWARD[self.activation].fwd, z)  # (2)
        y = run("output", a)  # (3)
        y = add_over(xp, y, run("residual", x))  # (4)
        return y, {**run.kept, "z": z, "a": a}

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Array]:
        run = Backward(self, xp, p, kept)
        dx = run("residual", dy)  # (4)
        da = run("output", dy)  # (3)
        dz = fuse(xp, FEED_FORWARD[self.activation].bwd, da, kept["z"], kept["a"])  # (2)
        dx = add_over(xp, dx, run("hidden", dz))  # (1)
        return run.grads, dx


def _gated(xp: Namespace, gate: Array, value: Array, activation: str) -> tuple[Array, Array]:
    a = FEED_FORWARD[activation].fwd(xp, gate)
    return a, a * value


def _gated_bwd(
    xp: Namespace, du: Array, gate: Array, value: Array, a: Array, activation: str
) -> tuple[Array, Array]:
    """Return the gradients with respect to the gate and the value."""
    return FEED_FORWARD[activation].bwd(xp, du * value, gate, a), du * a
