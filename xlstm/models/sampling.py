"""Tokens from logits, on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.random import Seed, generator
from xlstm.cells.activations import softmax

Host = np.ndarray[Any, Any]


class Sampler:
    """Draws tokens; the options are those of `xLSTMLanguageModel.generate`.

    Raises
    ------
    ValueError, TypeError
        An option is out of range.
    """

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None, seed: Seed) -> None:
        temperature = checks.non_negative("generate", "temperature", temperature)
        top_k = checks.optional(checks.size)("generate", "top_k", top_k)
        top_p = checks.optional(checks.above_0)("generate", "top_p", top_p)
        if top_p is not None and top_p > 1:
            raise ValueError(f"generate: top_p is {top_p}, expected at most 1")
        if temperature == 0 and (top_k is not None or top_p is not None):
            raise ValueError("generate: temperature 0 takes the likeliest token, top_k and top_p exclude it")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.rng = generator(seed, where="generate")

    def draw(self, logits: Host) -> Host:
        """Draw one token for each row of logits (B, V): (B,).

        Raises
        ------
        FloatingPointError
            A logit is not a number, or the largest of a row is infinite.
        """
        if not np.isfinite(logits.max(axis=-1)).all():
            raise FloatingPointError("generate: a logit is not finite")
        if self.temperature == 0:
            return np.asarray(np.argmax(logits, axis=-1))
        p = self.probabilities(logits)
        below = np.cumsum(p, axis=-1)
        drawn = self.rng.random((p.shape[0], 1)) * below[:, -1:]
        return np.asarray(np.minimum((below <= drawn).sum(axis=-1), p.shape[1] - 1))

    def probabilities(self, logits: Host) -> Host:
        """Return the probability of each token, (B, V)."""
        above = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        with np.errstate(over="ignore"):  # -inf will do
            p: Host = softmax(np, above / self.temperature)
        order = np.argsort(-p, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=-1)
        if self.top_k is not None:
            ranked[:, self.top_k :] = 0.0
        if self.top_p is not None:
            ranked /= ranked.sum(axis=-1, keepdims=True)
            # The token that crosses the border is among them, so that there is always one.
            ranked[np.cumsum(ranked, axis=-1) - ranked >= self.top_p] = 0.0
        np.put_along_axis(p, order, ranked, axis=-1)
        return np.asarray(p / p.sum(axis=-1, keepdims=True))
