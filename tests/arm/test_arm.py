"""Models as C on an emulated Cortex-M4 with hard float have the numbers of this CPU."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from numpy.linalg import norm

from tests.conftest import REQUIRED, make_backend
from tests.registry import EVERY, input_of, numbered, steps, through_time
from xlstm.interop.c import to_c
from xlstm.models import TiRex2

GCC = "arm-none-eabi-gcc"
CORTEX = "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 --specs=rdimon.specs"
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, (GCC, "qemu-arm", "cc"))) and "arm" not in REQUIRED,
    reason=f"{GCC}, qemu-arm or cc is missing",
)
T = 20
TOLERANCE = 2e-6
# Some networks are badly conditioned. The two roundings of this CPU, with multiplications and
# additions fused and not, tell how much so.
ROUNDING = 4
# TiRex2 is worse: with some weights NumPy itself is off by 2e-5 in float32.
LAYERS = [layer for layer in EVERY if not isinstance(layer, TiRex2)]
STEPS = """\
for (int32_t t = 0; t < MODEL_COUNT; t++) {
        model_step(&state, &x[MODEL_INPUTS * t], &y[MODEL_OUTPUTS * t]);
    }"""
MAIN = """
#include <stdio.h>
#include "model.c"

#define MODEL_COUNT {T}

static const {kind} x[] = {{{x}}};
static float y[MODEL_COUNT * MODEL_OUTPUTS];
static model_state state;

int main(void)
{{
    model_init(&state);
    {calls}
    for (int32_t k = 0; k < MODEL_COUNT * MODEL_OUTPUTS; k++) {{
        printf("%.9g\\n", (double)y[k]);
    }}
    return 0;
}}
"""


def output(folder, compiler, *emulator):
    build = [*compiler.split(), "-O2", "main.c", "-o", "main", "-lm"]
    subprocess.run(build, cwd=folder, check=True)
    run = [*emulator, "./main"]
    done = subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True)
    return np.array(done.stdout.split(), float)


@pytest.mark.parametrize("options", [{}, {"weights": "int8"}, {"libm": False}], ids=str)
@pytest.mark.parametrize("layer", **numbered(LAYERS))
def test_same_numbers(layer, options, rng, tmp_path):
    x = input_of(layer, make_backend("numpy", "float32"), rng, T, 1)
    whole = through_time(layer) and not steps(layer)
    options = options | ({"steps": T} if whole else {})
    to_c(layer, layer.init(0, "numpy"), tmp_path / "model.c", **options)
    main = MAIN.format(
        T=T,
        kind="int32_t" if x.dtype.kind == "i" else "float",
        x=", ".join(map(str, x.reshape(-1).tolist())),
        calls="model_run(&state, x, MODEL_COUNT, y);" if whole else STEPS,
    )
    (tmp_path / "main.c").write_text(main)
    here = output(tmp_path, "cc")
    fused = output(tmp_path, "cc -march=native")
    there = output(tmp_path, f"{GCC} {CORTEX}", "qemu-arm", "-cpu", "cortex-m4")
    assert here.size
    allowed = max(TOLERANCE * norm(here), ROUNDING * norm(here - fused))
    assert norm(here - there) <= allowed
