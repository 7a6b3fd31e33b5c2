"""Language models: from tokens to logits of the next token, and text generated token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import backend_like
from xlstm.arrays.cached import cached_property
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.arrays.random import Seed, generator
from xlstm.cells.activations import soft_cap, soft_cap_bwd, softmax
from xlstm.data.host import Host
from xlstm.layers.announcements import announce
from xlstm.layers.embedding import tokens_of
from xlstm.layers.linear import Linear
from xlstm.layers.module import Backward, Forward, Parts
from xlstm.layers.sequence import Derivatives, Scanned, SequenceLayer, State, WithState
from xlstm.losses import cross_entropy
from xlstm.models.sequence import embedding_before, layer
from xlstm.recurrence.packing import Span

PROMPT = 1024  # the most tokens of a prompt that are read at once


@dataclass(frozen=True)
class xLSTMLanguageModel(SequenceLayer):  # noqa: N801
    """A language model: an embedding, a backbone, and a linear head without bias.

    `forward` takes tokens, whole numbers (B, T), and returns logits (B, T, V) of the token after
    each; `step` takes tokens (B,). Tokens have no gradient, so `backward` returns None in its
    place. A token outside of 0 to V - 1 raises ValueError if the check need not wait for a GPU.
    Padding tokens may have any value.

    Parameters are `embedding.W` (V, D), the backbone's parameters under `backbone.`, and, unless
    `tied`, `head.W` (V, D). The state is the backbone's state. Initial embeddings are N(0, 1), as
    in `torch.nn.Embedding`. If the backbone begins with a norm, or the embedding is `tied`, they
    are N(0, 2 / (5 D)).

    Parameters
    ----------
    backbone : xLSTMStack, xLSTMLarge, sLSTM, mLSTM, LSTM, GRU or RNN
        The layers between embedding and head. They run forward in time and take time first.
    vocab_size : int
        Number V of tokens.
    tied : bool
        Whether the head uses the weights of the embedding.
    logit_cap : float, optional
        Bound of the logits, cap tanh(x / cap).
    embedding_dropout : float
        Rate of dropout of embedded tokens.
    batch_first : bool
        Whether tokens and logits are (B, T, ...) instead of (T, B, ...).

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 2, slstm_at=[1], num_heads=2), vocab_size=11)
    >>> params = model.init(backend="numpy")
    >>> logits, state, saved = model.forward(params, np.ones((3, 13), dtype="int64"))
    >>> logits.shape
    (3, 13, 11)
    >>> tokens, state = model.generate(params, [[1, 2, 3]], 5)
    >>> tokens.shape
    (1, 8)
    """

    backbone: Any
    vocab_size: int
    _: KW_ONLY
    tied: bool = False
    logit_cap: float | None = None
    embedding_dropout: float = 0.0
    batch_first: bool = True

    CHECKS: ClassVar = {"backbone": layer}
    _output_symbol = "V"

    def __post_init__(self) -> None:
        where = "xLSTMLanguageModel"
        super().__post_init__()
        if self.backbone.batch_first:
            raise ValueError(f"{where}: the backbone has batch_first=True, expected time first")
        if self.backbone.directions != ("",):
            raise ValueError(
                f"{where}: the backbone goes in reverse, and so would see what it is to predict"
            )
        if self.tied and self.backbone.output_size != self.backbone.input_size:
            sizes = f"{self.backbone.input_size} to {self.backbone.output_size}"
            raise ValueError(
                f"{where}: the backbone goes from width {sizes}, which a tied head cannot undo"
            )

    @cached_property
    def parts(self) -> Parts:
        embedding = embedding_before(self.backbone, self.vocab_size, self.tied)
        parts = {"embedding": embedding, "backbone": self.backbone}
        return parts if self.tied else {**parts, "head": self.head}

    @cached_property
    def head(self) -> Linear:
        """The linear layer from the backbone to logits."""
        width = self.backbone.output_size
        return Linear(width, self.vocab_size, bias=False, std=(2 / (5 * width)) ** 0.5)

    @property
    def symbols(self) -> int:
        """Number V of tokens."""
        return self.vocab_size

    @property
    def output_size(self) -> int:
        """Number V of tokens, the width of the logits."""
        return self.vocab_size

    @property
    def states(self) -> State:
        """The leaves of the state of the backbone."""
        return self.backbone.states  # type: ignore[no-any-return]

    def run(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        """Run `forward` without checks; x are tokens (T, B)."""
        xp = span.xp
        run = Forward(self, xp, p, span, masked=False)
        x = span.mask(x)
        e = run.dropped("mask", run("embedding", x), self.embedding_dropout)  # (1) (2)
        y, end = run("backbone", e, state)  # (3)
        logits, head = self._head(xp, p, y)  # (4)
        run.keep(head=head, logits=None if self.logit_cap is None else logits)
        return logits, end, run.kept

    def run_bwd(
        self, p: Params, saved: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> Derivatives:
        xp = span.xp
        run = Backward(self, xp, p, saved, span, masked=False)
        dy = span.zeros(self.vocab_size, p) if dy is None else span.mask(dy)
        if self.logit_cap is not None:
            capped = saved["logits"]  # also in place of its argument, which is not used
            dy = fuse(xp, soft_cap_bwd, dy, capped, capped, cap=self.logit_cap)
        head, dy = self.head.apply_bwd(xp, self._head_weights(p), saved["head"], dy)  # (4)
        if not self.tied:
            announce(p, {"head.W": head["W"]})
        dx, start = run("backbone", dy, dstate)  # (3)
        run("embedding", run.dropped("mask", dx))  # (2) (1)
        grads = run.grads | {"head.W": head["W"]}
        if self.tied:
            grads["embedding.W"] = grads["embedding.W"] + head["W"]
        return grads, None, start

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> WithState:
        e = Forward(self, xp, p)("embedding", x)
        y, end = self.backbone.run_step(xp, self.below("backbone", p), e, state)
        return self._head(xp, p, y)[0], end

    def loss(self, logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Return the mean cross-entropy of the targets in nats, and its gradient with respect to
        the logits.

        Parameters
        ----------
        logits : array (B, T, V)
        targets : whole numbers (B, T)
        mask : bool array, optional
            Targets that count.

        Returns
        -------
        loss : 0-d array
        dlogits : array (B, T, V)
        """
        return cross_entropy(logits, targets, mask)

    def generate(
        self, params: Params, prompt: Any, max_tokens: int, *, state: Any = None, **options: Any
    ) -> tuple[Host, Any]:
        """Continue a prompt with sampled tokens; memory does not grow with the text.

        Parameters
        ----------
        params : dict
        prompt : whole numbers (B, P)
            The tokens to continue; P is 1 or more.
        max_tokens : int
            The most tokens to add.
        state : optional
            The state before the prompt, as an earlier call returned it; by default the initial
            state.
        **options
            `temperature`, `top_k`, `top_p`, `seed` and `stop`, as for `stream`.

        Returns
        -------
        tokens : numpy array (B, P + n)
            The prompt and the added tokens, on the host.
        state : tuple
            The state before the last token. To continue the text, give this state and the last
            token.

        Raises
        ------
        ValueError, TypeError
            The prompt is empty or has tokens outside of the vocabulary, or an option is out of
            range.
        """
        tokens = [self._prompt(prompt)]
        for token, after in self.stream(params, prompt, max_tokens, state=state, **options):
            tokens.append(token[:, None])
            state = after
        return np.concatenate(tokens, axis=1), state

    def stream(
        self,
        params: Params,
        prompt: Any,
        max_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: Seed = 0,
        stop: int | None = None,
        state: Any = None,
    ) -> Iterator[tuple[Host, Any]]:
        """Yield the continuation of a prompt token by token: a token (B,), and the state before it.

        Parameters
        ----------
        params, prompt, max_tokens, state
            As for `generate`.
        temperature : float
            Divisor of the logits; 0 always takes the likeliest token.
        top_k : int, optional
            Draw only from the k likeliest tokens.
        top_p : float, optional
            Draw only from the likeliest tokens that together have this probability (Holtzman et al.
            2020).
        seed : int or numpy.random.Generator
            Seed of the draws.
        stop : int, optional
            The token that ends a sequence. An ended sequence repeats it until all sequences have
            ended.

        Yields
        ------
        token : numpy array (B,)
        state : tuple

        Raises
        ------
        ValueError, TypeError
            As for `generate`.
        """
        sampler = Sampler(temperature, top_k, top_p, seed)
        max_tokens = checks.count("generate", "max_tokens", max_tokens)
        params = from_foreign("generate", params)
        self.namespace(params, {})
        host = self._prompt(prompt)
        stop = checks.optional(checks.whole(0, self.vocab_size - 1))("generate", "stop", stop)
        backend = backend_like(next(iter(params.values())))
        xp, params, tokens, state = self._agree(params, backend.asarray(host), "state", state)
        run = Forward(self, xp, params)
        below = self.below("backbone", params)
        for first in range(0, tokens.shape[1], PROMPT):  # a piece at a time, to save memory
            some = tokens[:, first : min(first + PROMPT, tokens.shape[1])].T
            y, state = self.backbone(below, run("embedding", some), state)
        logits = self._head(xp, params, y[-1, ...])[0]

        def drawn(logits: Array, state: Any) -> Iterator[tuple[Host, Any]]:
            over = np.zeros(len(host), dtype=bool)
            for k in range(max_tokens):
                token = sampler.draw(to_numpy(logits))
                if stop is not None:
                    token = np.where(over, stop, token)
                    over |= token == stop
                yield token, state
                if k + 1 == max_tokens or over.all():
                    return
                logits, state = self.step(params, backend.asarray(token), state)

        return drawn(logits, state)

    def _prompt(self, prompt: Any) -> Host:
        if hasattr(prompt, "shape") and not isinstance(prompt, type | np.ndarray):
            prompt = to_numpy(prompt)  # may come from another library
        host = checks.host("generate", "the prompt", prompt, "shape (B, P)")
        if host.ndim != 2 or 0 in host.shape:
            raise ValueError(
                f"generate: the prompt has shape {host.shape}, expected (B, P), P of 1 or more"
            )
        return tokens_of("generate", "the prompt", np, host, self.vocab_size)  # type: ignore[no-any-return]

    def _head_weights(self, params: Params) -> Params:
        return {"W": params["embedding.W" if self.tied else "head.W"]}

    def _head(self, xp: Namespace, params: Params, y: Array) -> tuple[Array, Any]:
        """Return the logits of y, and the values that the head saves."""
        logits, saved = self.head.apply(xp, self._head_weights(params), y)
        if self.logit_cap is not None:
            logits = fuse(xp, soft_cap, logits, cap=self.logit_cap)
        return logits, saved


class Sampler:
    """A sampler of tokens, with the options of `xLSTMLanguageModel.generate`.

    Raises
    ------
    ValueError, TypeError
        An option is out of range.
    """

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, seed: Seed
    ) -> None:
        temperature = checks.non_negative("generate", "temperature", temperature)
        top_k = checks.optional(checks.size)("generate", "top_k", top_k)
        top_p = checks.optional(checks.above_0)("generate", "top_p", top_p)
        if top_p is not None and top_p > 1:
            raise ValueError(f"generate: top_p is {top_p}, expected at most 1")
        if temperature == 0 and (top_k is not None or top_p is not None):
            raise ValueError(
                "generate: temperature 0 takes the likeliest token, top_k and top_p exclude it"
            )
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.rng = generator(seed, where="generate")

    def draw(self, logits: Host) -> Host:
        """Return a token for each row of logits (B, V), as an array (B,).

        Raises
        ------
        FloatingPointError
            A logit is NaN, or the largest logit of a row is infinite.
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
        with np.errstate(over="ignore"):  # -inf is allowed
            p: Host = softmax(np, above / self.temperature)
        order = np.argsort(-p, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=-1)
        if self.top_k is not None:
            ranked[:, self.top_k :] = 0.0
        if self.top_p is not None:
            ranked /= ranked.sum(axis=-1, keepdims=True)
            # The token that crosses the border is kept, so that there is always one.
            ranked[np.cumsum(ranked, axis=-1) - ranked >= self.top_p] = 0.0
        np.put_along_axis(p, order, ranked, axis=-1)
        return np.asarray(p / p.sum(axis=-1, keepdims=True))
