"""The GPU check: tests on CuPy, parity against the other backends, and times beside cuDNN's, in one command.

    python -m bench.gpu [--output FOLDER]

Needs a CUDA machine with CuPy, PyTorch and pytest. Prints a short table and writes gpu-parity.json and gpu.json, times
as JSON lines, to FOLDER (bench/results by default), both naming card and versions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import xlstm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    folder = parser.parse_args().output
    backend = xlstm.backend("cupy")  # refuses, with the reason, where there is no usable GPU
    folder.mkdir(parents=True, exist_ok=True)
    print(f"GPU check on {backend}")
    running = folder / "gpu.part"
    running.unlink(missing_ok=True)
    timed = ["--backend", "cupy", "--json", str(running)]
    compared = [word for name in ("numpy", "cupy", "torch") for word in ("--backend", name)]
    steps = {
        "tests": ["-m", "pytest", "-q"],
        "parity": ["-m", "tests.parity", "--json", str(folder / "gpu-parity.json")],
        "main job": ["-m", "xlstm", "train", "--backend", "cupy", "--output", "xlstm-output"],
        "layers float32": ["-m", "bench.layers", *timed],
        "layers float64": ["-m", "bench.layers", *timed, "--dtype", "float64"],
        "lengths": ["-m", "bench.lengths", *timed],
        "inference": ["-m", "bench.inference", *timed],
        "backends": ["-m", "xlstm", "bench", *compared, "--json", str(folder / "gpu-backends.json")],
    }
    results = {}
    for name, arguments in steps.items():
        start = time.perf_counter()
        code = subprocess.call([sys.executable, *arguments], env={**os.environ, "XLSTM_TEST_REQUIRE": "cupy"})
        results[name] = (code, time.perf_counter() - start)
    if running.exists():
        os.replace(running, folder / "gpu.json")
    print(f"\n{'check':16s} {'result':>8s} {'seconds':>8s}")
    for name, (code, seconds) in results.items():
        print(f"{name:16s} {'ok' if code == 0 else f'exit {code}':>8s} {seconds:8.1f}")
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
