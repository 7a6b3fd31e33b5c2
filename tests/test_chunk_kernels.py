"""The kernels of the chunkwise mLSTM as NVRTC makes them for every card: no spills, shared memory within its limit."""

from __future__ import annotations

import pytest

from tests.nvrtc import compile_for
from tests.test_kernels import CARDS
from xlstm.engines.cuda.chunk_source import KINDS, WAYS, Shape, source

# The heads of the published large models, and those of a small one.
SHAPES = [(8, 256, 512, 64), (4, 64, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=", ".join)
@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_card(kind, capability, way, shape):
    if capability < 80 and way[0] != "float16":
        pytest.skip("sm_75 has tensor cores in float16 alone")
    made = source(kind, WAYS[way], Shape(*shape, 4 if way[0] == "float32" else 8), "sigmoid", 1e-6)
    assert made.shared <= CARDS[capability].shared
    done = compile_for(capability, made.text)
    assert (done.stack, done.spilled) == (0, 0), done.log


@pytest.mark.parametrize(
    "shape",
    [Shape(1, 2, 2, 16, 2), Shape(2, 10, 600, 32, 2), Shape(2, 1000, 34, 16, 2), Shape(8, 256, 512, 64, 2)],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_any_width(kind, shape):
    made = source(kind, WAYS["float32", "float32"], shape, "exponential", 0.0)
    assert compile_for(86, made.text).spilled == 0
