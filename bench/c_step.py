"""Latency of one step of an LSTM as C, compiled by `cc -O2`, beside onnxruntime and NumPy, B=1.

python -m bench.c_step [--json FILE]

"xlstm" calls the program by ctypes, "loop in C" is a step without that. "onnxruntime step" is
`to_onnx(step=True)`, and "onnxruntime LSTM" its operator with one step; both have one thread.
"layer.step" is compiled by Numba unless XLSTM_COMPILE=0.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import xlstm
from bench import run
from bench.peers import MissingError, module
from xlstm.cli.timing import Timing, interleave
from xlstm.interop.c import to_c
from xlstm.interop.onnx import to_onnx

D = 64
H = 128
STEPS = 20  # of the loop
LOOP = f"""
void model_loop(model_state *state, const float *x, float *y)
{{
    for (int step = 0; step < {STEPS}; step++) {{
        model_step(state, x, y);
    }}
}}
"""


def compiled(layer, params, x):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.c"
        library = path.with_suffix(".so")
        program = to_c(layer, params, path)
        path.write_text(program.source + LOOP)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, path, "-lm"], check=True)
        functions = ctypes.CDLL(str(library))
    state = (ctypes.c_float * (program.state_bytes // 4))()
    arrays = [state, (ctypes.c_float * D)(*x[0]), (ctypes.c_float * H)()]
    functions.model_init(state)
    return {
        "xlstm": functools.partial(functions.model_step, *arrays),
        "loop in C": functools.partial(functions.model_loop, *arrays),
    }


def by_onnxruntime(layer, params, x, step: bool):
    onnxruntime = module("onnxruntime")
    module("onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = to_onnx(layer, params, step=step).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    shapes = {
        array.name: [n if isinstance(n, int) else 1 for n in array.shape]
        for array in session.get_inputs()
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    arrays["x"] = x.reshape(shapes["x"])
    return functools.partial(session.run, None, arrays)


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("one step in C")
    layer = xlstm.LSTM(D, H)
    params = layer.init(0, "numpy")
    x = np.random.default_rng(0).standard_normal((1, D)).astype("float32")
    state = layer.step(params, x)[1]
    calls = compiled(layer, params, x)
    calls["layer.step"] = functools.partial(layer.step, params, x, state)
    missing = {}
    for name, step in (("onnxruntime step", True), ("onnxruntime LSTM", False)):
        try:
            calls[name] = by_onnxruntime(layer, params, x, step)
        except MissingError as reason:
            missing[name] = str(reason)
    timings = interleave(calls, options.rounds)
    loop = timings["loop in C"]
    timings["loop in C"] = Timing(loop.best / STEPS, loop.median / STEPS, loop.calls)
    name = f"1,1,{D},{H} float32"
    run.record("one step in C", name, timings, options.json, missing=missing, case={})


if __name__ == "__main__":
    main()
