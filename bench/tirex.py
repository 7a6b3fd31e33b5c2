"""Forecasts of TiRex-1 and TiRex-2 at their published sizes beside the published packages, on the
CPU.

    python -m bench.tirex --peer FOLDER [--threads 1] [--series 1 64] [--rounds N] [--compiled]
    [--json FILE]

The packages go to a folder of their own; they need PyTorch, and a C++ compiler for `--compiled`:

    pip install --target FOLDER --no-deps tirex-ts==1.4.2 tirex-2==0.4.0 flashrnn==1.0.8
    mlstm_kernels==2.0.6 pip install torch numpy huggingface-hub scikit-learn safetensors narwhals
    pyyaml einops

Checkpoints with random weights of the published sizes are made in a temporary folder, and both
sides read the same. Each case is a whole forecast from series of 2048 values, in float32: TiRex-1
of 32 steps, TiRex-2 of 320 steps, of one series and of 64. Then come the memory that 64 series take
beyond one, the peak of the whole process, and the time to import and to load. The packages run in a
process of their own, which waits while ours runs. Times of processors are beside those of the
clock, for machines that have other work; with `--threads 1` they are those of one core.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import run
from bench.peak import resident
from bench.workers import Theirs
from xlstm.arrays import cores
from xlstm.cli.timing import Timing, interleave
from xlstm.interop import tirex
from xlstm.models import TiRex, TiRex2

CONTEXT = 2048
HORIZONS = {"tirex1": 32, "tirex2": 320}
PATHS = {"tirex1": "first/TiRex/model.ckpt", "tirex2": "second"}  # of the checkpoints
LOADS = {
    "tirex1": "import tirex; tirex.load_model({!r}, device='cpu', backend='torch')",
    "tirex2": "import tirex2; tirex2.load_model({!r}, device='cpu')",
}
SERIES = (1, 64)
RECIPE = [("mlstm", 4, 4), ("slstm", 4, 4)] * 6
AGREE = 2e-2  # of a row's largest value: TiRex-1's package rounds to bfloat16 in its cell


def checkpoints(folder: Path, series: Sequence[int]) -> None:
    """Write random checkpoints and series. The package of TiRex-1 loads a checkpoint that PyTorch
    wrote.
    """
    import torch
    from safetensors.torch import load_file

    first = TiRex(512, 12)
    second = TiRex2(512, RECIPE)
    rng = np.random.default_rng(0)
    there = (folder / PATHS["tirex1"]).parent
    tirex.save(there, first, first.init(0, "numpy"))
    config = json.loads((there / "config.json").read_text())
    arrays = load_file(there / "model.safetensors")
    state = {
        name if "_patch_embedding." in name else f"block_stack.{name}": a
        for name, a in arrays.items()
    }
    torch.save({"hyper_parameters": config, "state_dict": state}, there / "model.ckpt")
    tirex.save(folder / PATHS["tirex2"], second, second.init(0, "numpy"))
    for rows in series:
        walks = np.cumsum(rng.standard_normal((rows, CONTEXT), np.float32), axis=1)
        np.save(folder / f"series{rows}.npy", walks)


def ours(folder: Path, model: str, rows: int) -> Callable[..., Any]:
    """A forecast of ours, of all series or the first ones."""
    network, params = tirex.load(folder / PATHS[model], backend="numpy")
    series = np.load(folder / f"series{rows}.npy")
    return lambda most=None: network.forecast(params, series[:most], HORIZONS[model])


def memory(folder: str, model: str, rows: int) -> None:
    """Print the bytes that a forecast takes beyond one of a single series, and the peak of this
    process.
    """
    forecast = ours(Path(folder), model, rows)
    forecast(1)
    start = resident("VmRSS")
    forecast()
    print(json.dumps({"beyond": resident("VmHWM") - start, "peak": resident("VmHWM")}))


def processor(call: Callable[[], Any], rounds: int) -> Timing:
    """Seconds of all processors that a call takes, or says that it took."""
    seconds = []
    for _ in range(rounds):
        before = time.process_time()
        answer = call()
        seconds.append(answer if isinstance(answer, float) else time.process_time() - before)
    return Timing(min(seconds), float(np.median(seconds)), rounds)


def loading(peer: Path | None, folder: Path, model: str) -> dict[str, Callable[[], object]]:
    """New processes that import and load; both sides have their bytecode, as installed packages
    do.
    """
    place = str(folder / PATHS[model])
    mine = f"from xlstm.interop import tirex; tirex.load({place!r}, backend='numpy')"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    calls: dict[str, Callable[[], object]] = {
        "xlstm": functools.partial(_python, mine, None, environment)
    }
    if peer is not None:
        theirs = LOADS[model].format(PATHS[model])
        environment = {**environment, "PYTHONPATH": str(peer)}
        calls["package"] = functools.partial(_python, theirs, folder, environment)
    return calls


def _python(code: str, folder: Path | None, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=True, cwd=folder, env=environment, capture_output=True, text=True
    ).stdout


def agree(name: str, mine: Any, theirs: Any) -> None:
    """Stop where the forecasts are not the same: then their times say nothing."""
    mine = np.asarray(mine, np.float64)
    theirs = np.asarray(theirs, np.float64)
    far = np.max(np.abs(mine - theirs), axis=(1, 2)) / np.max(np.abs(theirs), axis=(1, 2))
    print(f"  {name}: forecasts differ by at most {np.max(far):.1e} of a row's largest value")
    if not np.all(far <= AGREE):
        raise SystemExit(f"{name}: forecasts differ by {np.max(far):.1e}, expected at most {AGREE}")


def main() -> None:
    parser = run.for_packages(__doc__, "XLSTM_BENCH_TIREX")
    parser.add_argument("--threads", type=int, help="of both; by default one for each core")
    parser.add_argument(
        "--series", type=int, nargs="+", default=SERIES, help="how many at once, case by case"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="also theirs compiled, which takes minutes at first"
    )
    options = parser.parse_args()
    if options.threads:
        os.environ[cores.VARIABLE] = str(options.threads)
    run.start("beside the published packages")
    with tempfile.TemporaryDirectory() as place:
        measure(options, Path(place).resolve())


def measure(options: Any, folder: Path) -> None:
    """Run all cases."""
    checkpoints(folder, options.series)
    missing = {}
    peer = None
    packages: list[bool] = []  # whether each is compiled
    if options.peer is None:
        missing = run.without_packages(__doc__)
    else:
        peer = Path(options.peer).resolve()
        theirs = Theirs("tirex_worker.py", peer, folder)
        packages = [False, True] if options.compiled else [False]
    for model, horizon in HORIZONS.items():
        for rows in options.series:
            name = f"{model} {rows} series, horizon {horizon}"
            case = {"series": rows, "horizon": horizon, "threads": cores.threads()}
            mine = ours(folder, model, rows)
            calls: dict[str, Callable[[], object]] = {"xlstm": mine}
            for compiled in packages:
                request = (model, compiled, rows, horizon)
                agree(name, mine().quantiles, theirs.ask("forecast", *request))
                call = functools.partial(theirs.ask, "run", *request)
                calls["package, compiled" if compiled else "package"] = call
            timings = interleave(calls, options.rounds)
            about = {"missing": missing, "case": case}
            run.record("tirex", name, timings, options.json, **about)
            spent = {who: processor(call, options.rounds) for who, call in calls.items()}
            run.record("tirex processors", name, spent, options.json, **about)
        code = f"from bench import tirex; tirex.memory({str(folder)!r}, {model!r}, {rows})"
        used = {"xlstm": json.loads(_python(code, None, dict(os.environ)))}
        if peer is not None:
            used["package"] = Theirs("tirex_worker.py", peer, folder).ask(
                "memory", model, False, rows, horizon
            )
        for what in ("beyond", "peak"):
            taken = {who: answer[what] for who, answer in used.items()}
            title = f"memory, {what}"
            run.record(
                f"tirex {title}", f"{name}: {title}", taken, options.json, unit="bytes", **about
            )
        timings = interleave(loading(peer, folder, model), options.rounds, block=0)
        name = f"{model} import and load"
        run.record("tirex import and load", name, timings, options.json, missing=missing, case={})


if __name__ == "__main__":
    main()
