"""Damaged and hostile files: refused in bounded time and memory, by a short ValueError, TypeError or OSError."""

from __future__ import annotations

import random

import pytest

from tests.attacks import damage
from tests.attacks.bounds import examples, refusal

KINDS = ("model", "language", "forecaster", "classifier", "text", "torch", "weights.h5", "keras", "nxai", "yaml")
KINDS += ("shards", "tirex", "tirex2", "tirex.ckpt", "tirex2.ckpt", "tokenizer")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    found = damage.sound(tmp_path_factory.mktemp("sound"))
    assert tuple(found) == KINDS
    return found


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_are_taken(kinds, tmp_path, name):
    size = damage.write(kinds[name].content, tmp_path)
    assert refusal(lambda: kinds[name].read(tmp_path), size) is None


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(kinds, tmp_path, name):
    refused = 0
    for seed in range(examples(60)):
        content = damage.damaged(kinds[name].content, random.Random(seed))
        size = damage.write(content, tmp_path)
        try:
            refused += refusal(lambda: kinds[name].read(tmp_path), size) is not None
        except BaseException as error:
            error.add_note(f"file {seed} of kind {name}")
            raise
    assert refused > 0
