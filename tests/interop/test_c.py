"""Models as C: every entry of the table, compiled with sanitizers and without a warning, against
NumPy; own cells, int8, functions without math.h, estimators, and what is refused.

Each program is a part of one file with a `main`, so that a call of the compiler takes many.
"""

from __future__ import annotations

import importlib.resources
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

import xlstm
from tests.conftest import REQUIRED, make_backend
from tests.registry import EVERY, TABLE, input_of, largest, params_of, steps, through_time
from xlstm.cells.cell import Cell
from xlstm.estimators import (
    Forecaster,
    NotFittedError,
    SequenceClassifier,
    SequenceRegressor,
    TextModel,
)
from xlstm.interop.c import to_c

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.skipif(
        shutil.which("cc") is None and "cc" not in REQUIRED, reason="there is no C compiler"
    ),
]

T = 200
TOLERANCE = 2e-6  # of the largest number
# A network is badly conditioned where NumPy's own steps in float32 are farther than that from those
# in float64. Both programs round differently there, so that either may be the closer one.
ROUNDING = 10
FLAGS = "-Wall -Wextra -Wconversion -pedantic -Werror -fsanitize=address,undefined"
# without optimization, which takes longer than all else with sanitizers
COMPILERS = {
    "cc": "cc -std=c99",
    "clang": "clang -std=c99",
    "g++": "g++ -x c++",
    "clang++": "clang++ -x c++",
}
HEAD = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void get(void *numbers, size_t size)
{
    if (fread(numbers, size, 1, stdin) != 1) {
        exit(2);
    }
}
"""
# The state is full of NaN first, which shows numbers that init leaves out.
RUN = """
#include "{name}.c"

static void run_{name}(void)
{{
    {name}_state state;
    memset(&state, 255, sizeof state);
    {name}_init(&state);
    for (int32_t t = 0; t < {turns}; t++) {{
        {kind} x[{inputs}];
        float y[{outputs}];
        get(x, sizeof x);
        {name}_{call};
        fwrite(y, sizeof y, 1, stdout);
    }}
}}
"""
TABLES = {f"table {k}": (TABLE[k::16], "cc", {}) for k in range(16)}
CASES = {
    **TABLES,
    "int8": (EVERY[::2], "cc", {"weights": "int8"}),
    "without libm": (EVERY[1::2], "cc", {"libm": False}),
    "g++": (EVERY[1::2], "g++", {"weights": "int8"}),
    "clang": (EVERY[::2], "clang", {"libm": False}),
    "clang++": (EVERY[::4], "clang++", {}),
}


def execute(folder, text, data=b"", compiler="cc"):
    """Compile a file with `main`, run it on standard input, and return its output."""
    (command, *options) = COMPILERS[compiler].split()
    if shutil.which(command) is None and command not in REQUIRED:
        pytest.skip(f"{command} is not installed")
    (folder / "main.c").write_text(HEAD + text)
    build = [command, *options, *FLAGS.split(), "-fno-sanitize-recover", "main.c", "-o", "main"]
    subprocess.run([*build, "-lm"], cwd=folder, check=True)
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}  # which not all containers allow
    done = subprocess.run(
        folder / "main", input=data, capture_output=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def run_all(folder, programs, compiler="cc"):
    """Return y of programs, which are in a folder, each by name with x and how many outputs."""
    text = ""
    numbers = []
    for name, (x, outputs) in programs.items():
        header = (folder / f"{name}.h").read_text()
        width = int(re.search(r"_INPUTS (\d+)", header)[1])
        steps = x.size // width
        whole = f"{name}_run" in header
        turns = 1 if whole else steps
        kind = "int32_t" if "const int32_t *x" in header else "float"
        text += RUN.format(
            name=name,
            turns=turns,
            kind=kind,
            inputs=x.size // turns,
            outputs=outputs // turns,
            call=f"run(&state, x, {steps}, y)" if whole else "step(&state, x, y)",
        )
        numbers.append(x.astype("i4" if kind == "int32_t" else "f4").tobytes())
    calls = "".join(f"    run_{name}();\n" for name in programs)
    main = f"\nint main(void)\n{{\n{calls}    return 0;\n}}\n"
    y = execute(folder, text + main, b"".join(numbers), compiler)
    sizes = [outputs for _, outputs in programs.values()]
    return np.split(np.frombuffer(y, "f4"), np.cumsum(sizes)[:-1])


def in_numpy(layer, params, x):
    """Return y of every step, or of the whole sequence where a layer goes in reverse."""
    if not steps(layer):
        options = {"train": False} if through_time(layer) else {}
        return layer.forward(params, x, **options)[0].reshape(-1)
    state = None
    rows = []
    for row in x[0] if getattr(layer, "batch_first", False) else x[:, 0]:
        y, state = layer.step(params, row[None], state)
        rows.append(y.reshape(-1))
    return np.concatenate(rows)


def rounded(params, program, name):
    """Return parameters as int8 has them, and what that changed."""
    changed = []
    for key, array in params.items():
        if f"int8_t {name}_{key.replace('.', '_')}[" in program.source:
            scale = largest_of_rows(array) / np.float32(127)
            whole = scale * np.rint(array / np.where(scale > 0, scale, 1))
            assert np.all(np.abs(whole - array) <= 0.5001 * scale)
            changed.append((array, whole))
            params = params | {key: whole}
    squares = [(np.sum((a - b) ** 2), np.sum(a**2)) for a, b in changed]
    above, below = np.sum(squares or [(0.0, 1.0)], axis=0)
    assert program.weight_error == pytest.approx(np.sqrt(above / below), rel=1e-5)
    assert program.source.count("static const int8_t") == len(changed)
    return params


def largest_of_rows(array):
    return np.max(np.abs(array), axis=-1, keepdims=True)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_numpy(case, tmp_path, rng):
    """After 200 steps; with int8, to NumPy with the weights that were rounded."""
    layers, compiler, options = CASES[case]
    be = make_backend("numpy", "float32")
    expected = {}
    programs = {}
    for k, layer in enumerate(layers):
        params = params_of(layer, be, rng)
        x = input_of(layer, be, rng, T, 1)
        name = f"m{k}"
        whole = {} if steps(layer) or not through_time(layer) else {"steps": T}
        both = {"name": name, **options, **whole}
        program = to_c(layer, params, tmp_path / f"{name}.c", **both)
        assert program == to_c(layer, params, **both)
        if "weights" in options:
            params = rounded(params, program, name)
        expected[name] = layer, params, x, in_numpy(layer, params, x)
        programs[name] = x, expected[name][-1].size
    found = run_all(tmp_path, programs, compiler)
    for y, (layer, params, x, numpy) in zip(found, expected.values(), strict=True):
        if not largest(y - numpy) <= TOLERANCE * largest(numpy):
            params = {key: array.astype("f8") for key, array in params.items()}
            exact = in_numpy(layer, params, x if x.dtype.kind == "i" else x.astype("f8"))
            own = largest(numpy - exact)
            assert largest(y - exact) <= max(TOLERANCE * largest(exact), ROUNDING * own), layer


class Nothing(NamedTuple):
    """Cells without a backward pass keep this."""


@dataclass(frozen=True)
class LeakyC(Cell):
    """A cell of two gates whose function is an argument."""

    function: str = "tanh"
    GATES = ("leak", "new")

    def gates(self, xp, zx, zh, h0):
        a = zx + zh
        leak = xp.exp(-xp.log1p(xp.exp(-a[0, ...])))  # (1)
        candidate = getattr(xp, self.function)(a[1, ...])  # (2)
        return candidate + leak * (h0 - candidate), Nothing()  # (3)

    def gates_bwd(self, xp, saved, dh):
        raise NotImplementedError


def test_cells_of_users(tmp_path, rng):
    """Their variables and the numbers of their lines are those of the C, or they are refused."""
    be = make_backend("numpy", "float32")
    layer = xlstm.register_cell(LeakyC)(2, 3, num_layers=2)
    params = params_of(layer, be, rng)
    program = to_c(layer, params, tmp_path / "leaky.c", name="leaky")
    for line in (
        "const float leak = expf(-log1pf(expf(-a))); /* test_c (1) */",
        "const float candidate = leaky_tanh(a2); /* test_c (2) */",
    ):
        assert line in program.source
    x = input_of(layer, be, rng, T, 1)
    numpy = in_numpy(layer, params, x)
    (y,) = run_all(tmp_path, {"leaky": (x, numpy.size)})
    assert largest(y - numpy) <= TOLERANCE * largest(numpy)
    sine = xlstm.register_cell(LeakyC, "LeakyC2")(2, 3, function="sin")
    with pytest.raises(ValueError, match="to_c: the formula uses sin, a function of arrays"):
        to_c(sine, sine.init(backend="numpy"))


@dataclass(frozen=True)
class OddC(LeakyC):
    """Its names are those of words, functions and members of a program in C."""

    STATES = ("h", "rows", "nullptr")
    REST = (0.0, 0.0, 0.0)

    def gates(self, xp, zx, zh, h0, rows, kept):
        a = zx + zh
        odd_max = xp.maximum(a[0, ...], a[1, ...])
        odd_0_b = -(-odd_max) - xp.tanh(odd_max)  # noqa: B002
        above = xp.max(a[0, ...], axis=0, keepdims=True) > 0
        rows = 0.5 * rows + xp.where(above & (a[0, ...] < a[1, ...]), odd_0_b, kept)
        return xp.tanh(rows), rows, xp.full_like(kept, 2.0), Nothing()


def test_odd_cells_of_users(tmp_path, rng):
    be = make_backend("numpy", "float32")
    layer = xlstm.register_cell(OddC)(2, 3, num_layers=2, bidirectional=True)
    params = params_of(layer, be, rng)
    x = input_of(layer, be, rng, T, 1)
    to_c(layer, params, tmp_path / "odd.c", name="odd", steps=T)
    numpy = in_numpy(layer, params, x)
    for compiler in filter(shutil.which, ("cc", "clang")):
        (y,) = run_all(tmp_path, {"odd": (x, numpy.size)}, compiler)
        assert largest(y - numpy) <= TOLERANCE * largest(numpy)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_tables_of_one_number_or_row(tmp_path, rng, weights):
    """Standardised columns have one deviation, and an embedding may have one symbol."""
    table = rng.permuted(np.linspace(-1, 1, 30)[:, None].repeat(2, 1), axis=0)
    regressor = SequenceRegressor(**SIZES).fit(table, table[:, 0])
    to_c(regressor, path=tmp_path / "table.c", name="table", weights=weights)
    (y,) = run_all(tmp_path, {"table": (table[0].astype("f4"), 2)})
    change = 1e-6 if weights == "float32" else 0.05
    assert abs(y[-1] - regressor.predict(table[:1])[0]) < change
    embedding = xlstm.Embedding(1, 3)
    params = embedding.init(backend="numpy")
    to_c(embedding, params, tmp_path / "row.c", name="row", weights=weights)
    (y,) = run_all(tmp_path, {"row": (np.zeros(1, "i4"), 3)})
    assert largest(y - params["W"][0]) <= 0.01 * largest(params["W"])


FUNCTIONS = ("exp", "tanh", "log", "log1p", "expm1", "sqrt", "abs")


def test_functions_without_libm(tmp_path):
    """Off by 2.5 units in the last place at most, for numbers of every exponent."""
    bits = np.arange(0, 2**32, 12289, dtype=np.uint64).astype("u4").view("f4")
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1754942e-38, 3.4e38, 88.72]
    x = np.concatenate([bits, np.linspace(-110, 110, 100001, dtype="f4"), np.array(special, "f4")])
    source = importlib.resources.files("xlstm.interop.c").joinpath("functions.c").read_text()
    source = source.replace("PREFIX_", "own_").replace("CAPITAL_OUTPUTS", "1")
    lines = "".join(f"        y[{k}] = own_{name}(x);\n" for k, name in enumerate(FUNCTIONS))
    main = f"""
#include <math.h>
#include <stdint.h>
int32_t own_largest(const float *y);
int32_t own_sample(const float *y, float temperature, uint32_t *random);
{source}
int main(void)
{{
    float y[{len(FUNCTIONS)}];
    for (int k = 0; k < {len(x)}; k++) {{
        float x;
        get(&x, sizeof x);
{lines}        y[0] = own_min(own_max(y[0], 0.0f), INFINITY);
        fwrite(y, sizeof y, 1, stdout);
    }}
    return 0;
}}
"""
    y = np.frombuffer(execute(tmp_path, main, x.tobytes()), "f4").reshape(len(x), -1)
    for name, found in zip(FUNCTIONS, y.T, strict=True):
        with np.errstate(all="ignore"):
            exact = getattr(np, name)(x.astype("f8"))
            nearest = exact.astype("f4")
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(nearest), name)
            finite = np.isfinite(nearest)
            np.testing.assert_array_equal(found[~finite], nearest[~finite], name)
            error = np.abs(found - exact)[finite] / np.spacing(np.abs(nearest[finite]))
        assert error.max() <= 2.5, name


SIZES = {"hidden_size": 8, "epochs": 1, "backend": "numpy"}


def test_estimators(tmp_path, rng):
    """With their scaling; a classifier has probabilities, after each step those so far."""
    X = rng.normal(7, 3, (30, 9, 2))
    names = np.array(["down", 'a "b" \\ \u00e9?'])[np.arange(30) % 2]
    texts = ["".join(row) for row in rng.choice([*"ab \u03bb"], (30, 9))]
    fitted = {
        "labels": SequenceClassifier(**SIZES).fit(X, names),
        "blocks": SequenceClassifier(cell="xlstm", **SIZES).fit(X, names),
        "of_steps": SequenceClassifier(**SIZES).fit(X, (X[..., 0] > 7).astype(int)),
        "several": SequenceClassifier(**SIZES).fit(X, (X[:, 0] > 7).astype(int)),
        "both": SequenceClassifier(bidirectional=True, **SIZES).fit(X, names),
        "both_steps": SequenceRegressor(bidirectional=True, **SIZES).fit(X, X[..., 0]),
        "symbols": SequenceClassifier(symbols="character", **SIZES).fit(texts, names),
        "numbers": SequenceRegressor(cell="slstm", **SIZES).fit(X, 50 + X[:, 0]),
        "table": SequenceRegressor(**SIZES).fit(X[..., 0], 50 + X[:, 0]),
        "both_table": SequenceRegressor(bidirectional=True, **SIZES).fit(X[..., 0], 50 + X[:, 0]),
    }
    expected = {}
    programs = {}
    for name, estimator in fitted.items():
        rows = texts if name == "symbols" else X[..., 0] if "table" in name else X
        is_both = name.startswith("both")
        options = {"steps": 9} if is_both else {}
        program = to_c(estimator, path=tmp_path / f"{name}.c", name=name, **options)
        ask = getattr(estimator, "predict_proba", estimator.predict)
        expected[name] = np.asarray(ask(rows[:1])[0]).reshape(-1)
        each = 1 if is_both or len(expected[name]) > 2 else 9
        x = estimator.prepared(rows[:1])[0] if name == "symbols" else rows[0]
        programs[name] = x, each * expected[name].size
        if name == "labels":
            assert r'"a \042b\042 \134 \303\251\077"' in program.source
    for found, (name, numpy) in zip(run_all(tmp_path, programs), expected.items(), strict=True):
        last = found[-numpy.size :]
        assert largest(last - numpy) <= TOLERANCE * largest(numpy), name
    assert "const char *const symbols_symbols[" in (tmp_path / "symbols.c").read_text()


GENERATE = """
#include "model.c"

int main(void)
{
    static model_state state;
    float y[MODEL_OUTPUTS];
    int32_t symbol = -1;
    uint32_t random = 1;
    model_init(&state);
    for (int k = 0; k < 5; k++) {
        get(&symbol, sizeof symbol);
        model_step(&state, &symbol, y);
    }
    for (int k = 0; k < 20000; k++) {
        symbol = model_sample(y, 0.7f, &random);
        fwrite(&symbol, sizeof symbol, 1, stdout);
    }
    fwrite(y, sizeof y, 1, stdout);
    for (int k = 0; k < 100; k++) {
        symbol = model_largest(y);
        fputs(model_symbols[symbol], stdout);
        model_step(&state, &symbol, y);
    }
    return 0;
}
"""


def test_text_models_generate(tmp_path):
    """Greedily as NumPy does, and drawn by their probabilities."""
    sizes = {"embedding_size": 4, "batch_size": 4, "length": 16, "steps": 40}
    text = 'the \u03bb "cat" sat? on\\ \u00e9t\u00e9\n' * 40
    model = TextModel(hidden_size=16, **sizes, backend="numpy").fit(text)
    to_c(model, path=tmp_path / "model.c", libm=False)
    prompt = np.array(model.codec_.encode("the \u03bb"), "i4")
    written = execute(tmp_path, GENERATE, prompt.tobytes())
    K = model.codec_.size
    draws = np.frombuffer(written[:80000], "i4")
    y = np.frombuffer(written[80000 : 80000 + 4 * K], "f4")
    assert written[80000 + 4 * K :].decode() == model.generate(
        "the \u03bb", 100, temperature=0
    ).removeprefix("the \u03bb")
    p = np.exp((y - y.max()) / 0.7)
    p /= p.sum()
    n = len(draws)
    gaps = np.abs(np.bincount(draws, minlength=K) - n * p)
    assert np.all(gaps <= 4 * np.sqrt(n * p * (1 - p)))


def test_int8_changes_little(tmp_path, rng):
    """To first order y changes by the share that rounding changes in the weights, times how much
    gates and states amplify it, which in a new LSTM is less than ten.
    """
    lstm = xlstm.LSTM(8, 32)
    params = lstm.init(backend="numpy")
    program = to_c(lstm, params, tmp_path / "model.c", weights="int8")
    x = rng.standard_normal((T, 1, 8)).astype("f4")
    (y,) = run_all(tmp_path, {"model": (x, T * 32)})
    change = largest(y - in_numpy(lstm, params, x)) / largest(y)
    assert program.weight_error < 0.005
    assert 0 < change < 10 * program.weight_error
    assert program.weight_bytes < 0.33 * to_c(lstm, params).weight_bytes


LSTM = xlstm.LSTM(2, 3)
PARAMS = LSTM.init(backend="numpy")
BACK = xlstm.GRU(2, 3, reverse=True)
REFUSED = [
    ({"path": "model.cpp"}, ValueError, "path is model.cpp, expected a name that ends in .c"),
    ({"name": "2nd"}, ValueError, "name is '2nd', expected a letter of ASCII, and then letters"),
    ({"name": "_model"}, ValueError, "name is '_model', expected a letter of ASCII"),
    ({"weights": "int4"}, ValueError, "weights is 'int4', expected one of float32, int8"),
    ({"libm": 1}, TypeError, "libm is 1, expected True or False"),
    ({"steps": 5}, ValueError, "steps is 5, expected None, as the layer goes forward in time"),
    (
        {"layer": BACK, "params": BACK.init(backend="numpy")},
        ValueError,
        "steps is None, expected the length of the longest sequence, as the layer goes in reverse",
    ),
    ({"layer": "model.c"}, TypeError, "layer is 'model.c', expected a layer or a model"),
    ({"layer": Forecaster(), "params": None}, ValueError, "layer is a Forecaster, expected a"),
    ({"layer": TextModel()}, ValueError, "params are for layers and models, an estimator has"),
    ({"layer": TextModel(), "params": None}, NotFittedError, "TextModel"),
    ({"params": None}, ValueError, "LSTM: parameter 0.Wx is missing"),
    (
        {"params": PARAMS | {"0.b": np.full(12, np.nan)}},
        ValueError,
        "parameter 0.b has numbers that are not finite in float32",
    ),
]


@pytest.mark.parametrize(("changes", "error", "text"), REFUSED)
def test_refused(changes, error, text):
    with pytest.raises(error, match=re.escape(text)):
        to_c(**{"layer": LSTM, "params": PARAMS} | changes)


def test_files_are_whole_or_not_there(tmp_path):
    """The header cannot be written where a folder has its name."""
    (tmp_path / "model.h").mkdir()
    (tmp_path / "model.c").write_text("before")
    with pytest.raises(OSError, match=r"model\.h"):
        to_c(LSTM, PARAMS, tmp_path / "model.c")
    assert (tmp_path / "model.c").read_text() == "before"
    assert len([*tmp_path.iterdir()]) == 2
