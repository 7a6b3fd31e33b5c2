"""How many megabytes a library installs, and how long a new process takes to its first output.

    python -m bench.footprint [--only NAME ...] [--rounds N] [--json FILE]

pip installs each library into an environment of its own, some 12 GB in all, which are removed at
the end. Then processes run in turn. Each imports a library and runs an LSTM over a sequence of 32
steps; for libraries of forecasts it only imports a model. The first process of a library stands
apart: it compiles code, and writes it to a file that later ones read. This program's own
environment needs pip.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from bench import run
from bench.options import file_name
from xlstm import LSTM
from xlstm.interop.onnx import to_onnx

ROOT = Path(__file__).resolve().parents[1]

TORCH = "torch.nn.LSTM(1, 50)(torch.zeros(32, 1, 1))"
OURS = """import numpy, xlstm
layer = xlstm.LSTM(1, 50)
layer.forward(layer.init(0, "numpy"), numpy.zeros((32, 1, 1), "float32"))"""
KERAS = """import numpy, os
os.environ["KERAS_BACKEND"] = "jax"
import keras
keras.layers.LSTM(50, return_sequences=True)(numpy.zeros((1, 32, 1), "float32"))"""
FLAX = """import jax, flax.linen
x = jax.numpy.zeros((1, 32, 1))
flax.linen.RNN(flax.linen.LSTMCell(50)).init_with_output(jax.random.key(0), x)"""
EQUINOX = """import jax, equinox
cell, x = equinox.nn.LSTMCell(1, 50, key=jax.random.key(0)), jax.numpy.zeros((32, 1))
zeros = jax.numpy.zeros(50)
jax.lax.scan(lambda s, x: (cell(x, s), s[0]), (zeros, zeros), x)"""
THINC = """import numpy
from thinc.api import LSTM, with_padded
with_padded(LSTM(50, 1)).initialize().predict([numpy.zeros((32, 1), "float32")])"""
NXAI = """import torch
from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig
config = sLSTMLayerConfig(embedding_dim=48, num_heads=4, backend="vanilla")
sLSTMLayer(config)(torch.zeros(1, 32, 48))"""
TORCHRL = "import torch, torchrl.modules\ntorchrl.modules.LSTM(1, 50)(torch.zeros(1, 32, 1))"
ONNX = """import numpy, onnxruntime
session = onnxruntime.InferenceSession("lstm.onnx")
shapes = {"x": (32, 1, 1), "h0": (1, 1, 50), "c0": (1, 1, 50)}
session.run(None, {name: numpy.zeros(shape, "float32") for name, shape in shapes.items()})"""
# Words for pip, and the program of a process.
LIBRARIES = {
    "Python": ("", "pass"),
    "xlstm": (".", OURS),
    "xlstm[cli]": (".[cli]", OURS),
    "xlstm[fast]": (".[fast]", OURS),
    "PyTorch": ("torch>=2.6", f"import torch\n{TORCH}"),
    "onnxruntime": ("onnxruntime", ONNX),
    "thinc": ("thinc", THINC),
    "JAX, Flax": ("flax", FLAX),
    "JAX, Equinox": ("equinox", EQUINOX),
    "Keras on JAX": ("keras jax", KERAS),
    "Keras on TensorFlow": ("tensorflow-cpu", KERAS.replace('"jax"', '"tensorflow"')),
    "NX-AI xlstm": ("xlstm", NXAI),
    "TorchRL": ("torchrl", TORCHRL),
    "xlstm, Forecaster": (".", "from xlstm.estimators import Forecaster"),
    "statsforecast": ("statsforecast", "from statsforecast.models import AutoETS"),
    "darts": ("darts", "from darts.models import ExponentialSmoothing"),
    "darts, neural": ("darts[torch]", "from darts.models import RNNModel"),
    "neuralforecast": ("neuralforecast", "from neuralforecast.models import LSTM"),
}


def main() -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        layer = LSTM(1, 50)
        to_onnx(layer, layer.init(0, "numpy"), room / "lstm.onnx")
        execute = functools.partial(
            subprocess.run,
            check=True,
            cwd=room,
            env={**os.environ, "PYTHONPATH": "", "XDG_CACHE_HOME": name},
            stdout=subprocess.PIPE,
        )
        lines = {}
        seconds = {name: [] for name in options.only}
        for k in range(options.rounds + 1):
            for library in options.only if k == 0 else list(lines):
                words, code = LIBRARIES[library]
                folder = room / file_name(library)
                try:
                    if k == 0:
                        lines[library] = installed(folder, words, execute)
                    begun = time.perf_counter()
                    execute([folder / "bin" / "python", "-P", "-c", code])
                    seconds[library].append(time.perf_counter() - begun)
                except subprocess.CalledProcessError as error:
                    print(f"without {library}: {error}", flush=True)
                    lines.pop(library, None)
    print("| library | packages | MB | least s | median s | first s |")
    for library, line in lines.items():
        first, *later = seconds[library]
        results = {"best": min(later), "median": statistics.median(later), "first": first}
        numbers = [len(line["packages"]), round(line["bytes"] / 1e6)]
        cells = [library, *numbers, *(f"{s:.2f}" for s in results.values())]
        print(f"| {' | '.join(map(str, cells))} |")
        about = {"bench": "footprint", "name": library, "case": LIBRARIES[library]}
        run.append(options.json, {**about, **line, "results": results})


def installed(folder: Path, words: str, execute: Any) -> dict[str, Any]:
    """Return the packages that pip installs into a new environment, and their bytes."""
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    if words:
        execute([*pip, "install", "-q", *words.split()], cwd=ROOT)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    packages = execute([*pip, "list", "--format=freeze"]).stdout.decode().split("\n")[:-1]
    return {"packages": packages, "bytes": sum(path.stat().st_size for path in files)}


if __name__ == "__main__":
    main()
