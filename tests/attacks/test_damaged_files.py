"""Damaged and hostile files: refused in bounded time and memory, by a short ValueError, TypeError
or OSError.
"""

from __future__ import annotations

import random

import pytest

from tests.attacks import damage
from tests.attacks.bounds import examples, refusal


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    return damage.sound(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("name", damage.READERS)
def test_damaged_files(contents, tmp_path, name):
    """And that the sound ones are taken."""
    refused = []
    for seed in range(1 + examples(20)):
        content = damage.damaged(contents[name], random.Random(seed)) if seed else contents[name]
        size = damage.write(content, tmp_path)
        try:
            refused.append(refusal(lambda: damage.READERS[name](tmp_path), size) is not None)
        except BaseException as error:
            error.add_note(f"file {seed} of kind {name}")
            raise
    assert not refused[0]
    assert any(refused)
