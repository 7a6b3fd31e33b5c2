"""The published packages of TiRex-1 and TiRex-2, run by `bench.tirex` in a process of their own: requests, JSON lines.

It imports nothing of this project. The first argument is the folder where they are installed, the second the number of
threads. Random checkpoints lie in the folder that the process runs in.
"""

import json
import sys
import time

sys.path[:] = [sys.argv[1], *(p for p in sys.path[1:])]

import numpy as np  # noqa: E402
import torch  # noqa: E402

STATUS, REFS = "/proc/self/status", "/proc/self/clear_refs"


def tirex1(compiled, series, horizon):
    """A forecast of TiRex-1, of the package or of the package compiled by PyTorch."""
    import tirex

    model = tirex.load_model("first/TiRex/model.ckpt", device="cpu", backend="torch", compile=compiled)
    return lambda: model.forecast(series, prediction_length=horizon, batch_size=len(series))[0]


def tirex2(compiled, series, horizon):
    """A forecast of TiRex-2 of series that are alone, (Q, H) each."""
    import tirex2

    model = tirex2.load_model("second", device="cpu", compile=compiled)
    items = [tirex2.TimeseriesType(row[None], None, None) for row in series]
    return lambda: torch.stack(model.forecast(items, horizon, batch_size=len(series)))[:, 0].swapaxes(1, 2)


def resident(name):
    """Bytes of resident memory, as Linux keeps account of them."""
    with open(STATUS) as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def main():
    torch.set_num_threads(int(sys.argv[2]))
    answers, sys.stdout = sys.stdout, sys.stderr  # what the packages print is no answer
    calls = {}
    for line in sys.stdin:
        what, *request = json.loads(line)
        key, answer = json.dumps(request), "done"
        if what == "make":
            model, compiled, rows, horizon = request
            series = torch.from_numpy(np.load(f"series{rows}.npy"))
            calls[key] = {"tirex1": tirex1, "tirex2": tirex2}[model](compiled, series, horizon)
        elif what == "run":
            before = time.process_time()
            calls[key]()
            answer = time.process_time() - before
        elif what == "forecast":
            answer = calls[key]().tolist()
        elif what == "memory":
            calls[key]()
            with open(REFS, "w") as file:
                file.write("5")  # the peak starts anew
            start = resident("VmRSS")
            for _ in range(3):
                calls[key]()
            answer = resident("VmHWM") - start
        elif what == "forget":
            calls.clear()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
