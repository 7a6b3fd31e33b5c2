"""Names and layouts in the checkpoints of TiRex-1 and TiRex-2: where each of our parameters is there.

The sLSTM's projections named igate and fgate are swapped: the one named fgate feeds the input gate. Recurrent kernels
and biases have the gates' true names.
"""

from __future__ import annotations

import re

from xlstm.interop import pieces
from xlstm.interop.pieces import LAST, Layout, Piece, Shape
from xlstm.models.tirex import TiRex, TiRex2

EDGES = {
    f"{ours}.{part}": f"{ours}_patch_embedding.{part}_layer"
    for ours in ("input", "output")
    for part in ("hidden", "output", "residual")
}
GATES = {ours: f"{theirs}gate" for ours, theirs in zip("ifzo", "fizo", strict=True)}
KERNEL, BIAS = "_recurrent_kernel_", "_bias_"
FEED_FORWARD = {"ffn.up": "ffn.proj_up_gate ffn.proj_up", "ffn.down": "ffn.proj_down"}

# By our name within a block the name of theirs, or of several that lie one below the other in ours.
FIRST = {
    "norm": "norm_slstm",
    **{ours: f"slstm_layer.{theirs}" for ours, theirs in GATES.items()},
    "cell.Wh": f"slstm_layer.slstm_cell.{KERNEL}",
    "cell.b": f"slstm_layer.slstm_cell.{BIAS}",
    "outnorm": "slstm_layer.group_norm",
    "ffn_norm": "norm_ffn",
    **FEED_FORWARD,
}
SECOND = {
    "norm": "time_mixer.norm_lstm",
    # of an sLSTM
    **{ours: f"time_mixer.fwd_cell.{theirs}" for ours, theirs in GATES.items()},
    "cell.Wh": f"time_mixer.fwd_cell.{KERNEL}",
    "cell.b": f"time_mixer.fwd_cell.{BIAS}",
    # of an mLSTM
    "qkvo": " ".join(f"time_mixer.fwd_cell.{name}" for name in ("q", "k", "v", "ogate_preact")),
    "gates": "time_mixer.fwd_cell.igate_preact time_mixer.fwd_cell.fgate_preact",
    "down": "time_mixer.fwd_cell.out_proj",
    # of both
    "combination": "time_mixer.combination",
    "ffn_norm": "time_mixer.norm_ffn",
    **{ours: " ".join(f"time_mixer.{name}" for name in theirs.split()) for ours, theirs in FEED_FORWARD.items()},
    "mixer.norm": "variate_mixer.norm_attn",
    **{f"mixer.{name}": f"variate_mixer.attn.W{name.upper()}" for name in "qkvo"},
    "mixer.ffn_norm": "variate_mixer.norm_ffn",
    "mixer.up": "variate_mixer.ffn.wi",
    "mixer.down": "variate_mixer.ffn.wo",
}
OUTNORM = {True: "time_mixer.fwd_cell.group_norm", False: "time_mixer.fwd_cell.multihead_norm"}  # sLSTM or mLSTM


STACK = "block_stack."  # before names of blocks and of the last norm in the pickled checkpoint of TiRex-1


def pickled(name: str) -> str:
    """Return the name of an array in the pickled checkpoint of TiRex-1."""
    return name if name.startswith(tuple(EDGES.values())) else STACK + name


def canonical(name: str) -> str:
    """Return the name that stands for all names of an array in checkpoints."""
    name = name.removeprefix(STACK).replace(".rev_cell.", ".fwd_cell.")
    name = re.sub(r"\.recurrent_kernel$", f".{KERNEL}", name)
    return re.sub(r"_cell\.bias$", f"_cell.{BIAS}", name)


def pieces_of(model: TiRex | TiRex2) -> dict[str, list[Piece]]:
    """Return by each of our names the arrays of theirs that make it up, one below the other."""
    shapes = {name: tuple(n or 0 for n in dims.values()) for name, dims in model.shapes.items()}
    first = isinstance(model, TiRex)
    found = {}
    for ours, shape in shapes.items():
        if ours.endswith((".cell.Wh", ".cell.b")):
            kernel = shapes[f"{ours.rpartition('.')[0]}.Wh"]
            found[ours] = [Piece(_listed(ours, shapes, first)[0], slice(None), _recurrent(shape, kernel, first))]
            continue
        part, _, last = ours.rpartition(".")
        listed = [f"{name}.{LAST[last]}" for name in _listed(part, shapes, first)]
        heights = [shape[0] // len(listed)] * len(listed)
        if part.endswith(".qkvo"):  # q and k are narrower than v and o
            narrow = shape[0] // 2 - model.size
            heights = [narrow, narrow, model.size, model.size]
        found[ours] = pieces.below(listed, heights, shape[1:])
    return found


def _listed(part: str, shapes: dict[str, Shape], first: bool) -> list[str]:
    """Return the names there of a part of ours, without their endings."""
    if part in EDGES:
        return [EDGES[part]]
    if part == "norm":
        return ["out_norm" if first else "stack_out_norm"]
    _, k, own = part.split(".", 2)
    if first:
        table, prefix = FIRST, f"blocks.{k}."
    else:
        table, prefix = {**SECOND, "outnorm": OUTNORM[f"blocks.{k}.cell.Wh" in shapes]}, f"stack.{k}."
    return [prefix + name for name in table[own].split()]


def _recurrent(shape: Shape, kernel: Shape, first: bool) -> Layout:
    """Return the layout of a recurrent kernel (4, N, K out, K in), or of a bias (4 N K,)."""
    _, N, K, _ = kernel
    if shape == kernel:
        return Layout(shape, (1, 3, 0, 2), (N, K, 4 * K) if first else (N, K, 4, K))
    return Layout((4, N, K), (1, 0, 2), shape if first else (N, 4, K))
