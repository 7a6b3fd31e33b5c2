"""The tables of strings by which the core finds what stands on it."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from xlstm.arrays import compiled
from xlstm.arrays.libraries import LIBRARIES, Library, library_of
from xlstm.engines import engine, memories
from xlstm.models import model_files

ENTRIES = [entry for table in (engine.ENGINES, memories.MEMORY_ENGINES) for entry in table[:-1]]
CORE = """
import sys
import numpy as np
import xlstm
from xlstm import losses, models, optim, training
from xlstm.data import Windows
model = models.SequenceModel(xlstm.LSTM(3, 4), output_size=2)
data = Windows(np.ones((4, 5, 3)), np.ones((4, 5, 2)), every_step=True)
training.train(model, model.init(backend="numpy"), data, optimizer=optim.adam(1e-3), epochs=1)
print(*(name for name in sys.modules if name.startswith("xlstm.")))
"""
ABOVE = (
    "arrays.cuda",
    "arrays.dual",
    "cli",
    "engines.cuda",
    "estimators",
    "interop",
    "models.tirex",
    "plots",
)


def test_entries_lead_somewhere():
    for place in compiled.MODULES.values():
        importlib.import_module(place)
    for entry in ENTRIES:
        assert entry.engine.name == entry.name
    for name in LIBRARIES:
        assert isinstance(library_of(name), Library)
    for name, place in model_files.LAYERS.items():
        assert hasattr(importlib.import_module(place), name)


def test_training_on_numpy_imports_nothing_above_the_core():
    found = subprocess.run(
        [sys.executable, "-c", CORE], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "xlstm.training.loop" in found
    assert not [name for name in found if name.removeprefix("xlstm.").startswith(ABOVE)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.place)
def test_an_engine_refuses_arrays_of_another_library(entry):
    step = SimpleNamespace(xp=SimpleNamespace(__name__="array_api_compat.jax"))
    assert entry.refuses(step) == f"it runs arrays of {entry.arrays}"
