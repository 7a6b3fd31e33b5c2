"""C and C++ compiled and loaded, each text once for all processes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@functools.cache
def load(text: str, *command: str) -> ctypes.CDLL:
    """The shared library that a compiler makes of a text; `command` has its name and options."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    folder = Path(tempfile.gettempdir()) / "xlstm-compiled-tests"
    folder.mkdir(exist_ok=True)
    path = folder / f"{hashlib.sha256(' '.join([*command, text]).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as room:
            source, built = Path(room) / "source", Path(room) / "built.so"
            source.write_text(text, encoding="utf-8")
            whole = [*command, "-shared", "-fPIC", "-o", str(built), str(source), "-lm"]
            done = subprocess.run(whole, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{done.stderr[:4000]}\n{text}"
            built.replace(path)
    return ctypes.CDLL(str(path))
