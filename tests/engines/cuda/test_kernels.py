"""Kernels as NVRTC makes them for sm_80 and sm_90: they compile, keep to registers, and fit shared
memory.
"""

from __future__ import annotations

import itertools

import pytest

from tests.engines.cuda import nvrtc
from tests.engines.cuda.nvrtc import compile_for
from xlstm.arrays.cuda import concat_kernel, gather_kernels, random_kernels
from xlstm.cells import gru, lstm, lstm_options, minimal, rnn, slstm
from xlstm.engines.cuda import cell_source, tiling
from xlstm.engines.cuda.choice import LOOPS, choose
from xlstm.engines.cuda.chunk_source import CHUNK_ARITHMETIC, KINDS, ChunkShape
from xlstm.engines.cuda.chunk_source import source as chunk_source
from xlstm.engines.cuda.tiling import ARITHMETIC, Device
from xlstm.engines.pointwise import Around, pointwise

DEVICES = {
    80: Device("A100", 80, 108, 166912),
    90: Device("H100", 90, 132, 232448, 16),
}
CARDS = {
    **DEVICES,
    75: Device("Tesla T4", 75, 40, 65536),
    86: Device("NVIDIA GeForce RTX 3090", 86, 82, 101376),
    89: Device("NVIDIA GeForce RTX 4090", 89, 128, 101376),
    100: Device("B200", 100, 148, 232448, 16),
    120: Device("NVIDIA GeForce RTX 5090", 120, 170, 101376, 8),
}
CELLS = {
    "lstm": pointwise(lstm.Cell(), (), ("b",)),
    "lstm, options": pointwise(lstm_options.Cell(clip=3.0, cell_clip=2.0), (("p", 3),), ("b",)),
    "lstm, coupled": pointwise(lstm_options.Cell(coupled_input_forget=True), (("p", 2),), ()),
    "gru": pointwise(gru.Cell(), (), ("b", "bh")),
    "rnn": pointwise(rnn.Cell(), (), ("b",)),
    "slstm": pointwise(slstm.Cell(), (), ("b",)),
    "slstm, rounded": pointwise(slstm.Rounded(forget_limit=15.0), (), ("b",)),
}
# without a product of h
SCANS = {
    "minlstm": pointwise(minimal.MinLSTM(), (), ("b",)),
    "mingru": pointwise(minimal.MinGRU(False), (), ()),
}
DROPPED = [
    pointwise(cell, (), added, (), Around(drop=True))
    for cell, added in ((lstm.Cell(), ("b",)), (gru.Cell(), ("b", "bh")))
]
TENSOR = ("3xfp16", "tf32", "float16", "bfloat16")
FEW = [(50, 1, 32), (512, 1, 64), (1024, 1, 16)]  # units of a head, heads, sequences
MEASURED = [(512, 1, 64), (1024, 1, 16), (256, 1, 256)]


def fits(capability, step, name, size, kinds=tiling.PASSES, cluster=False, cards=CARDS, **options):
    """Compile kernels for a card, where they fit it; their kinds."""
    made = []
    for kind in kinds:
        tiled = kind if kind in tiling.PASSES else "forward"
        found = tiling.best(tiled, step, *size, ARITHMETIC[name], cards[capability], cluster)
        if found is not None:
            within(capability, cell_source.loop(step, kind, found, **options), cards[capability])
            made.append(kind)
    return made


def within(capability, made, card=None):
    """Compile a kernel; it has registers enough."""
    done = compile_for(capability, made.text)
    assert (done.stack, done.spilled) == (0, 0), done.log
    assert card is None or made.shared <= card.shared


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", TENSOR)
@pytest.mark.parametrize(("capability", "cluster"), [(80, False), (90, False), (90, True)])
@pytest.mark.parametrize("size", FEW)
def test_with_tensor_cores(cell, name, capability, cluster, size):
    """Only the widest layer may not fit."""
    assert (
        fits(capability, CELLS[cell], name, size, cluster=cluster) == list(tiling.PASSES)
        or size == FEW[-1]
    )


@pytest.mark.parametrize("step", [*DROPPED, *(CELLS[name] for name in ("lstm", "gru", "slstm"))])
@pytest.mark.parametrize("name", TENSOR)
@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("size", FEW)
def test_kernels_that_keep_h(step, name, cluster, size):
    """Before every step, for recurrent dropout and for steps of different widths."""
    fits(
        90,
        step,
        name,
        size,
        tiling.PASSES if step in DROPPED else ("forward",),
        cluster,
        keep_h=True,
    )


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        *itertools.product(["layer_norm", "projection", "reset before"], cell_source.KINDS),
        *itertools.product(["reset before"], cell_source.FACTORS),
    ],
)
def test_options_in_kernels_of_one_step(options, name, kind):
    step = {
        "layer_norm": pointwise(
            lstm_options.Cell(),
            (("gc", None), ("bc", None)),
            ("b",),
            (),
            Around(drop=True, normal=True, units=True),
        ),
        "projection": pointwise(lstm.Cell(), (), ("b",), (), Around(projected=True)),
        "reset before": pointwise(
            gru.ResetBefore(), (("Wn", None),), ("b",), (), Around(drop=True, matrix="Wn", rows=2)
        ),
    }[options]
    made = cell_source.pointwise(
        step, kind, ARITHMETIC[name], 1, 40, keep_h=options != "projection"
    )
    for capability in DEVICES:
        assert compile_for(capability, made.text).spilled == 0


@pytest.mark.parametrize("size", MEASURED)
@pytest.mark.parametrize(
    ("capability", "dtype", "precision"),
    [
        *((75, dtype, "float32") for dtype in ("float32", "float16")),
        *(
            (card, "float32", precision)
            for card in CARDS.keys() - {75}
            for precision in ("float32", "tf32")
        ),
        *((card, "bfloat16", "float32") for card in CARDS.keys() - {75}),
    ],
)
def test_what_cards_choose_for_the_sizes_that_are_measured(capability, dtype, precision, size):
    found = choose(("auto", precision), CELLS["lstm"], "", dtype, *size, CARDS[capability])
    if found.forward is not None:  # else it is too large for this card
        for kind in tiling.PASSES:
            within(capability, cell_source.loop(CELLS["lstm"], kind, getattr(found, kind)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("capability", DEVICES)
def test_without(cell, name, capability):
    """Kernels of all steps, and of one."""
    if name in ("float32", "float64"):
        assert fits(capability, CELLS[cell], name, (200, 1, 40)) == list(tiling.PASSES)
    for kind in cell_source.KINDS:
        within(capability, cell_source.pointwise(CELLS[cell], kind, ARITHMETIC[name], 2, 40))


@pytest.mark.parametrize("cell", SCANS)
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["forward", "slim", "lean", "backward"])
def test_scans(cell, name, kind):
    tiled = tiling.without_product(kind, ARITHMETIC[name], 200, 1, 40)
    for capability in DEVICES:
        within(capability, cell_source.scan(SCANS[cell], kind, tiled, keep_h=True))


@pytest.mark.parametrize("capability", [60, 70, 75])
def test_older_devices(capability):
    """They lack instructions that other devices have, and compile kernels without them."""
    older = {capability: Device("an older one", capability, 40, 65536)}
    for kind in tiling.PASSES:
        for name in ("float32", "float16"):
            compile_for(
                capability, cell_source.pointwise(CELLS["gru"], kind, ARITHMETIC[name], 1, 50).text
            )
    if capability >= LOOPS:
        assert len(fits(capability, CELLS["gru"], "float32", (50, 1, 32), cards=older)) == 2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["slim", "lean"])
def test_loops_that_keep_less(kind, cell):
    assert fits(90, CELLS[cell], "bfloat16", (256, 1, 256), (kind,), cluster=True)


TEXTS = {
    "concat": concat_kernel.TEXT,
    "gather": gather_kernels.TEXT,
    "bernoulli": random_kernels.TEXT,
}


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("name", TEXTS)
def test_small_kernels_compile(name, capability):
    assert (
        compile_for(capability, TEXTS[name], (*nvrtc.OPTIONS, *random_kernels.OPTIONS)).spilled == 0
    )


def test_tilings_say_what_they_need_and_cover_all_units():
    for device in (Device("a small one", 90, 8, 232448, 16), *DEVICES.values()):
        for a in tiling.ARITHMETIC.values():
            for kind in tiling.PASSES:
                for width, B in ((1, 1), (50, 32), (384, 700), (512, 64), (1024, 16)):
                    for cluster in (False, True):
                        t = tiling.best(kind, CELLS["lstm"], width, 1, B, a, device, cluster)
                        if t is None:
                            continue
                        assert t.units * t.blocks >= width
                        assert t.shared <= device.shared
                        assert t.blocks <= device.sms
                        assert t.columns * t.groups >= B


# The heads of the published large models, and those of a small one.
HEADS = [(8, 256, 512, 64), (4, 64, 64, 64)]


@pytest.mark.parametrize("shape", HEADS, ids=str)
@pytest.mark.parametrize("way", CHUNK_ARITHMETIC, ids=", ".join)
@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_mlstm_on_every_card(kind, capability, way, shape):
    if capability < 80 and way[0] != "float16":
        pytest.skip("sm_75 has tensor cores in float16 alone")
    pack = 4 if way[0] == "float32" else 8
    made, _ = chunk_source(kind, CHUNK_ARITHMETIC[way], ChunkShape(*shape, pack), "sigmoid", 1e-6)
    within(capability, made, CARDS[capability])


@pytest.mark.parametrize(
    "shape",
    [
        ChunkShape(1, 2, 2, 16, 2),
        ChunkShape(2, 10, 600, 32, 2),
        ChunkShape(2, 1000, 34, 16, 2),
        ChunkShape(8, 256, 512, 64, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_mlstm_of_any_width(kind, shape):
    made, _ = chunk_source(kind, CHUNK_ARITHMETIC["float32", "float32"], shape, "exponential", 0.0)
    assert compile_for(86, made.text).spilled == 0
