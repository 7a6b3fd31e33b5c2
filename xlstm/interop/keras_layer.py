"""A layer or a model as a Keras 3 layer.

Importing this file imports Keras, which can then load such layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import reading
from xlstm.interop.bridge import Bridge
from xlstm.interop.hdf5 import MOST
from xlstm.layers.sequence import SequenceLayer
from xlstm.models import model_files

WHERE = "interop.keras.layer"


@keras.saving.register_keras_serializable("xlstm")
class KerasLayer(keras.layers.Layer):  # type: ignore[misc]
    """A Keras layer that runs xlstm's passes; see `xlstm.interop.keras.layer`.

    Attributes
    ----------
    layer : Module
        The xlstm layer or model.
    params : dict of str to keras.Variable
        Its parameters, under this library's names.
    """

    def __init__(
        self, layer: Any, params: Params | None = None, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        self._bridge = Bridge(WHERE, layer, SequenceLayer)
        if self.dtype_policy.name not in ("float32", "float64"):
            raise ValueError(
                f"{WHERE}: the dtype policy is {self.dtype_policy.name}, expected float32 or"
                " float64"
            )
        self._function = _function(self._bridge)
        self.layer = layer
        self.seed = checks.seed_number(WHERE, "seed", seed)
        self.seed_generator = keras.random.SeedGenerator(seed) if layer.random else None
        values = layer.init(seed, "numpy", self.variable_dtype) if params is None else params
        layer.check(values)
        self.params = {}
        for name in self._bridge.names:
            # Keras passes names of variables on to PyTorch, which allows no dots.
            self.params[name] = self.add_weight(
                values[name].shape, "zeros", name=name.replace(".", "_")
            )
            self.params[name].assign(to_numpy(values[name]))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return y for x, both batch first."""
        seed = self.seed_generator.next() if training and self.seed_generator is not None else None
        x = keras.ops.transpose(x, self._order(range(len(x.shape))))
        y = self._function(
            {name: variable.value for name, variable in self.params.items()}, x, seed
        )
        return keras.ops.transpose(y, self._order(range(len(y.shape)))) if len(y.shape) > 2 else y

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the shape of y; sizes may be None."""
        shape = self._bridge.shapes(SimpleNamespace(shape=self._order(input_shape)))[0]
        return self._order(shape) if len(shape) > 2 else shape

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Raise ValueError if x has a mask, since the layer would lose it."""
        if previous_mask is not None:
            raise ValueError(
                f"{WHERE}: x of {self.name} has a mask, expected none: leave out Masking and"
                " mask_zero"
            )

    def _order(self, axes: Any) -> tuple[Any, ...]:
        """Return axes with batch and time swapped between Keras's order and the layer's, if these
        differ.
        """
        return tuple(axes) if self.layer.batch_first else (axes[1], axes[0], *axes[2:])

    def get_config(self) -> dict[str, Any]:
        """Return the options of this layer, with the xlstm layer as a JSON text."""
        description = json.dumps(model_files.config_of(WHERE, self.layer))
        return {**super().get_config(), "layer": description, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasLayer:
        """Return the layer that `get_config` describes, with random initial weights.

        It raises ValueError for more layers than a file of Keras has arrays.
        """
        description = reading.from_json(WHERE, checks.text(WHERE, "layer", config.get("layer")))
        checks.instance(dict, "an object")(WHERE, "layer", description)
        return cls(**{**config, "layer": model_files.from_config(description, MOST)})


def _function(bridge: Bridge) -> Callable[[Params, Any, Any], Any]:
    """Return a function of Keras's backend from parameters, x and the masks' seed to y.

    The seed is None outside of training.
    """
    backend = keras.config.backend()
    if backend == "jax":
        from xlstm.interop import jax

        run = jax.layer(bridge.layer)
        return lambda params, x, seed: run(params, x, train=seed is not None, seed=seed)[0]
    if backend == "torch":
        from xlstm.interop import torch_module

        spec = torch_module.spec_of(bridge)

        def function(params: Params, x: Any, seed: Any) -> Any:
            if seed is not None:
                first, second = seed.long() & 0x7FFFFFFF  # Keras keeps them as int32
                seed = (first << 32) + second
            options = None, seed, None, None
            return torch_module.run(bridge, spec, x, list(params.values()), (), options)[0]

        return function
    raise ValueError(
        f"{WHERE}: the backend of Keras is {backend}, expected torch or jax (KERAS_BACKEND)"
    )
