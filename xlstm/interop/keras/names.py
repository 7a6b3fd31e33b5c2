"""Names and orders of Keras 3.

Keras has kernels (D, G*H) with gates in order i f c o (ours i o f g) and z r h (ours z r n), and one bias; a GRU with
`reset_after` has a bias (2, 3H). `reordered` in `interop/common.py` puts the rows of arrays into the order of `ORDER`.
"""

from __future__ import annotations

import re

CLASSES = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
# The position of each of our gates among Keras'.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (0, 1, 2), "rnn": (0,)}
# The groups of a file in which the cells of a layer lie, by whether the layer is bidirectional.
PARTS = {False: ("",), True: ("forward_layer/", "backward_layer/")}
# Our name of each of Keras' activations.
ACTIVATIONS = {
    **{name: name for name in ("sigmoid", "tanh", "relu", "linear", "selu", "softsign", "softplus", "exponential")},
    "elu": "elu(1.0)",
    "leaky_relu": "leaky_relu(0.2)",
    "hard_sigmoid": f"hard_sigmoid({1 / 6!r}, 0.5)",
}


def snake(name: str) -> str:
    """Return the name of a group that Keras makes of the name of a class."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
