"""A network by the name of its cell: the layers that estimators and the command line make."""

from __future__ import annotations

from typing import Any

from xlstm.arrays import checks
from xlstm.layers.blocks.stack import xLSTMStack
from xlstm.layers.custom import LAYERS
from xlstm.layers.mlstm import mLSTM
from xlstm.layers.sequence import SequenceLayer
from xlstm.models.sequence import SequenceModel

CELLS = ("lstm", "gru", "rnn", "slstm", "mlstm", "xlstm")


def layer_of(
    where: str,
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> SequenceLayer:
    """Return the recurrent layers of a cell; those of "xlstm" are as wide as `hidden_size`, before and after.

    Parameters
    ----------
    where : str
        The caller, with whose name an error begins.
    cell : {"lstm", "gru", "rnn", "slstm", "mlstm", "xlstm"}, or the name of a registered cell
        "xlstm" is a stack of `num_layers` blocks, of which the second is an sLSTM block and the others mLSTM blocks.
    input_size, hidden_size, num_layers : int
    bidirectional : bool
        Not for "mlstm" and "xlstm".
    dropout : float
    options : dict
        Further options of the layer.

    Returns
    -------
    SequenceLayer

    Raises
    ------
    ValueError, TypeError
        There is no such cell, or an option that it does not have.
    """
    gated = {name.lower() if name.lower() in CELLS else name: kind for name, kind in LAYERS.items()}
    checks.choice([*CELLS, *(name for name in gated if name not in CELLS)])(where, "cell", cell)
    if bidirectional and cell not in gated:
        raise ValueError(f"{where}: bidirectional is True, but cell {cell!r} goes forward in time only")
    try:
        if cell in gated:
            both: dict[str, Any] = {"bidirectional": bidirectional, "dropout": dropout}
            return gated[cell](input_size, hidden_size, num_layers, **both, **options)
        if cell == "mlstm":
            return mLSTM(input_size, hidden_size, num_layers, dropout=dropout, **options)
        settings = {"slstm_at": [1] if num_layers > 1 else [], "dropout": dropout, **options}
        return xLSTMStack(hidden_size, num_layers, **settings)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: cell {cell!r} cannot be made: {error}") from error


def sequence_model(where: str, cell: str, input_size: int, output_size: int, last: bool, **sizes: Any) -> SequenceModel:
    """Return layers with a linear head.

    Parameters
    ----------
    where, cell, input_size
        As for `layer_of`.
    output_size : int
    last : bool
        Predict once, at the end of a sequence.
    sizes : dict
        The other arguments of `layer_of`.

    Returns
    -------
    SequenceModel
    """
    layer = layer_of(where, cell, input_size, **sizes)
    return SequenceModel(layer, output_size, last, inputs=None if cell != "xlstm" else input_size)
