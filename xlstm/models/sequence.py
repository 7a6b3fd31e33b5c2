"""Models: a sequence in, a prediction out; and models and layers in files."""

from __future__ import annotations

import functools
import os
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import Array, DType, Params, device_of, namespace
from xlstm.arrays.random import Seed
from xlstm.data import reading
from xlstm.layers import sequence
from xlstm.layers.backbone import xLSTMStack
from xlstm.layers.base import Recurrent
from xlstm.layers.large import xLSTMLarge
from xlstm.layers.linear import Linear
from xlstm.layers.mlstm import mLSTM
from xlstm.layers.part import Part
from xlstm.layers.recurrent import GRU, LSTM, RNN, sLSTM
from xlstm.layers.stack import State
from xlstm.models.language import xLSTMLanguageModel
from xlstm.training import checkpoint

KIND = "model"
LAYERS: dict[str, Any] = {layer.__name__: layer for layer in (LSTM, GRU, RNN, sLSTM, mLSTM, xLSTMStack, xLSTMLarge)}


class SavedModel(NamedTuple):
    """What `SequenceModel.forward` keeps: the recurrent layer's `Saved`, and the head's."""

    recurrent: Any
    head: Any


@dataclass(frozen=True)
class SequenceModel(Part):
    """A recurrent layer with a linear head.

    Parameters are those of the layer under `recurrent.` and of the head under `head.`.

    Parameters
    ----------
    recurrent : LSTM, GRU, RNN, sLSTM, mLSTM, xLSTMStack or xLSTMLarge
        The layer, or layers.
    output_size : int
        Width O of the prediction.
    last : bool
        Predict once, from the last layer's final hidden state (of both directions), instead of at every step. Only
        with a layer that has one: LSTM, GRU, RNN and sLSTM.
    """

    recurrent: Any
    output_size: int
    last: bool = False

    def __post_init__(self) -> None:
        checks.fields(self, recurrent=sequence.layer, output_size=checks.size, last=checks.flag)
        if self.last and not isinstance(self.recurrent, Recurrent):
            raise ValueError(
                f"SequenceModel: last needs a hidden state, recurrent has none: {checks.shown(self.recurrent)}"
            )

    @property
    def batch_first(self) -> bool:
        """Whether x is (B, T, D)."""
        return bool(self.recurrent.batch_first)

    @property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        return bool(self.recurrent.random)

    @functools.cached_property
    def head(self) -> Linear:
        """The linear layer from hidden state to prediction."""
        return Linear(self.recurrent.output_size, self.output_size)

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """Layer and head, in the order in which they are drawn."""
        return {"recurrent": self.recurrent, "head": self.head}

    def forward(
        self,
        params: Params,
        x: Array,
        state: State | None = None,
        train: bool = True,
        *,
        lengths: Any = None,
        seed: Seed | None = None,
        keep: bool | None = None,
    ) -> tuple[Array, State, SavedModel | None]:
        """Predict from x (T, B, D): (T, B, O), or (B, O) with `last`; arguments as `LSTM.forward`.

        Past the end of a sequence the prediction is the head's bias; `training.train` lets it not count.
        """
        recurrent, head = self._split(params)
        y, state, saved = self.recurrent.forward(recurrent, x, state, train, lengths=lengths, seed=seed, keep=keep)
        # The hidden state after the last step is the final state: its gradient goes in there.
        seen = self._final(state[0]) if self.last else y
        prediction, kept = self.head.forward(head, seen)
        return prediction, state, None if saved is None else SavedModel(saved, kept)

    def backward(
        self, params: Params, saved: SavedModel, dy: Array, dstate: State | None = None
    ) -> tuple[Params, Array, State]:
        """Gradients of params, x and the initial state from those of the prediction and final state."""
        if not isinstance(saved, SavedModel):
            raise TypeError("SequenceModel: backward needs what forward saved, and forward(train=False) saves nothing")
        recurrent, head = self._split(params)
        if self.last and dstate is not None:
            self.recurrent.check_state("dstate", dstate, saved.recurrent.packing.B)
        grads, dh = self.head.backward(head, saved.head, dy)
        if self.last:
            dh = self._final_bwd(dh)
            others = dstate[1:] if dstate is not None else (None,) * (len(self.recurrent.STATES) - 1)
            dstate = (dh if dstate is None or dstate[0] is None else dstate[0] + dh, *others)
            dh = None
        layer_grads, dx, dstate = self.recurrent.backward(recurrent, saved.recurrent, dh, dstate)
        found: Params = {}
        self.collect("recurrent", layer_grads, found)
        self.collect("head", grads, found)
        return found, dx, dstate

    def _split(self, params: Params) -> tuple[Params, Params]:
        """Parameters of the layer and of the head, once their names and shapes are checked."""
        self.check(params)
        return self.below("recurrent", params), self.below("head", params)

    def _final(self, h: Array) -> Array:
        """Final hidden states (L, B, P) -> those of the last layer side by side, (B, directions * P)."""
        xp = namespace("SequenceModel", {"h": h})
        last = h[h.shape[0] - len(self.recurrent.directions) :, ...]
        return xp.reshape(xp.permute_dims(last, (1, 0, 2)), (h.shape[1], self.recurrent.output_size))

    def _final_bwd(self, dh: Array) -> Array:
        xp = namespace("SequenceModel", {"dh": dh})
        directions, B = len(self.recurrent.directions), dh.shape[0]
        last = xp.permute_dims(xp.reshape(dh, (B, directions, dh.shape[1] // directions)), (1, 0, 2))
        rest = (self.recurrent.num_layers - 1) * directions
        if rest == 0:
            return last
        return xp.concat((xp.zeros((rest, *last.shape[1:]), dtype=dh.dtype, device=device_of(dh)), last))


Layer = LSTM | GRU | RNN | sLSTM | mLSTM | xLSTMStack | xLSTMLarge
Model = SequenceModel | xLSTMLanguageModel | Layer
LEAST = {"num_layers": 1, "num_blocks": 8}  # arrays of each
# Options of what has a layer.
SEQUENCE = ("output_size", "last")
LANGUAGE = ("vocab_size", "tied", "logit_cap", "embedding_dropout", "batch_first")


def save(path: str | os.PathLike[str], model: Model, params: Params) -> None:
    """Write a model or a layer, its description and its parameters, to a safetensors file, whole or not at all.

    Raises
    ------
    ValueError
        `params` are not those of the model.
    OSError
        The folder cannot be written to.
    """
    layer: Any = model
    head: dict[str, Any] | None = None
    if isinstance(model, SequenceModel):
        layer, head = model.recurrent, {name: getattr(model, name) for name in SEQUENCE}
    elif isinstance(model, xLSTMLanguageModel):
        layer, head = model.backbone, {name: getattr(model, name) for name in LANGUAGE}
    if type(layer).__name__ not in LAYERS:
        raise TypeError(
            f"save: model is a {type(model).__name__}, expected a SequenceModel, an xLSTMLanguageModel, "
            f"or one of {', '.join(LAYERS)}"
        )
    _check(model, params)
    config = {"layer": type(layer).__name__, "options": asdict(layer), "head": head}
    checkpoint.save(path, params, KIND, config)


@reading.brief()
def load(
    path: str | os.PathLike[str], backend: str | Backend | None = None, dtype: DType | None = None
) -> tuple[Model, Params]:
    """Read a file that `save` wrote: the model or layer, and its parameters.

    Parameters
    ----------
    path : path
    backend : str or Backend, optional
        Where the parameters are put; a name as for `xlstm.backend`, by default "auto".
    dtype : str, optional
        By default that of the file.

    Raises
    ------
    OSError, ValueError
        There is no such file, or it holds no sound model.
    """
    arrays, config = checkpoint.load(path, KIND)
    try:
        model = _described(config, len(arrays))
        _check(model, arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a sound model ({type(error).__name__}: {error})") from error
    dtypes = {str(array.dtype) for array in arrays.values()}
    if len(dtypes) != 1:
        raise ValueError(f"{path}: parameters are of several dtypes, {', '.join(sorted(dtypes))}, expected one")
    chosen = backend_of(backend, dtypes.pop() if dtype is None else dtype)
    checkpoint.finite(path, arrays, chosen.dtype)
    return model, {name: chosen.asarray(array) for name, array in arrays.items()}


def _described(config: dict[str, Any], count: int) -> Model:
    """The model of a configuration, whose file has so many arrays."""
    name, options, head = (config.get(key) for key in ("layer", "options", "head"))
    if not isinstance(name, str) or name not in LAYERS:
        raise ValueError(f"layer is {checks.shown(name)}, expected one of {', '.join(LAYERS)}")
    for depth, least in LEAST.items():  # before their names are listed, however many are declared
        declared = options.get(depth) if isinstance(options, dict) else None
        if isinstance(declared, int) and declared * least > count:
            raise ValueError(f"{depth} is {declared}, the file holds {count} arrays")
    layer: Any = reading.made("options", LAYERS[name], options)
    if head is None:
        return layer  # type: ignore[no-any-return]
    kind: Any = xLSTMLanguageModel if isinstance(head, dict) and "vocab_size" in head else SequenceModel
    return reading.made("head", kind, head, layer)  # type: ignore[no-any-return]


def _check(model: Any, params: Params) -> None:
    """Raise ValueError unless these are the parameters of the model."""
    checks.params(type(model).__name__, params, model.shapes)
