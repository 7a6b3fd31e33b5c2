"""Sets of arguments: one to three of a sound set are replaced by hostile values.

Each set is refused with ValueError or TypeError that names the class or function and the argument,
or everything works that follows from it: parameters, forward, backward, step, finite results of the
right shape, files.
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
from tests.attacks.rounds import all_finite, calls, finite, follow, small
from tests.registry import EVERY, PATCHES, numbered
from xlstm import losses, models, optim, training
from xlstm.arrays.checks import shown
from xlstm.arrays.convert import BackendError
from xlstm.estimators import Forecaster, Settings
from xlstm.layers.linear import Linear
from xlstm.models import SequenceModel, TiRex, TiRex2

MESSAGE = 1000  # characters
pytestmark = pytest.mark.usefixtures("interpreted")


def nothing(*_):
    """Takes anything, and is what no argument expects."""


NAN = float("nan")
STACK = xlstm.xLSTMStack(4, 2, [1], 2)
HOSTILE = [
    *(None, True, np.True_, Ellipsis, 0, 1, 3, 8, -1, 2**28, 2**63, 10**300, -(10**300), 10**5000),
    *(
        0.0,
        -0.0,
        0.5,
        1.5,
        -0.5,
        5e-324,
        1e30,
        1e300,
        NAN,
        float("inf"),
        1j,
        Fraction(10**400, 3),
        Decimal("0.5"),
    ),
    *(
        np.int64(2),
        np.int8(-3),
        np.float16(0.1),
        np.float32("nan"),
        np.longdouble(0.5),
        np.complex64(1),
    ),
    *(
        np.str_("tanh"),
        np.datetime64("2020"),
        "",
        "3",
        "x",
        "a" * 100_000,
        b"x",
        "elu(1e300)",
        "hard_sigmoid(1e999)",
    ),
    *(
        np.float32,
        np.dtype("int64"),
        np.dtype("V8"),
        list,
        object,
        xlstm.LSTM,
        len,
        nothing,
        object(),
        iter([1, 2]),
    ),
    *(
        [],
        [0.1, 0.2],
        ["tanh"],
        [None, None],
        [10**400],
        [[1], [2, 3]],
        (),
        (0.9, 0.9),
        ("sigmoid", "tanh", "tanh"),
    ),
    *(
        np.array(1),
        np.array([0.5, 0.5]),
        np.eye(2),
        np.array([]),
        np.array("x"),
        np.ma.masked_array([1.0, 2.0], [1, 0]),
    ),
    *({}, {"a": 1}, {1}, range(10**12), np.random.default_rng(0), xlstm.backend("numpy")),
    *(
        xlstm.LSTM(4, 4),
        xlstm.GRU(4, 4, bidirectional=True),
        xlstm.sLSTM(4, 4, batch_first=True),
        Linear(4, 4),
        STACK,
    ),
]
# Values that are sound for some argument.
MILD = [
    *(
        True,
        False,
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
    *(
        [],
        [0],
        [1],
        (0.1, 0.1),
        range(1),
        np.array([1]),
        "tanh",
        "gelu",
        "silu",
        "uniform",
        "glorot",
        "sigmoid",
    ),
    *(
        "exponential",
        "zeros",
        "float32",
        "float64",
        np.float64,
        np.dtype("float32"),
        "numpy",
        "relu",
        "powerlaw",
    ),
]


def taken(result, arguments):
    """Nothing more is to work."""


class Case(NamedTuple):
    """A call with sound arguments, the way in which its errors name things, and what is to work
    afterwards.
    """

    call: Callable[..., Any]
    sound: dict[str, Any]
    after: Callable[[Any, dict[str, Any]], None] = taken
    who: str = ""  # a pattern; by default the name of the call
    words: str = "(?!)"  # a pattern by which errors may name an argument, beside its name
    only: tuple[str, ...] = ()  # the arguments that are replaced; all by default
    more: Mapping[str, list[Any]] = MappingProxyType({})  # further values of an argument
    long: str = ""  # an argument whose large values are sound, but take for ever


def likely(usual):
    """Values that are sound for an argument with such a default, for the most part."""
    for types in ((bool, np.bool_), Integral, (Real, type(None)), str):
        if isinstance(usual, types):
            return [value for value in MILD if isinstance(value, types)]
    return MILD


def attack(name, case, count):
    """Try so many sets; the first that is neither refused well nor works raises, with the values
    that it has.
    """
    parameters = inspect.signature(case.call).parameters
    for k in range(count):
        rng = random.Random(f"{name} {k}")
        names = case.only or tuple(parameters)
        chosen = rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2, 3))))
        arguments = dict(case.sound)
        for one in chosen:
            usual = likely(case.sound.get(one, parameters[one].default))
            arguments[one] = rng.choice(
                rng.choice([case.more.get(one) or usual, usual, MILD, HOSTILE])
            )
        if isinstance(arguments.get(case.long), Integral) and arguments[case.long] > 100:
            continue
        told = f"set {k} of {name}: " + ", ".join(
            f"{one}={shown(arguments[one])}" for one in chosen
        )
        try:
            result = case.call(**arguments)
        except (ValueError, TypeError) as error:
            text = str(error)
            assert re.match(rf"({case.who or re.escape(name.split()[0])})\b", text), (
                f"{told}\nnames nobody: {text[:300]}"
            )
            known = "|".join([*(rf"\b{re.escape(one)}\b" for one in chosen), case.words])
            assert re.search(known, text), f"{told}\nnames no argument: {text[:300]}"
            assert len(text) <= MESSAGE, f"{told}\nis long: {text[:300]}"
            continue
        except BackendError:
            named = str(arguments.get("backend", arguments.get("name")))
            assert named in ("auto", "cupy", "torch") or arguments.get("graph"), told
            continue
        except BaseException as error:
            raise AssertionError(f"{told}\n{type(error).__name__}: {str(error)[:300]}") from error
        try:
            case.after(result, arguments)
        except BaseException as error:
            raise AssertionError(
                f"{told}\nwas accepted, then {type(error).__name__}: {str(error)[:500]}"
            ) from error


# Objects that are made


def plain(made, arguments):
    """A frozen description: equal, hashed and short."""
    again = type(made)(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    assert again == made
    assert hash(again) == hash(made)
    assert len(repr(made)) < 2000


def layer(made, arguments):
    """A layer or a model: also its passes, where its sizes are small, and its file."""
    plain(made, arguments)
    if small(made):
        follow(made)


@pytest.mark.parametrize("sound", **numbered(EVERY))
def test_layers_are_made_or_refused(sound):
    kind = type(sound)
    inner = "initializer|activations|mLSTMBlock|sLSTMBlock|GatedFeedForward"
    arguments = {field.name: getattr(sound, field.name) for field in dataclasses.fields(sound)}
    # others follow from a size
    case = Case(kind, arguments, layer, who=f"{kind.__name__}|{inner}", words="size|tied")
    attack(f"{kind.__name__} {sound}", case, examples(5))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: SequenceModel(xlstm.LSTM, 2), "SequenceModel: recurrent is"),
        (lambda: SequenceModel(xlstm.LSTM(4, 4), -1), "SequenceModel: output_size is"),
        (lambda: xlstm.LSTM(2, 4, peepholes=0), "LSTM: peepholes is"),
        (lambda: xlstm.sLSTMBlock(4, 2, conv_kernel_size={}), "sLSTMBlock: conv_kernel_size is"),
        (lambda: xlstm.xLSTMStack(4, 2, slstm_at="x"), "xLSTMStack: slstm_at is"),
        (lambda: xlstm.LSTM(2, 10**300), "LSTM: hidden_size is a whole number of 997 bits"),
        (lambda: TWO.forward(TWO_PARAMS, 3, groups=[0]), "TiRex2: x is"),
        (lambda: training.evaluate(3, P, data.Windows(X, ROW)), "evaluate: model is"),
    ],
)
def test_refusals_found_by_hand(call, error):
    with pytest.raises((ValueError, TypeError), match=rf"{error}.*, expected"):
        call()


def test_dtypes_have_several_names():
    for dtype in (np.float64, np.dtype("float64"), "float64"):
        assert xlstm.backend("numpy", dtype=dtype) == xlstm.backend("numpy", dtype="float64")
        assert xlstm.LSTM(2, 4).init(0, "numpy", dtype)["0.b"].dtype == np.float64


# Functions that are called


def arrays(*shape):
    """Arrays of a shape, and what is not quite one."""
    ones = np.full(shape, 0.5, "float32")
    kinds = (
        "float64",
        "float16",
        "longdouble",
        "int64",
        "bool",
        "complex64",
        "object",
        "U3",
        ">f4",
    )
    twice = np.full(tuple(2 * n for n in shape), 0.5, "float32")
    return [
        *(ones.astype(kind) for kind in kinds),
        *(
            np.full((*shape[:k], *dims, *shape[k + 1 :]), 0.5)
            for k in range(len(shape))
            for dims in ((), (0,))
        ),
        *(
            np.asfortranarray(ones),
            twice[tuple(slice(None, None, 2) for _ in shape)],
            np.broadcast_to(ones[:1], shape),
        ),
        *(ones.astype("int64").astype("datetime64[s]"), ones.tolist(), ones[None], np.float32(0.5)),
    ]


def dicts(params):
    """Parameters, and what is not quite that."""
    first, array = next(iter(params.items()))
    rest = {name: p for name, p in params.items() if name != first}
    odd = (
        None,
        1.0,
        "x",
        np.ndarray,
        array.astype("float64"),
        array[None],
        array[:0],
        array.tolist(),
    )
    half = {name: p.astype("float16") for name, p in params.items()}
    others = [
        list(params.items()),
        rest,
        half,
        {**params, "more": array},
        {**params, 3: array},
        {**rest, 3: array},
    ]
    return [*others, *({**params, first: value} for value in odd)]


def states(state):
    """A state, and what is not quite one."""
    others = [
        list(state),
        state[:-1],
        (*state, state[-1]),
        (None,) * len(state),
        dict(enumerate(state)),
        iter(state),
    ]
    return [
        *others,
        state[0],
        *((odd, *state[1:]) for odd in (None, 1.0, "x", [1.0], np.zeros((1, 2, 4)), np.ndarray)),
    ]


LENGTHS = [
    *(
        [3, 1],
        (0, 3),
        [3.0, 1.0],
        [True, False],
        ["3", "1"],
        [4, 1],
        [-1, 3],
        [[3, 1]],
        [3],
        [3, 1, 2],
        [None, 1],
    ),
    *([10**30, 1], {3, 1}, range(2), [[1], [1, 2]], [NAN, 1]),
    *(
        np.array([3, 1]).astype(kind)
        for kind in ("int8", "uint64", "float32", "object", "datetime64[s]")
    ),
]
# How errors name what is in a dict of parameters, and what others follow from.
PARAMS = (
    r"param|\d\.|\.W|\b(W|Wx|w|b)\b|arrays|skip|dtype|shape|state|context|tokens|logits|float16|saves"
    r" nothing"
)


@pytest.mark.parametrize("model", **numbered(EVERY))
def test_calls_work_or_are_refused(model):
    inner = getattr(model, "recurrent", getattr(model, "backbone", model))
    who = f"{type(model).__name__}|{type(inner).__name__}|Linear|backend|asarray|generate"
    words = "|".join([PARAMS, *map(re.escape, model.init(0, "numpy"))])
    for name, (function, sound, after) in calls(model).items():
        more = {"lengths": LENGTHS}
        for argument, value in sound.items():
            if argument == "params":
                more[argument] = dicts(value)
            elif argument in ("state", "dstate") and value is not None:
                more[argument] = states(value)
            elif isinstance(value, np.ndarray):
                more[argument] = arrays(*value.shape)
        case = Case(function, sound, after, who, words, more=more, long="max_tokens")
        attack(f"{model} {name}", case, examples(6))


# Everything else


def steps(result, arguments):
    """A schedule gives finite rates, an optimiser finite parameters."""
    if not hasattr(result, "update"):
        assert all(0 <= result(step) < 1e33 for step in (0, 1, 10, 10**6))
        return
    params = P
    state = result.init(P)
    for _ in range(2):
        params, state = result.update(params, params, state)
    big = any(isinstance(v, float | Fraction) and v > 100 for v in arguments.values())
    assert big or finite(params)


def epoch(result, arguments):
    """The batches of some data, twice."""
    assert (
        len(list(result.batches()))
        == len(list(result.batches(np.random.default_rng(0))))
        == len(result)
    )


def settings(result, arguments):
    """A forecaster of these settings is made."""
    assert Settings(**json.loads(json.dumps(dataclasses.asdict(result)))) == result
    if result.precision is None:
        assert Forecaster(**vars(result)).settings == result


def forecast(result, arguments):
    """A forecast has numbers for the steps that were asked for."""
    for part in result.quantiles if isinstance(result.quantiles, list) else [result.quantiles]:
        assert part.shape[-2:] == (arguments["horizon"], len(result.levels))
        assert finite(part)


class Reached(Exception):  # noqa: N818 (no error: the arguments are taken)
    """The model was asked to run, so that all arguments are checked."""


class Model:
    """Runs nothing."""

    def forward(self, *arguments, **more):
        raise Reached

    def backward(self, *arguments):
        raise Reached


def reaches(function):
    """The call, which ends well where the model is asked to run."""

    def call(**arguments):
        try:
            return function(**arguments)
        except Reached:
            return None

    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return call


SERIES = np.sin(np.arange(60.0))
X = np.full((6, 3, 2), 0.5)
ROW = np.full((6, 1), 0.25)
P = {"a": np.full((2, 3), 0.5, "float32"), "b": np.full(3, -0.5, "float32")}
ADAM = optim.adam(0.1)
LSTM = xlstm.LSTM(2, 4)
ONE = TiRex(4, 1, 2, **PATCHES)
TWO = TiRex2(4, [("mlstm", 1, 2), ("slstm", 2, 1)], **PATCHES, output_ff_size=4, horizon=100)
ONE_PARAMS = ONE.init(0, "numpy")
TWO_PARAMS = TWO.init(0, "numpy")
LSTM_PARAMS = LSTM.init(0, "numpy")
VALUES = [
    SERIES.tolist(),
    [SERIES, SERIES[:5]],
    [[None, 1.0], range(3)],
    *arrays(9),
    *arrays(2, 9),
    *arrays(2, 2, 9),
]
# Sound values of arguments without a default, by their names, and other values of them.
SOUND = {
    **{
        "x": X,
        "sequences": X,
        "target": ROW,
        "y": ROW,
        "logits": ROW,
        "labels": np.zeros(6, int),
        "series": X[:, 0],
    },
    **{
        "batch_size": 2,
        "length": 2,
        "window": 3,
        "lr": 0.1,
        "steps": 5,
        "every": 2,
        "then": optim.constant(0.1),
    },
    **{"grads": P, "limit": 1.0, "patience": 2, "decay": 0.5},
    **{"model": Model(), "params": P, "data": data.Windows(X, ROW), "optimizer": ADAM},
}
MORE = {
    **{
        "x": arrays(6, 3, 2),
        "sequences": arrays(6, 3, 2),
        "grads": dicts(P),
        "params": dicts(P),
        "labels": arrays(6),
    },
    **dict.fromkeys(("target", "mask", "y", "logits"), arrays(6, 1)),
}


PATHS = {"checkpoints", "resume"}


def cases(module, names, after=taken, sound=None, **options):
    """A case of each of some functions or classes of a module, with sound values of what has no
    default.
    """
    found = {}
    for name in names.split():
        call = reaches(getattr(module, name))
        parameters = inspect.signature(call).parameters
        given = {
            one: SOUND[one] for one, about in parameters.items() if about.default is about.empty
        }
        tried = tuple(one for one in parameters if one not in PATHS)
        found[name] = Case(
            call, given | (sound or {}), after, **{"more": MORE, "only": tried, **options}
        )
    return found


TRAINING = {"who": r"\w+", "words": rf"\ba\b|norm|{PARAMS}"}
FORECAST = {"who": "TiRex2?", "words": f"series|{PARAMS}", "long": "horizon"}
OTHERS = {
    **cases(losses, "mse mae huber cross_entropy binary_cross_entropy", all_finite),
    **cases(losses, "pinball", all_finite, {"target": ROW[:, 0], "quantiles": (0.1,)}),
    **cases(optim, "adamw rmsprop sgd constant cosine step_decay warmup", steps),
    **cases(optim, "global_norm clip_value clip_per_sequence", all_finite, words=r"\b[ab]\b"),
    **cases(training, "Clip EarlyStopping MovingAverage ReduceOnPlateau"),
    **cases(training, "evaluate", **TRAINING),
    **cases(training, "train", sound={"epochs": 1}, **TRAINING),
    **cases(data, "Windows Sequences SeriesWindows", epoch),
    **cases(data, "Streams", epoch, {"x": X[:, 0]}),
    "split": Case(data.split, {"length": 100}, words="rows"),
    "TiRex": Case(
        ONE.forecast,
        {"params": ONE_PARAMS, "series": SERIES, "horizon": 3},
        forecast,
        **FORECAST,
        more={"params": dicts(ONE_PARAMS), "series": VALUES, "resample": ["frequency"]},
    ),
    "TiRex2": Case(
        TWO.forecast,
        {"params": TWO_PARAMS, "series": SERIES, "horizon": 3, "future": None, "past": None},
        forecast,
        **FORECAST,
        more={
            "series": VALUES,
            "past": [SERIES, *arrays(2, 60)],
            "future": [np.ones(63), *arrays(2, 63)],
        },
    ),
    "fine_tune": Case(
        ONE.fine_tune,
        {"params": ONE_PARAMS, "series": SERIES, "epochs": 1, "stride": 20, "rank": 1},
        lambda result, arguments: all_finite(result.params, arguments),
        **{"who": r"\w+", "words": f"series|{PARAMS}", "long": "epochs"},
        only=(
            "params",
            "series",
            "weights",
            "horizon",
            "rank",
            "epochs",
            "batch_size",
            "stride",
            "seed",
        ),
        more={"series": VALUES, "weights": ["all", "head", "adapters"]},
    ),
    "LowRank": Case(
        training.LowRank,
        {"model": LSTM, "params": LSTM_PARAMS, "rank": 1, "names": ["*"]},
        lambda result, arguments: all_finite(result.merged(result.init()), arguments),
        **{"who": "LowRank|LSTM|sLSTM|GRU|xLSTMStack|Linear", "words": "param|0"},
        more={"params": dicts(LSTM_PARAMS), "names": [["*.Wh"], ["no"]]},
    ),
    "adam": Case(
        ADAM.update,
        {"params": P, "grads": P, "state": ADAM.init(P)},
        words=r"param|grad|state|moment|\ba\b",
        more={"params": dicts(P), "grads": dicts(P)},
    ),
    "Forecaster": Case(Settings, {}, settings),
    "Forecaster made": Case(
        Forecaster, {"backend": "numpy"}, who="Forecaster|backend", words="float16"
    ),
    "Mixed": Case(xlstm.precision.Mixed, {}, plain),
    "use": Case(xlstm.cuda.use, {}),
    "backend": Case(xlstm.backend, {"name": "numpy"}, words="float16"),
    "save": Case(
        models.save,
        {"path": "/dev/null/none", "model": LSTM, "params": {}},
        **{"only": ("model", "params"), "who": r"save|\w*(LSTM|RNN|GRU|Model)\w*", "words": PARAMS},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_works_or_is_refused(name):
    attack(name, OTHERS[name], examples(10))
