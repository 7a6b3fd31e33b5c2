"""Our LSTM in a program of another library, forward + backward, beside our own call and that library's LSTM.

python -m bench.bridges [--rounds N] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench import cases, peers, run
from bench.cases import Case
from xlstm.arrays import cores
from xlstm.cli.bench import home_of, interleave
from xlstm.interop import jax as bridge_to_jax
from xlstm.interop.torch import module

SIZES = [*cases.SHAPES, *cases.LARGE]


def in_jax(case: Case) -> Callable[[], object]:
    """Return a compiled program of JAX with our layer in it; its loss takes the forward pass, too."""
    jax = peers.module("jax")
    layer = case.layer_of()
    function = bridge_to_jax.layer(layer)
    params = jax.tree.map(jax.numpy.asarray, layer.init(0, "numpy", case.dtype))
    x, dy = map(jax.numpy.asarray, case.arrays())

    def loss(params: Any, x: Any) -> Any:
        return (function(params, x)[0] * dy).sum()

    work = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(work(params, x))


def in_torch(case: Case) -> Callable[[], object]:
    """Return the work of `torch.nn.LSTM` in `bench.peers` with our layer in its place."""
    torch = peers.module("torch")
    torch.set_num_threads(cores.threads())
    layer = case.layer_of()
    net = module(layer, layer.init(0, "numpy", case.dtype))
    x, dy = map(torch.tensor, case.arrays())
    x.requires_grad_()

    def work() -> None:
        net.zero_grad()
        x.grad = None
        net(x)[0].backward(dy)

    return work


BRIDGES = {"torch": in_torch, "JAX": in_jax}  # by the name of the peer


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("bridges")
    for size in SIZES:
        case = Case("lstm", *size)
        found, missing = peers.calls(case, tuple(BRIDGES))
        calls = {"xlstm": cases.ours(case, home_of("numpy", case.dtype))}
        for name, peer in found.items():
            calls |= {f"xlstm in {name}": BRIDGES[name](case), name: peer}
        results = interleave(calls, options.rounds)
        run.finish("bridges", str(case), results, options.json, missing, asdict(case), case.dtype)


if __name__ == "__main__":
    main()
