"""The programs of `bench` that need a GPU, on CuPy."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import sys
import time
from types import SimpleNamespace

import pytest

from bench import against, cudnn, language, mlstm, sanitized
from bench import gpu as bench_gpu
from bench.rows import OURS
from bench.workers import Worker
from tests import gpu, parity
from xlstm.arrays import optional_imports

gpu.needed()


def few(table, *names):
    return {name: value for name, value in table.items() if name in names}


# Sizes with which programs run in seconds.
SMALL = {
    "bench.barriers": {
        **{
            "FEW": 2,
            "MANY": 4,
            "THREADS": 32,
            "STAY": 1,
            "MANY_CLUSTERS": 2,
            "ROUNDS": 1,
            "COPIED": 64,
        },
        **{"GRIDS": (2,), "CLUSTERS": (1, 2)},
    },
    "bench.cudnn": {"SHAPES": ((3, 2, 6),), "PRECISIONS": few(cudnn.PRECISIONS, "TF32", "bf16")},
    "bench.mlstm": {
        "SHAPES": ((2, 2, 20, 4, 6),),
        "PRECISIONS": few(mlstm.PRECISIONS, "TF32", "fp16"),
    },
    "bench.language": {
        **{
            "STEPS": ((2, 5, 8, 11),),
            "TEXTS": ((1, 8, 11),),
            "WRITTEN": ("fp32", "fp16"),
            "TOKENS": 2,
        },
        "PRECISIONS": few(mlstm.PRECISIONS, "TF32", "fp16") | {"fp32": "float32"},
    },
    "bench.rows": {"LONGEST": 0.0},
    "bench.events": {"BLOCK": 0.0, "LONGEST": 0.0},
    "bench.sanitized": {
        "WIDTHS": (6,),
        "WAYS": {path: ways[:1] for path, ways in sanitized.WAYS.items()},
    },
    "tests.parity": {
        "CASES": few(parity.CASES, "RNN"),
        "DTYPES": {path: dtypes[:1] for path, dtypes in parity.DTYPES.items()},
    },
}


def small(monkeypatch):
    """Sizes of the programs with which they run in seconds."""
    gpu.timed_as_a_card(monkeypatch)
    for module, sizes in SMALL.items():
        for name, value in sizes.items():
            monkeypatch.setattr(f"{module}.{name}", value)
    every = sanitized.layers
    some = ("LSTM, recomputed", "RNN", "sLSTM")
    monkeypatch.setattr(sanitized, "layers", lambda H: few(every(H), *some))


def program(monkeypatch, name, *arguments):
    """Run the main function of a module as from the command line; its exit status."""
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return module.main()


def kernel(q, k, v, i, f, autocast_kernel_dtype):
    """The heads of an mLSTM in PyTorch, all steps at once, in the place of a published kernel."""
    import torch

    sums = torch.nn.functional.logsigmoid(f).cumsum(-1)
    gates = (sums[..., :, None] - sums[..., None, :] + i[..., None, :]).masked_fill(
        torch.ones(f.shape[-1], f.shape[-1]).triu(1).bool(), -torch.inf
    )
    most = gates.amax(-1, keepdim=True).detach()
    scores = q @ k.mT / q.shape[-1] ** 0.5 * torch.exp(gates - most)
    return scores @ v / torch.maximum(scores.sum(-1, keepdim=True).abs(), torch.exp(-most))


def test_the_gpu_check(monkeypatch, tmp_path, capsys):
    """Its parts but the tests, which are these, one after the other in this process."""
    small(monkeypatch)
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module in (cudnn, mlstm):
        monkeypatch.setattr(module, "measure", functools.partial(module.measure, device="cpu"))
    monkeypatch.setattr(cudnn.Torch, "captured", lambda peer: peer.eager)
    published = SimpleNamespace(mlstm_chunkwise__xl_chunk=kernel)
    monkeypatch.setitem(sys.modules, "mlstm_kernels.torch.chunkwise", published)

    def here(argv, seconds, environment):
        if argv[1] in ("pytest", "xlstm", "bench.sanitize"):
            return bench_gpu.OK, "", []
        arguments = [
            a if before != "--processes" else "1" for before, a in itertools.pairwise(argv[1:])
        ]
        code = program(monkeypatch, argv[1], *arguments)
        return (bench_gpu.FAILED if code else bench_gpu.OK), "ran", []

    monkeypatch.setattr(bench_gpu.check, "__defaults__", (here, time.monotonic))
    monkeypatch.setattr(
        bench_gpu, "PARTS", [part._replace(most=1e6) for part in bench_gpu.PARTS]
    )  # a busy machine is slow
    assert program(monkeypatch, "bench.gpu", "--output", str(tmp_path), "--seconds", "1e6") == 0, (
        capsys.readouterr().out
    )
    record = json.loads((tmp_path / "gpu-cuda-on-the-cpu.json").read_text())
    assert [part["result"] for part in record["parts"]] == [bench_gpu.OK] * len(bench_gpu.PARTS)
    for part, count in {"cudnn": 10, "mlstm": 4, "language": len(language.cases())}.items():
        assert len(record[part]["rows"]) == count
        assert not [row for row in record[part]["rows"] if "error" in row]
        assert record[part]["left out"] == []
    for row in record["cudnn"]["rows"]:  # the peer has the same weights
        assert {*row["seconds"], *row["missing"]} > {OURS, cudnn.EAGER}
        assert row["difference"] < (1e-3 if row["case"]["precision"] == "TF32" else 0.1)
    for row in record["mlstm"]["rows"]:
        assert list(row["seconds"]) == ["xlstm", "xl_chunk"]
        assert row["difference"] < 1e-2
    for row in record["language"]["rows"]:
        assert row["tokens a second"] > 0
        assert not row["losses"] or row["losses"][1] < row["losses"][0]
    assert "2, across the grid" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu-cuda-on-the-cpu-parity.json").read_text())["left out"] == []


@contextlib.contextmanager
def allocator_kept():
    """Give the allocator of CuPy back, which a program takes away for the rest of its process."""
    allocator = optional_imports.cupy().cuda.get_allocator()
    yield
    optional_imports.cupy().cuda.set_allocator(allocator)


def test_what_the_sanitizer_runs(monkeypatch, capsys):
    small(monkeypatch)
    with gpu.counted() as counted, allocator_kept():
        assert program(monkeypatch, "bench.sanitized") == 0
    said = capsys.readouterr().out
    for path in sanitized.WAYS:
        assert sum(f"H=6, {path}, " in line for line in said.splitlines()) == 3
    assert "ran: mLSTM, H=40, float64" in said
    for kernel in ("forward", "slim", "lean", "backward", "again_step"):
        assert f"xlstm_{kernel} " in counted.places()


def test_the_time_of_the_host():
    """With kernels that do nothing, in a process that ends with it."""
    gpu.on_cpu()
    command = [sys.executable, against.__file__, "--work"]
    worker = Worker(command, against.ROOT, {**os.environ, "PYTHONPATH": str(against.ROOT)})
    assert all(worker.ask(name) > 0 for name in against.ON_CUPY)
    worker.end()
