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

import numpy as np
import pytest

import xlstm
from tests.conftest import REQUIRED, make_backend
from tests.registry import EVERY, TABLE, input_of, largest, params_of, steps, through_time
from xlstm.cells.cell import Cell
from xlstm.estimators import Forecaster, SequenceClassifier, SequenceRegressor, TextModel
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
FLAGS = "-Wall -Wextra -Wconversion -pedantic -Werror -O1 -fno-inline -fsanitize=address,undefined"
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
# What is in no array is written to first, so that NaN shows what init leaves out.
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
    "int8": (EVERY, "cc", {"weights": "int8"}),
    "without libm": (EVERY, "cc", {"libm": False}),
    "g++": (EVERY[::2], "g++", {"weights": "int8"}),
    "clang": (EVERY[1::2], "clang", {"libm": False}),
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
    """Return y of programs, which are in a folder, each by name with x and the size of y."""
    text = ""
    numbers = []
    for name, (x, outputs) in programs.items():
        header = (folder / f"{name}.h").read_text()
        whole = f"{name}_run" in header
        turns = 1 if whole else T
        kind = "int32_t" if "const int32_t *x" in header else "float"
        text += RUN.format(
            name=name,
            turns=turns,
            kind=kind,
            inputs=x.size // turns,
            outputs=outputs // turns,
            call=f"run(&state, x, {T}, y)" if whole else "step(&state, x, y)",
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
            print(f"@@ {type(layer).__name__} {largest(y-numpy)/largest(numpy):.1e} {largest(y - exact)/largest(numpy):.1e} {own/largest(numpy):.1e}")
            assert largest(y - exact) <= max(TOLERANCE * largest(exact), ROUNDING * own), layer
