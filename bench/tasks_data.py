"""Sequences of the formal-language tasks, drawn and solved in NumPy: parity, modular arithmetic,
associative recall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xlstm.data import Batch

MODULUS = 5
PLUS, MINUS, TIMES = range(MODULUS, MODULUS + 3)  # tokens after those of the digits
PAIRS = 4  # of keys and values
KEYS = 64  # and as many values: tokens from KEYS on
REPEATS = 4  # queries of each key while training; 1 in Zoology, and in tests

Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def parity(rng: np.random.Generator, B: int, T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits (T, B); after each, whether the number of ones so far is odd; and that every answer
    counts.
    """
    x = rng.integers(0, 2, (T, B))
    return x, np.cumsum(x, axis=0) % 2, np.ones((T, B), dtype=bool)


def arithmetic(
    rng: np.random.Generator, B: int, T: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits with + - * between them (T, B); after each digit the value so far modulo 5; and where
    digits are.

    Products come before sums, as in Deletang et al. 2023, "modular arithmetic (simple)".
    """
    x = rng.integers(0, MODULUS, (T, B))
    x[1::2] = rng.integers(PLUS, TIMES + 1, x[1::2].shape)
    y = np.zeros_like(x)
    total = np.zeros(B, dtype=x.dtype)
    term = x[0]  # terms that are over, and the one that a product may yet extend
    y[0] = term
    for t in range(2, T, 2):
        operator = x[t - 1]
        digit = x[t]
        total = np.where(operator == TIMES, total, total + term)
        term = (
            np.where(operator == TIMES, term * digit, np.where(operator == PLUS, digit, -digit))
            % MODULUS
        )
        y[t] = (total + term) % MODULUS
    mask = np.zeros((T, B), dtype=bool)
    mask[::2] = True
    return x, y, mask


def recall(
    rng: np.random.Generator, B: int, T: int, repeats: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """4 keys, each followed by its value, then queries of the keys among other tokens (T, B); the
    values; and where.

    Multi-query associative recall of Arora et al. 2023, Zoology. Every key is asked `repeats`
    times, at random places; between queries are random tokens that are none of the keys.
    """
    order = rng.permuted(np.tile(np.arange(KEYS), (B, 1)), axis=1)
    rows = np.arange(B)[:, None]
    keys = order[:, :PAIRS]
    others = order[:, PAIRS:]
    values = KEYS + rng.permuted(np.tile(np.arange(KEYS), (B, 1)), axis=1)[:, :PAIRS]
    fillers = np.concatenate((others, np.tile(np.arange(KEYS, 2 * KEYS), (B, 1))), axis=1)
    x = fillers[rows, rng.integers(0, fillers.shape[1], (B, T))]
    start = 2 * PAIRS
    x[:, 0:start:2] = keys
    x[:, 1:start:2] = values
    places = rng.permuted(np.tile(np.arange(start, T), (B, 1)), axis=1)[:, : PAIRS * repeats]
    y = np.zeros_like(x)
    mask = np.zeros(x.shape, dtype=bool)
    x[rows, places] = np.tile(keys, repeats)
    y[rows, places] = np.tile(values, repeats)
    mask[rows, places] = True
    return x.T.copy(), y.T.copy(), mask.T.copy()


def recall_often(
    rng: np.random.Generator, B: int, T: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`recall` with more queries of each key: more to learn from in a sequence."""
    return recall(rng, B, T, REPEATS)


@dataclass(frozen=True)
class Task:
    """A task: how it is drawn, and of what lengths.

    Where `prefixes`, an answer is known after every prefix of a sequence that is one itself, so
    that a test of the longest sequence tests all lengths; elsewhere each length is tested by
    sequences of its own.
    """

    name: str
    vocab_size: int
    chance: float  # accuracy of guessing
    draw: Draw
    draw_test: Draw
    shortest: int
    longest: int  # while training
    tests: tuple[int, ...]  # lengths that are drawn for tests
    prefixes: bool

    def batch(self, rng: np.random.Generator, B: int, limit: int) -> Batch:
        """For one step of training: random lengths from the shortest to `limit`."""
        x, y, mask = self.draw(rng, B, limit)
        if self.shortest == limit:
            return Batch(x, y, mask, True)
        lengths = rng.integers(self.shortest, limit + 1, B)
        return Batch(x, y, mask & (np.arange(limit)[:, None] < lengths), True, lengths)


TASKS = {
    "parity": Task("parity", 2, 1 / 2, parity, parity, 3, 40, (256,), True),
    "arithmetic": Task(
        "arithmetic", MODULUS + 3, 1 / MODULUS, arithmetic, arithmetic, 3, 40, (256,), True
    ),
    "recall": Task(
        "recall", 2 * KEYS, 1 / KEYS, recall_often, recall, 64, 64, (64, 128, 256), False
    ),
}
