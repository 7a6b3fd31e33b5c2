"""NVRTC by itself: it compiles for any architecture without a GPU, and says what a kernel takes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import pytest

OPTIONS = ("-std=c++17", "-default-device", "-ftz=true", "-Xptxas=-v")  # the third is CuPy's


class Compiled(NamedTuple):
    registers: int  # of the kernel that takes most
    stack: int  # bytes that do not fit registers
    spilled: int  # bytes written and read because of that
    log: str


def compile_for(capability: int, text: str, options: tuple[str, ...] = OPTIONS) -> Compiled:
    """Compile to machine code; an error of the compiler is raised as a RuntimeError."""
    nvrtc = library()
    program = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None):
        raise RuntimeError("NVRTC takes no program")
    given = [f"-arch=sm_{capability}".encode(), *(option.encode() for option in options)]
    failed = nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    said = log.value.decode()
    if failed:
        raise RuntimeError(f"sm_{capability}: {said}")
    registers, stack, spilled = (
        [int(n) for n in re.findall(pattern, said)]
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes spill")
    )
    return Compiled(max(registers), max(stack), sum(spilled), said)


@functools.cache
def library() -> ctypes.CDLL:
    """Load NVRTC from the package nvidia-cuda-nvrtc, which CuPy's extra [ctk] installs, too."""
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for place in (found.submodule_search_locations or []) if found else []:
            for path in sorted(Path(place).glob("lib/libnvrtc.so.*")):
                return ctypes.CDLL(str(path))
    pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc-cu12)")
