"""The published packages of TiRex-1 and TiRex-2, run by `bench.tirex` in a process of their own:
requests, JSON lines.

It imports nothing of this project. The first argument is the folder where they are installed, the
second the number of threads. Random checkpoints lie in the folder that the process runs in.
"""

import functools
import json
import sys
import time

sys.path[0] = sys.argv[1]

import numpy as np  # noqa: E402
import torch  # noqa: E402


@functools.cache
def loaded(model, compiled):
    """A model of the packages, or of the packages compiled by PyTorch."""
    if model == "tirex1":
        import tirex

        return tirex.load_model(
            "first/TiRex/model.ckpt", device="cpu", backend="torch", compile=compiled
        )
    import tirex2

    return tirex2.load_model("second", device="cpu", compile=compiled)


def forecast(model, compiled, series, horizon):
    """A forecast of all series, (B, H, Q)."""
    network = loaded(model, compiled)
    if model == "tirex1":
        return network.forecast(series, prediction_length=horizon)[0]
    from tirex2 import TimeseriesType

    items = [TimeseriesType(row[None], None, None) for row in series]
    return torch.stack(network.forecast(items, horizon))[:, 0].swapaxes(1, 2)


def resident(name):
    """Bytes of resident memory, as Linux keeps account of them."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def main():
    torch.set_num_threads(int(sys.argv[2]))
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the packages print is no answer
    for line in sys.stdin:
        what, model, compiled, rows, horizon = json.loads(line)
        series = torch.from_numpy(np.load(f"series{rows}.npy"))
        before = time.process_time()
        if what == "run":
            forecast(model, compiled, series, horizon)
            answer = time.process_time() - before
        elif what == "forecast":
            answer = forecast(model, compiled, series, horizon).tolist()
        else:
            forecast(model, compiled, series[:1], horizon)
            start = resident("VmRSS")
            forecast(model, compiled, series, horizon)
            answer = {"beyond": resident("VmHWM") - start, "peak": resident("VmHWM")}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
