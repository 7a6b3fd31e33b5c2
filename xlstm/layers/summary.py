"""A table of the parts of a model: kinds, output shapes, parameters and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from xlstm.arrays import checks


class SummaryRow(NamedTuple):
    """A row of a summary.

    Attributes
    ----------
    name : str
        The name with which its parameters' names begin; "" for the whole model.
    kind : str
        The name of the part's class.
    output : tuple
        The shape of its output: sizes, and letters or "..." for sizes that are open.
    parameters, bytes : int
        The number of parameters, and their bytes, in the part and in all parts inside it.
    """

    name: str
    kind: str
    output: tuple[Any, ...]
    parameters: int
    bytes: int


class Summary(tuple[SummaryRow, ...]):
    """The parts of a model, the whole model first, shown as a table."""

    def __repr__(self) -> str:
        rows = [("part", "kind", "output", "  parameters", "       bytes")]
        for name, kind, output, count, size in self:
            shape = ", ".join(map(str, output))
            rows.append((name or "(all)", kind, f"({shape})", f"{count:>12,}", f"{size:>12,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)) for row in rows)


def summary(model: Any, input_shape: Sequence[int] | None = None) -> Summary:
    """Return a table of the parts of a model.

    Parameters
    ----------
    model : Module or estimator
        A layer, a block, a stack or a model; or a fitted estimator, whose network it describes.
    input_shape : tuple of int, optional
        The shape of x, such as (T, B, D), or (B, T, D) with `batch_first`. If you give it, output
        shapes have numbers for T and B.

    Returns
    -------
    Summary
        The table. It counts bytes of float32 weights, or of an estimator's weights in their own
        dtype.

    Raises
    ------
    TypeError, ValueError
        `model` is neither a module nor an estimator, or not fitted; or `input_shape` does not fit
        the model.

    Examples
    --------
    >>> import xlstm
    >>> from xlstm.models import SequenceModel, summary
    >>> summary(SequenceModel(xlstm.LSTM(2, 8), 1, last=True), input_shape=(12, 5, 2))
    part       kind           output        parameters         bytes
    (all)      SequenceModel  (5, 1)               361         1,444
    recurrent  LSTM           (12, 5, 8)           352         1,408
    head       Linear         (..., 1)               9            36
    """
    itemsize = 4  # bytes of a float32
    if hasattr(model, "get_params"):
        model, itemsize = model.model_, next(iter(model.params_.values())).dtype.itemsize
    checks.having("shapes", "parts", expected="a module or an estimator")("summary", "model", model)
    outer: Any = ("T", "B")
    if input_shape is not None:
        D = getattr(model, "input_size", "(any)")
        sizes = checks.several("summary", "input_shape", input_shape, "(T, B, D)", checks.size)
        if len(sizes) < 2 or (len(sizes) > 2 and sizes[2] != D):
            raise ValueError(
                f"summary: input_shape is {checks.shown(input_shape)}, expected (T, B, D) with D"
                f" = {D}"
            )
        outer = tuple(sizes[1::-1] if getattr(model, "batch_first", False) else sizes[:2])
    return Summary(_parts("", model, outer, itemsize))


def _parts(name: str, module: Any, outer: Any, itemsize: int) -> Iterator[SummaryRow]:
    """Yield a module, and all parts inside it."""
    count = sum(math.prod(n for n in dims.values() if n) for dims in module.shapes.values())
    if hasattr(module, "output_dims"):
        output = module.output_dims(*outer).values()
    else:  # an Embedding has a `size`
        output = ("...", getattr(module, "output_size", None) or module.size)
    yield SummaryRow(name, type(module).__name__, tuple(output), count, count * itemsize)
    for prefix, part in module.parts.items():
        yield from _parts(f"{name}.{prefix}".lstrip("."), part, outer, itemsize)
