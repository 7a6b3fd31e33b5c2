"""Sets of arguments: one to three of a sound set are replaced by hostile values.

Each set is refused with ValueError or TypeError that names the class or function and the argument, or everything works
that follows from it: parameters, forward, backward, step, finite results of the right shape, files.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

import xlstm
import xlstm.data as data
from tests.attacks.bounds import examples
from tests.attacks.rounds import calls, follow, small
from xlstm import training
from xlstm.arrays.checks import shown
from xlstm.arrays.convert import BackendError
from xlstm.estimators.features import TiRexFeatures
from xlstm.estimators.forecaster import Forecaster, Settings
from xlstm.estimators.zero_shot import ZeroShotForecaster
from xlstm.layers.blocks.feedforward import GatedFeedForward, ResidualFeedForward
from xlstm.layers.conv import CausalConv
from xlstm.layers.embedding import Embedding
from xlstm.layers.linear import HeadwiseLinear, Linear
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from xlstm.models import TiRex, TiRex2, model_files
from xlstm.models.language import Sampler
from xlstm.models.sequence import SequenceModel
from xlstm.models.tirex import PatchWindows
from xlstm.testing import GradientError
from xlstm.training import loop, losses, optimizers, precision

MESSAGE = 1000  # characters


pytestmark = pytest.mark.usefixtures("interpreted")


def nothing(*_: Any) -> None:
    """Takes anything."""


HOSTILE: list[Any] = [
    *(None, True, False, np.True_, np.False_, Ellipsis, NotImplemented),
    *(0, 1, 2, 3, 4, 5, 8, -1, 7, 2**28, 2**31, 2**63, 10**300, -(10**300), 10**5000),
    *(0.0, -0.0, 0.1, 0.5, 1.0, 1.5, 2.0, -0.5, 1e-300, 5e-324, 1e9, 1e30, 1e38, 1e300),
    *(float("nan"), float("inf"), -float("inf"), 1j, Fraction(1, 2), Fraction(10**400, 3), Decimal("0.5")),
    *(np.int64(2), np.int8(-3), np.uint8(4), np.float32(0.5), np.float16(0.1), np.float64(2.0), np.float32("nan")),
    *(np.longdouble(0.5), np.complex64(1), np.str_("tanh"), np.datetime64("2020"), np.timedelta64(3, "s")),
    *("", "3", "no", "x", "0.5", "a" * 100_000, b"x", "tanh", "relu", "elu(0.5)", "elu(1e300)", "hard_sigmoid(1e999)"),
    *("sigmoid", "exponential", "powerlaw", "gelu", "silu", "glorot", "uniform", "zeros"),
    *("float32", "float64", "float16", "bfloat16", "tf32", "load", "numpy", "auto", "cpu", "torch", "loop"),
    *(np.float32, np.float64, np.dtype("float64"), np.dtype("int64"), np.dtype("V8"), int, list, dict, object),
    *(xlstm.LSTM, len, nothing, losses.mse, lambda: 1),
    *([], [0], [1], [0.1], [0.1, 0.2], [0, 1], ["tanh"], [None, None], [2**63], [10**400], [[1], [2, 3]]),
    *((), (0.1,), (0.1, 0.1), (0.9, 0.9), (1,), ("tanh", "tanh"), ("sigmoid", "tanh", "tanh")),
    *(np.array(1), np.array(0.5), np.array([1]), np.array([0.5, 0.5]), np.eye(2), np.array([]), np.array("x")),
    *(np.zeros((2, 2, 2), "float32"), np.zeros(0, "float32"), np.zeros((0, 0)), np.ma.masked_array([1.0, 2.0], [1, 0])),
    *({}, {"a": 1}, set(), {1}, frozenset({1}), range(2), range(10**12), iter([1, 2]), object()),
    *(xlstm.LSTM(4, 4), xlstm.GRU(4, 4, bidirectional=True), xlstm.sLSTM(4, 4, batch_first=True), Linear(4, 4)),
    *(xlstm.xLSTMStack(4, 1, [0], 2), xlstm.mLSTMBlock(4, 1), SequenceModel(xlstm.LSTM(2, 4), 3)),
    *(np.random.default_rng(0), xlstm.backend("numpy")),
]


# Values that are sound for some argument.
MILD: list[Any] = [
    *(
        True,
        False,
        np.True_,
        None,
        0,
        1,
        2,
        3,
        4,
        8,
        np.int64(2),
        np.uint8(4),
        0.0,
        0.1,
        0.5,
        1.0,
        np.float32(0.5),
        2.5,
    ),
    *([], [0], [1], (0.1, 0.1), range(1), np.array([1]), "tanh", "gelu", "silu", "uniform", "glorot", "sigmoid"),
    *("exponential", "zeros", "float32", "float64", np.float64, np.dtype("float32"), "numpy", "relu", "powerlaw"),
]


def likely(usual: Any) -> list[Any]:
    """Values that are sound for an argument with such a default, for the most part."""
    for types in ((bool, np.bool_), Integral, (Real, type(None)), str):
        if isinstance(usual, types):
            return [v for v in MILD if isinstance(v, types)]
    return MILD


class Case(NamedTuple):
    """A call with sound arguments, who its errors name, and what is to work afterwards."""

    call: Callable[..., Any]
    sound: dict[str, Any]
    after: Callable[[Any, dict[str, Any]], None] = lambda found, arguments: None
    who: str = ""  # a pattern; by default the name of the call
    words: Mapping[str, str] = MappingProxyType({})  # patterns by which errors name an argument, by default its name
    only: tuple[str, ...] = ()  # what is replaced; all arguments by default
    more: Mapping[str, list[Any]] = MappingProxyType({})  # further values of an argument
    long: str = ""  # an argument whose large values are sound, but take for ever


def attack(name: str, case: Case, count: int) -> None:
    """Try so many sets; the first that is neither refused well nor works raises, with what was given."""
    names = case.only or tuple(inspect.signature(case.call).parameters)
    for k in range(count):
        rng = random.Random(f"{name} {k}")
        chosen = rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2, 3))))
        arguments = dict(case.sound)
        for one in chosen:
            more = case.more.get(one, [])
            usual = case.sound.get(one, inspect.signature(case.call).parameters[one].default)
            arguments[one] = rng.choice(rng.choice([more or likely(usual), likely(usual), MILD, HOSTILE]))
        if isinstance(arguments.get(case.long), Integral) and arguments[case.long] > 100:
            continue
        told = f"set {k} of {name}: " + ", ".join(f"{one}={shown(arguments[one])}" for one in chosen)
        try:
            found = case.call(**arguments)
        except (ValueError, TypeError) as error:
            text = str(error)
            assert re.match(rf"({case.who or re.escape(name)})\b", text), f"{told}\nnames nobody: {text[:300]}"
            patterns = [case.words.get(one, rf"\b{re.escape(one)}\b") for one in chosen]
            assert any(re.search(p, text) for p in patterns), f"{told}\nnames no argument: {text[:300]}"
            assert len(text) <= MESSAGE, f"{told}\nis long: {text[:300]}"
            continue
        except BackendError:
            assert str(arguments.get("backend", arguments.get("name"))) in ("auto", "cupy", "torch"), told
            continue
        except BaseException as error:
            raise AssertionError(f"{told}\n{type(error).__name__}: {str(error)[:300]}") from error
        try:
            case.after(found, arguments)
        except BaseException as error:
            raise AssertionError(f"{told}\nwas accepted, then {type(error).__name__}: {str(error)[:500]}") from error


# Objects that are made


def plain(made: Any, arguments: dict[str, Any]) -> None:
    """A frozen description: equal, hashed and written as JSON."""
    again = type(made)(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    assert again == made
    assert hash(again) == hash(made)
    assert len(repr(made)) < 2000


def layer(made: Any, arguments: dict[str, Any]) -> None:
    """A layer or a model: also its passes, where its sizes are small, and its file."""
    plain(made, arguments)
    if small(made):
        follow(made)


STACK = xlstm.xLSTMStack(4, 2, [1], 2)
SMALL = {"patch_size": 2, "input_ff_size": 4, "context": 8}
BLOCK = r"(mLSTM|sLSTM)Block|GatedFeedForward"
LAYERS: dict[str, Case] = {
    "LSTM": Case(xlstm.LSTM, {"input_size": 2, "hidden_size": 4, "num_layers": 2, "dropout": 0.2}),
    "LSTM projected": Case(xlstm.LSTM, {"input_size": 2, "hidden_size": 4, "proj_size": 2, "peepholes": True}),
    "GRU": Case(xlstm.GRU, {"input_size": 2, "hidden_size": 4, "zoneout": 0.1}),
    "RNN": Case(xlstm.RNN, {"input_size": 2, "hidden_size": 4, "bidirectional": True}),
    "sLSTM": Case(xlstm.sLSTM, {"input_size": 2, "hidden_size": 4, "num_heads": 2}),
    "mLSTM": Case(xlstm.mLSTM, {"input_size": 2, "hidden_size": 4, "num_layers": 2, "num_heads": 2}),
    "mLSTMBlock": Case(xlstm.mLSTMBlock, {"size": 4, "num_heads": 2}),
    "sLSTMBlock": Case(xlstm.sLSTMBlock, {"size": 4, "num_heads": 2, "num_blocks": 3, "index": 1}),
    "xLSTMStack": Case(
        xlstm.xLSTMStack, {"size": 4, "num_blocks": 2, "slstm_at": [1], "num_heads": 2}, who=f"xLSTMStack|{BLOCK}"
    ),
    "xLSTMLarge": Case(
        xlstm.xLSTMLarge,
        {"size": 4, "num_blocks": 2, "num_heads": 2},
        words={"size": "size"},  # from which others follow, such as qk_size
    ),
    "SequenceModel": Case(SequenceModel, {"recurrent": xlstm.LSTM(2, 4), "output_size": 3}),
    "SequenceModel last": Case(SequenceModel, {"recurrent": xlstm.GRU(2, 4), "output_size": 3, "last": True}),
    "xLSTMLanguageModel": Case(
        xlstm.xLSTMLanguageModel,
        {"backbone": STACK, "vocab_size": 7},
        words={"backbone": r"\bbackbone\b", "tied": "tied"},
    ),
    "Linear": Case(Linear, {"input_size": 3, "output_size": 2}),
    "HeadwiseLinear": Case(HeadwiseLinear, {"size": 4, "num_heads": 2}),
    "LayerNorm": Case(LayerNorm, {"size": 4}),
    "RMSNorm": Case(RMSNorm, {"size": 4}),
    "MultiHeadNorm": Case(MultiHeadNorm, {"size": 4, "num_heads": 2}),
    "CausalConv": Case(CausalConv, {"size": 4, "kernel_size": 2}),
    "Embedding": Case(Embedding, {"vocab_size": 5, "size": 4}),
    "GatedFeedForward": Case(GatedFeedForward, {"size": 4, "hidden_size": 6}),
    "ResidualFeedForward": Case(ResidualFeedForward, {"input_size": 4, "hidden_size": 6, "output_size": 3}),
    "TiRex": Case(TiRex, {"size": 4, "num_blocks": 1, "num_heads": 2, **SMALL}),
    "TiRex2": Case(TiRex2, {"size": 4, "recipe": [("mlstm", 1, 2), ("slstm", 2, 1)], **SMALL, "horizon": 4}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_made_or_refused(name):
    case = LAYERS[name]
    attack(name, case._replace(after=layer, who=case.who or f"{name.split()[0]}|initializer|activations"), examples(40))


def test_what_is_found_by_hand():
    """The sets of the issue, one by one."""
    for recurrent in (None, xlstm.LSTM, "LSTM", 3):
        with pytest.raises(TypeError, match=r"SequenceModel: recurrent is .*, expected an xLSTMStack"):
            SequenceModel(recurrent, 2)
    for output_size in (-1, float("nan"), "3", True, 10**300):
        with pytest.raises((ValueError, TypeError), match=r"SequenceModel: output_size is .*, expected"):
            SequenceModel(xlstm.LSTM(4, 4), output_size)
    for bad in (None, 0, "no", 1):
        with pytest.raises(TypeError, match=r"LSTM: peepholes is .*, expected True or False"):
            xlstm.LSTM(2, 4, peepholes=bad)
    for kind, options in (
        (xlstm.sLSTMBlock, {"ffn_activation": "x"}),
        (xlstm.sLSTMBlock, {"index": 3}),
        (xlstm.sLSTMBlock, {"conv_kernel_size": {}}),
        (xlstm.xLSTMStack, {"chunk_size": 0}),
        (xlstm.xLSTMStack, {"slstm_at": "x"}),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"{kind.__name__}: {next(iter(options))} is"):
            kind(4, 2, **options)
    with pytest.raises(TypeError, match=r"LSTM: proj_size is \{\}, expected a whole number"):
        xlstm.LSTM(2, 4, proj_size={})
    with pytest.raises(ValueError, match="LSTM: hidden_size is a whole number of 997 bits, expected at most"):
        xlstm.LSTM(2, 10**300)
    assert xlstm.xLSTMStack(4, 2**16).num_blocks == 2**16  # in no time: blocks are made when they are needed


def test_numpy_numbers_are_taken_as_plain_ones():
    given = xlstm.LSTM(
        np.int64(2), np.int32(4), np.uint8(2), bias=np.True_, dropout=np.float64(0.5), clip=np.float32(2)
    )
    plain_one = xlstm.LSTM(2, 4, 2, dropout=0.5, clip=2.0)
    assert given == plain_one
    assert hash(given) == hash(plain_one)
    assert json.dumps(dataclasses.asdict(given)) == json.dumps(dataclasses.asdict(plain_one))
    for dtype in (np.float64, np.dtype("float64"), "float64"):
        assert xlstm.backend("numpy", dtype=dtype) == xlstm.backend("numpy", dtype="float64")
        assert given.init(0, "numpy", dtype)["0.b"].dtype == np.float64


# Functions that are called


def arrays(shape: tuple[int, ...]) -> list[Any]:
    """Arrays of a shape, and what is not quite one."""
    ones = np.full(shape, 0.5, "float32")
    kinds = ("float64", "float16", "longdouble", "int64", "bool", "complex64", "object", "U3", ">f4", "datetime64[s]")
    return [
        *(ones.astype("int64").astype(kind) if kind.startswith("date") else ones.astype(kind) for kind in kinds),
        *(np.full((*shape[:k], 0, *shape[k + 1 :]), 0.5, "float32") for k in range(len(shape))),
        *(np.full((*shape[:k], *shape[k + 1 :]), 0.5, "float32") for k in range(len(shape))),
        np.asfortranarray(ones),
        np.full(tuple(2 * n for n in shape), 0.5, "float32")[tuple(slice(None, None, 2) for _ in shape)],
        np.broadcast_to(np.float32(0.5), shape),
        ones.tolist(),
        ones[None],
        np.float32(0.5),
    ]


def dicts(params: dict[str, Any]) -> list[Any]:
    """Parameters, and what is not quite that."""
    first, array = next(iter(params.items()))
    rest = {name: p for name, p in params.items() if name != first}
    odd = (None, 1.0, [1.0], "x", np.ndarray, array.astype("float64"), array[None], array[:0], array.tolist())
    return [
        list(params.items()),
        list(params.values()),
        rest,
        {**params, "more": array},
        {**params, 3: array},
        {**rest, 3: array},
        *({**params, first: value} for value in odd),
        *({name: p.astype(kind) for name, p in params.items()} for kind in ("float16", "longdouble", "object")),
    ]


def states(state: Any) -> list[Any]:
    """A state, and what is not quite one."""
    odd = (None, 1.0, "x", [1.0], np.zeros(3, "float32"), np.zeros((1, 2, 4)), {}, np.ndarray)
    return [
        list(state),
        state[:-1],
        (*state, state[-1]),
        (None,) * len(state),
        dict(enumerate(state)),
        iter(state),
        state[0],
        *((value, *state[1:]) for value in odd),
    ]


LENGTHS: list[Any] = [
    *([3, 1], (0, 3), [3.0, 1.0], [True, False], ["3", "1"], [4, 1], [-1, 3], [[3, 1]], [3], [3, 1, 2]),
    *([None, 1], [10**30, 1], {3, 1}, range(2), [[1], [1, 2]], [float("nan"), 1]),
    *(np.array([3, 1]).astype(kind) for kind in ("int8", "uint64", "int32", "float32", "object", "datetime64[s]")),
]
TREES = (
    xlstm.LSTM(2, 4, 2, dropout=0.2, zoneout=0.1),
    xlstm.GRU(2, 4, bidirectional=True),
    xlstm.RNN(2, 4, batch_first=True),
    xlstm.sLSTM(2, 4, num_heads=2),
    xlstm.mLSTM(2, 4, num_heads=2, dropout=0.1, num_layers=2),
    xlstm.mLSTMBlock(4, 2),
    xlstm.sLSTMBlock(4, 2, dropout=0.1),
    STACK,
    xlstm.xLSTMLarge(4, 1, 2),
    SequenceModel(xlstm.LSTM(2, 4), 3),
    SequenceModel(xlstm.GRU(2, 4, bidirectional=True), 3, last=True),
    SequenceModel(STACK, 3),
    TiRex(4, 1, 2, **SMALL),
    TiRex2(4, [("mlstm", 1, 2), ("slstm", 2, 1)], **SMALL, output_ff_size=4, horizon=4),
    xlstm.xLSTMLanguageModel(STACK, 7),
    xlstm.xLSTMLanguageModel(xlstm.LSTM(4, 4), 7, tied=True, batch_first=False, embedding_dropout=0.1),
    Linear(4, 2),
    GatedFeedForward(4, 6),
    MultiHeadNorm(4, num_heads=2),
)
WORDS = {
    "params": r"param|\d\.|\.W|\bW\b|\bWx\b|\bw\b|\bb\b|arrays|skip|dtype|shape",
    "x": r"\bx\b|\bstate\b",
    "tokens": r"\btokens\b|the context|\bstate\b",
    "state": r"\bstate\b",
    "dstate": r"\bdstate\b",
    "dtype": r"\bdtype\b|float16|bfloat16",
    "backend": r"\bbackend\b",
    "dlogits": r"\bdlogits\b",
    "saved": r"\bsaved\b|saves nothing",
    "prompt": r"\bprompt\b",
}


def call_cases(made: Any) -> dict[str, Case]:
    """The calls that a layer or a model has, by name."""
    found = {}
    inner = getattr(made, "recurrent", getattr(made, "backbone", made))
    who = f"{type(made).__name__}|{type(inner).__name__}|Linear|backend|asarray|generate"
    for name, (function, sound, after) in calls(made).items():
        more: dict[str, list[Any]] = {"lengths": LENGTHS}
        for argument, value in sound.items():
            if argument == "params":
                more[argument] = dicts(value)
            elif argument in ("state", "dstate") and value is not None:
                more[argument] = states(value)
            elif isinstance(value, np.ndarray):
                more[argument] = arrays(value.shape)
        found[name] = Case(function, sound, after, who, WORDS, more=more, long="max_tokens")
    return found


@pytest.mark.parametrize("k", range(len(TREES)))
def test_calls_work_or_are_refused(k):
    for name, case in call_cases(TREES[k]).items():
        attack(f"{TREES[k]} {name}", case, examples(12))


# Everything else


def steps(found: Any, arguments: dict[str, Any]) -> None:
    """A schedule gives finite rates, an optimiser finite parameters."""
    if not isinstance(found, optimizers.Optimizer):
        assert all(0 <= found(step) < 1e33 for step in (0, 1, 10, 10**6))
        return
    params = {"a": np.full((2, 3), 0.5, "float32"), "b": np.full(3, -0.5, "float32")}
    state = found.init(params)
    for _ in range(2):
        params, state = found.update(params, params, state)
    big = any(isinstance(v, float | Fraction) and v > 100 for v in arguments.values())
    assert big or all(np.all(np.isfinite(p)) for p in params.values())


def epoch(found: Any, arguments: dict[str, Any]) -> None:
    """The batches of some data, twice."""
    assert len(list(found.batches())) == len(list(found.batches(np.random.default_rng(0)))) == len(found)


def forecast(found: Settings, arguments: dict[str, Any]) -> None:
    """A forecaster of these settings is made."""
    json.dumps(dataclasses.asdict(found))
    assert Settings(**json.loads(json.dumps(dataclasses.asdict(found)))) == found
    if found.precision is None:
        assert Forecaster(found, "numpy").settings == found


def in_use(found: Any, arguments: dict[str, Any]) -> None:
    with found:
        pass


def right(x: Any) -> tuple[Any, Any]:
    return x * x, x


def right_bwd(saved: Any, d: Any) -> tuple[Any]:
    return (2 * saved * d,)


class Reached(Exception):  # noqa: N818 (no error: the arguments are taken)
    """The model was asked to run, so that all arguments are checked."""


class Model:
    """Runs nothing."""

    def forward(self, *arguments: Any, **more: Any) -> Any:
        raise Reached

    def backward(self, *arguments: Any) -> Any:
        raise Reached


def reaches(function: Callable[..., Any]) -> Callable[..., Any]:
    """The call, which ends well where the model is asked to run, or where a gradient is not one."""

    def call(**arguments: Any) -> Any:
        try:
            return function(**arguments)
        except (Reached, GradientError):
            return None

    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return call


SERIES = np.sin(np.arange(60.0))
X, ROW = np.full((6, 3, 2), 0.5), np.full((6, 1), 0.25)
P = {"a": np.full((2, 3), 0.5, "float32"), "b": np.full(3, -0.5, "float32")}
ADAM = optimizers.adam(0.1)
LABELS = np.array([0, 1, 2])
LOSS = {"y": np.full((3, 2), 0.5), "target": np.full((3, 2), 0.25), "mask": None}
LOSS_MORE = {"y": arrays((3, 2)), "target": arrays((3, 2)), "mask": arrays((3, 2))}
DATA_MORE = {"x": arrays((6, 3, 2)), "target": arrays((6, 1)), "mask": arrays((6, 1))}


def finite_loss(found: Any, arguments: dict[str, Any]) -> None:
    assert all(np.all(np.isfinite(part)) for part in found)


def fitted() -> Forecaster:
    return Forecaster(Settings(window=4, hidden_size=3, epochs=1), "numpy").fit(SERIES)


ONE = TiRex(4, 1, 2, **SMALL)
TWO = TiRex2(4, [("mlstm", 1, 2), ("slstm", 2, 1)], **SMALL, output_ff_size=4, horizon=100)
VALUES = [
    SERIES.tolist(),
    [SERIES, SERIES[:5]],
    [[None, 1.0], range(3)],
    *arrays((9,)),
    *arrays((2, 9)),
    *arrays((2, 2, 9)),
]


def forecast_made(found: Any, arguments: dict[str, Any]) -> None:
    """A forecast has numbers for the steps that were asked for."""
    parts = found.quantiles if isinstance(found.quantiles, list) else [found.quantiles]
    for part in parts:
        assert part.shape[-2:] == (arguments["horizon"], len(found.levels))
        assert np.all(np.isfinite(part))


def numbers_of(*arrays: Any) -> None:
    """Arrays are of finite numbers."""
    assert all(np.all(np.isfinite(a)) for a in arrays)


def streamed(params, series, renew=None, values=0.5, horizon=3, quantiles=None):
    stream = ONE.stream(params, series, renew=renew)
    stream.forecast(2)
    stream.push(values)
    numbers_of(stream.forecast(horizon, quantiles=quantiles).quantiles)


def zero_shot(model: Any) -> Any:
    return ZeroShotForecaster(model=model, params=model.init(0, "numpy"))


def zero_shot_forecast(
    horizon=None, quantiles=None, batch_size=512, rollout=None, resample=None, sign_flip=None, targets=None, model=ONE
):
    options = {name: value for name, value in locals().items() if name != "model"}
    return zero_shot(ONE).set_params(**options, model=model).predict(SERIES)


OTHERS: dict[str, Case] = {
    "TiRex": Case(
        ONE.forecast,
        {"params": ONE.init(0, "numpy"), "series": SERIES, "horizon": 3},
        forecast_made,
        words={**WORDS, "series": "series"},
        more={"params": dicts(ONE.init(0, "numpy")), "series": VALUES, "resample": ["frequency"]},
        long="horizon",
    ),
    "TiRex2": Case(
        TWO.forecast,
        {"params": TWO.init(0, "numpy"), "series": SERIES, "horizon": 3, "future": None, "past": None},
        forecast_made,
        words={**WORDS, "series": "series"},
        more={
            "params": dicts(TWO.init(0, "numpy")),
            "series": VALUES,
            "past": [SERIES, [SERIES, None], *arrays((2, 60))],
            "future": [np.ones(63), [SERIES, None], *arrays((2, 63))],
        },
        long="horizon",
    ),
    "stream": Case(
        streamed,
        {"params": ONE.init(0, "numpy"), "series": SERIES},
        who="TiRex",
        words={**WORDS, "series": "series|values", "values": "values|series"},
        more={"params": dicts(ONE.init(0, "numpy")), "series": VALUES, "values": [1.0, [1.0, None], *arrays((3,))]},
        long="horizon",
    ),
    "embed": Case(
        TWO.embed,
        {"params": TWO.init(0, "numpy"), "series": SERIES},
        lambda found, arguments: numbers_of(found),
        who="TiRex2",
        words={**WORDS, "series": "series"},
        more={"params": dicts(TWO.init(0, "numpy")), "series": VALUES},
    ),
    "fine_tune": Case(
        ONE.fine_tune,
        {"params": ONE.init(0, "numpy"), "series": SERIES, "epochs": 1, "stride": 20, "rank": 1},
        lambda found, arguments: numbers_of(*found.params.values()),
        who=r"\w+",
        words={**WORDS, "series": "series", "learning_rate": r"lr|learning_rate", "options": r"\w"},
        only=("params", "series", "weights", "horizon", "rank", "epochs", "batch_size", "stride", "seed"),
        more={"params": dicts(ONE.init(0, "numpy")), "series": VALUES, "weights": ["all", "head", "adapters"]},
        long="epochs",
    ),
    "PatchWindows": Case(
        PatchWindows, {"model": ONE, "series": SERIES}, epoch, more={"series": VALUES, "since": [[3], (0,), [9]]}
    ),
    "TiRexFeatures": Case(
        TiRexFeatures(model=ONE, params=ONE.init(0, "numpy")).fit_transform,
        {"X": np.ones((2, 9))},
        lambda found, arguments: numbers_of(found),
        words={"X": "X|series"},
        only=("X",),
        more={"X": VALUES},
    ),
    "LowRank": Case(
        training.LowRank,
        {"model": xlstm.LSTM(2, 4), "params": xlstm.LSTM(2, 4).init(0, "numpy"), "rank": 1, "names": ["*"]},
        lambda found, arguments: numbers_of(*found.merged(found.init()).values()),
        who="LowRank|LSTM|sLSTM|GRU|xLSTMStack|mLSTMBlock|SequenceModel|TiRex",
        words={"params": "param|0", "model": "model|param", "names": "names"},
        more={"params": dicts(xlstm.LSTM(2, 4).init(0, "numpy")), "names": [["*.Wh"], ["no"]]},
    ),
    "ZeroShotForecaster": Case(
        zero_shot(TWO).predict_quantiles,
        {"values": SERIES, "steps": 3},
        who="Forecaster|ZeroShotForecaster|TiRex2",
        words={"values": "series|values|value"},
        only=("values", "steps"),
        more={"values": VALUES},
        long="steps",
    ),
    "ZeroShotForecaster made": Case(
        zero_shot_forecast,
        {"horizon": 3},
        who=r"Forecaster|ZeroShotForecaster|TiRex|backend|asarray",
        words={**WORDS, "model": "model|param", "params": "param"},
        long="horizon",
    ),
    "sgd": Case(optimizers.sgd, {"lr": 0.1, "momentum": 0.9}, steps),
    "rmsprop": Case(optimizers.rmsprop, {"lr": 0.1}, steps),
    "adam": Case(optimizers.adam, {"lr": 0.1}, steps),
    "adamw": Case(optimizers.adamw, {"lr": optimizers.cosine(0.1, 10)}, steps),
    "constant": Case(optimizers.constant, {"lr": 0.1}, steps),
    "step_decay": Case(optimizers.step_decay, {"lr": 0.1, "every": 3}, steps),
    "cosine": Case(optimizers.cosine, {"lr": 0.1, "steps": 5}, steps),
    "warmup": Case(optimizers.warmup, {"steps": 5, "then": optimizers.constant(0.1)}, who="warmup"),
    "adam init": Case(ADAM.init, {"params": P}, who="adam", words={"params": r"\w"}, more={"params": dicts(P)}),
    "adam update": Case(
        ADAM.update,
        {"params": P, "grads": P, "state": ADAM.init(P)},
        who="adam",
        words={**WORDS, "params": r"\w", "grads": r"grad", "state": r"state|moment"},
        more={"params": dicts(P), "grads": dicts(P)},
    ),
    "global_norm": Case(optimizers.global_norm, {"grads": P}, words={"grads": r"\w"}, more={"grads": dicts(P)}),
    "clip_global_norm": Case(
        optimizers.clip_global_norm,
        {"grads": P, "limit": 1.0},
        only=("grads", "limit"),
        words={"grads": r"\w"},
        who="(clip_)?global_norm",
    ),
    "clip_value": Case(
        optimizers.clip_value, {"grads": P, "limit": 1.0}, words={"grads": r"\w"}, more={"grads": dicts(P)}
    ),
    "mse": Case(losses.mse, LOSS, finite_loss, more=LOSS_MORE),
    "mae": Case(losses.mae, LOSS, finite_loss, more=LOSS_MORE),
    "huber": Case(losses.huber, {**LOSS, "delta": 1.0}, finite_loss, more=LOSS_MORE),
    "pinball": Case(
        losses.pinball,
        {"y": np.full((3, 2), 0.5), "target": np.full(3, 0.25), "mask": None, "quantiles": (0.1, 0.9)},
        finite_loss,
        more={"y": arrays((3, 2)), "target": arrays((3,)), "mask": arrays((3,))},
    ),
    "cross_entropy": Case(
        losses.cross_entropy,
        {"logits": np.full((3, 4), 0.5), "labels": LABELS, "mask": None},
        more={"logits": arrays((3, 4)), "labels": [*arrays((3,)), LABELS.tolist(), LABELS.astype("uint8")]},
    ),
    "Windows": Case(
        data.Windows, {"x": X, "target": ROW, "mask": None, "batch_size": 4, "every_step": False}, epoch, more=DATA_MORE
    ),
    "Sequences": Case(
        data.Sequences,
        {"sequences": X, "target": ROW, "batch_size": 4, "bucket": 2},
        epoch,
        more={
            "sequences": arrays((6, 3, 2)),
            "target": arrays((6, 1)),
            "mask": arrays((6, 1)),
            "lengths": arrays((6,)),
        },
    ),
    "SeriesWindows": Case(
        data.SeriesWindows, {"series": X[:, 0], "window": 3, "horizon": 2}, epoch, more={"series": arrays((6, 2))}
    ),
    "Prefetch": Case(data.Prefetch, {"data": data.Windows(X, ROW), "ahead": 2}, epoch, long="ahead"),
    "Streams of tokens": Case(
        data.Streams.of_tokens,
        {"tokens": np.arange(9), "batch_size": 2, "length": 2},
        epoch,
        who="Streams",
        words={"tokens": "tokens|rows"},
        more={"tokens": arrays((9,))},
    ),
    "Streams": Case(
        data.Streams,
        {"x": X[:, 0], "target": ROW, "batch_size": 2, "length": 2},
        epoch,
        more={"x": arrays((6, 2)), "target": arrays((6, 1))},
    ),
    "Scaler": Case(data.Scaler, {"mean": 0.5, "std": 2.0}, plain),
    "Scaler fit": Case(
        data.Scaler.fit,
        {"values": SERIES, "center": True},
        plain,
        "Scaler",
        {"values": "values|training part|mean"},
        more={"values": arrays((5,))},
    ),
    "split": Case(data.split, {"length": 100, "validation": 0.2, "test": 0.2}, words={"length": "length|rows"}),
    "windows": Case(
        data.windows,
        {"values": SERIES, "window": 4, "horizon": 2},
        words={"values": "values|series"},
        more={"values": arrays((5,))},
    ),
    "carry_forward": Case(data.carry_forward, {"values": SERIES}, more={"values": arrays((5,))}),
    "Settings": Case(Settings, {}, forecast, "Forecaster"),
    "Forecaster": Case(Forecaster, {"backend": "numpy"}, words=WORDS, who="Forecaster|backend"),
    "predict": Case(
        fitted().predict,
        {"values": SERIES},
        long="steps",
        who="Forecaster",
        words={"values": "series|values|value"},
        only=("values", "steps"),
        more={"steps": [3, np.int64(2)], "values": [SERIES.tolist(), [None, 1.0], *arrays((9,))]},
    ),
    "Mixed": Case(precision.Mixed, {}, plain),
    "use": Case(xlstm.cuda.use, {}, in_use),
    "backend": Case(xlstm.backend, {"name": "numpy"}, words=WORDS),
    "gradcheck": Case(
        reaches(xlstm.gradcheck),
        {"forward": right, "backward": right_bwd, "inputs": (np.array([0.5, -0.5]),)},
        who=r"\S+",  # an error of a function that is no gradient's is its own
        words={"forward": r"\w", "backward": r"\w", "inputs": "input"},
        only=("forward", "backward", "inputs", "seed"),
    ),
    "train": Case(
        reaches(loop.train),
        {"model": Model(), "params": P, "data": data.Windows(X, ROW), "optimizer": ADAM, "epochs": 1},
        who=r"\w+",
        words={"params": r"\w", "model": "model|parameter", "precision": "precision|float16"},
        more={"params": dicts(P)},
    ),
    "evaluate": Case(
        reaches(loop.evaluate),
        {"model": Model(), "params": P, "data": data.Windows(X, ROW)},
        who=r"\w+",
        words={**WORDS, "model": "model|parameter"},
    ),
    "Sampler": Case(Sampler, {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "seed": 0}, who="generate"),
    "save": Case(
        model_files.save,
        {"path": "/dev/null/none", "model": xlstm.LSTM(2, 4), "params": {}},
        only=("model", "params"),
        who=r"save|\w*(LSTM|RNN|GRU|Model)\w*",
        words={"params": "param", "model": "model|parameter"},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_works_or_is_refused(name):
    case = OTHERS[name]
    attack(name, case._replace(who=case.who or re.escape(name)), examples(30))
