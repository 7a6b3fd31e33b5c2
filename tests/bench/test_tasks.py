"""The tasks are what they say, and accuracy is scaled by chance."""

import numpy as np
import pytest

from bench import tasks, tasks_data
from bench.tasks_data import KEYS, MODULUS, PAIRS, TASKS

SIGNS = {
    **{digit: str(digit) for digit in range(MODULUS)},
    **dict(zip(range(MODULUS, MODULUS + 3), "+-*", strict=True)),
}


def test_arithmetic_is_what_python_makes_of_it(rng):
    T = 15
    x, y, mask = tasks_data.arithmetic(rng, 50, T)
    assert mask[::2].all()
    assert not mask[1::2].any()
    for b in range(50):
        text = "".join(SIGNS[token] for token in x[:, b].tolist())
        for t in range(0, T, 2):
            assert y[t, b] == eval(text[: t + 1]) % MODULUS, text[: t + 1]


@pytest.mark.parametrize("repeats", [1, 4])
def test_recall_asks_for_what_was_said(rng, repeats):
    T = 64
    x, y, mask = tasks_data.recall(rng, 30, T, repeats)
    assert (mask.sum(axis=0) == PAIRS * repeats).all()
    assert not mask[: 2 * PAIRS].any()
    for b in range(30):
        pairs = dict(
            zip(x[0 : 2 * PAIRS : 2, b].tolist(), x[1 : 2 * PAIRS : 2, b].tolist(), strict=True)
        )
        assert len(pairs) == len(set(pairs.values())) == PAIRS
        assert max(pairs) < KEYS <= min(pairs.values())
        asked = [t for t in range(2 * PAIRS, T) if x[t, b] in pairs]
        assert asked == np.flatnonzero(mask[:, b]).tolist()
        assert [pairs[key] for key in x[asked, b].tolist()] == y[asked, b].tolist()
        assert sorted(x[asked, b].tolist()) == sorted(list(pairs) * repeats)


def test_accuracy_is_scaled_by_chance():
    found = tasks.summary({3: 1.0, 40: 0.8, 41: 0.6, 256: 0.2}, TASKS["arithmetic"])
    assert found == pytest.approx(
        {"trained": 0.9, "longer": 0.4, "trained, scaled": 0.875, "longer, scaled": 0.25}
    )
