"""Names and orders of Keras 3.

Keras has kernels (D, G*H) with gates in order i f c o (ours i o f g) and z r h (ours z r n), one bias,
and of a GRU with `reset_after` a bias (2, 3H).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]
Arrays = Sequence[Host]
CLASSES = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
# Where each of our gates stands among Keras'.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (0, 1, 2), "rnn": (0,)}
PARTS = {False: ("",), True: ("forward_layer/", "backward_layer/")}
# Keras' activations as ours.
ACTIVATIONS = {
    **{name: name for name in ("sigmoid", "tanh", "relu", "linear", "selu", "softsign", "softplus", "exponential")},
    "elu": "elu(1.0)",
    "leaky_relu": "leaky_relu(0.2)",
    "hard_sigmoid": f"hard_sigmoid({1 / 6!r}, 0.5)",
}


def reordered(array: Host, order: Any) -> Host:
    """Blocks of columns, one for each gate, in another order."""
    blocks = array.reshape((*array.shape[:-1], len(order), array.shape[-1] // len(order)))
    return blocks[..., list(order), :].reshape(array.shape)


def snake(name: str) -> str:
    """How Keras turns the name of a class into that of a group."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
