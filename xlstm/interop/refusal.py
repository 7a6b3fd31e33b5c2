"""What a layer does that another library cannot, in the same words for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlstm.layers.gated import Recurrent
from xlstm.layers.recurrent import GRU, LSTM, RNN


def kind(who: str, layer: Any) -> None:
    """Raise TypeError unless a layer is one that the other libraries have."""
    if not isinstance(layer, LSTM | GRU | RNN):
        raise TypeError(f"{who}: layer is a {type(layer).__name__}, expected an LSTM, GRU, RNN or SequenceModel of one")


def options(who: str, library: str, layer: Recurrent, absent: Mapping[str, Any]) -> None:
    """Raise ValueError if inference needs an option that a library does not have.

    `absent` has the options that are not there and the values that mean they are not used. None of the
    libraries has zoneout, which changes inference too.
    """
    for name, unused in {**absent, "zoneout": (0.0,) * len(layer.STATES)}.items():
        value = getattr(layer, name, unused)
        if value != unused:
            raise ValueError(f"{who}: {name} is {value}, which {library} cannot express, expected {unused}")
