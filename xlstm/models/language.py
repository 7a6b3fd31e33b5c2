"""Language models: tokens in, logits of the next token out; and text from them, token by token."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Array, Namespace, Params, Seed, backend_like, check_library, to_numpy
from xlstm.cells.activations import soft_cap, soft_cap_bwd
from xlstm.layers.backbone import Backbone
from xlstm.layers.base import masks
from xlstm.layers.embedding import Embedding
from xlstm.layers.linear import Linear
from xlstm.layers.part import Part
from xlstm.layers.sequence import Span, layer
from xlstm.layers.stack import dropout
from xlstm.models.sampling import Sampler
from xlstm.recurrence.packing import Packing
from xlstm.training.losses import cross_entropy

PROMPT = 1024  # tokens of a prompt that are read at once


class SavedLanguage(NamedTuple):
    """What `xLSTMLanguageModel.forward` keeps."""

    tokens: Array  # (T, B)
    mask: Array | None  # of dropout
    backbone: Any
    y: Array  # (T, B, D)
    shape: tuple[int, ...]  # of the logits, (T, B, V)
    logits: Array | None  # where they are capped: do not change those before `backward`


@dataclass(frozen=True)
class xLSTMLanguageModel(Part):  # noqa: N801
    """An embedding, a backbone, and a linear head without bias.

    Parameters are `embedding.W` (V, D), those of the backbone under `backbone.`, and unless `tied` `head.W` (V, D).
    The state is that of the backbone. Initial embeddings are N(0, 1), as of `torch.nn.Embedding`; where the backbone
    begins with a norm, or the embedding is `tied`, they are N(0, 2 / (5 D)).

    Parameters
    ----------
    backbone : xLSTMStack, xLSTMLarge, sLSTM, mLSTM, LSTM, GRU or RNN
        What goes from (T, B, D) to (T, B, D); not in reverse, and with time first.
    vocab_size : int
        Number V of tokens.
    tied : bool
        The head is the embedding.
    logit_cap : float, optional
        Bound of the logits, cap tanh(x / cap).
    embedding_dropout : float
        Rate of dropout of embedded tokens.
    batch_first : bool
        Tokens and logits are (B, T, ...), or else (T, B, ...).

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

    def __post_init__(self) -> None:
        where = "xLSTMLanguageModel"
        checks.fields(
            self,
            backbone=layer,
            vocab_size=checks.size,
            tied=checks.flag,
            logit_cap=checks.optional(checks.divisor),
            embedding_dropout=checks.rate,
            batch_first=checks.flag,
        )
        if self.backbone.batch_first:
            raise ValueError(f"{where}: the backbone has batch_first=True, expected time first")
        if getattr(self.backbone, "directions", ("",)) != ("",):
            raise ValueError(f"{where}: the backbone goes in reverse, and so would see what it is to predict")
        if self.tied and self.backbone.output_size != self.backbone.input_size:
            sizes = f"{self.backbone.input_size} to {self.backbone.output_size}"
            raise ValueError(f"{where}: the backbone goes from width {sizes}, which a tied head cannot undo")

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """Embedding, backbone and head."""
        std = None if self._small else 1.0
        found = {
            "embedding": Embedding(self.vocab_size, self.backbone.input_size, std=std),
            "backbone": self.backbone,
        }
        return found if self.tied else {**found, "head": self.head}

    @property
    def _small(self) -> bool:
        """Whether embeddings are small at first: a norm follows them, or they are the head."""
        return self.tied or isinstance(self.backbone, Backbone)

    @functools.cached_property
    def head(self) -> Linear:
        """The linear layer from the backbone to logits."""
        width = self.backbone.output_size
        return Linear(width, self.vocab_size, bias=False, std=(2 / (5 * width)) ** 0.5)

    @property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        return self.embedding_dropout > 0 or self.backbone.random

    def forward(
        self,
        params: Params,
        tokens: Array,
        state: Any = None,
        train: bool = True,
        *,
        lengths: Any = None,
        seed: Seed | None = None,
        keep: bool | None = None,
    ) -> tuple[Array, Any, SavedLanguage | None]:
        """Logits of the token after each of tokens (B, T): (B, T, V); arguments and errors as of `LSTM.forward`.

        Raises
        ------
        ValueError
            There is no token, or one that is not from 0 to V - 1; these are looked for where that costs no wait for a
            GPU. Past the end of a sequence any will do.
        """
        xp, tokens = self._check(params, tokens, 2)
        tokens = self._swap(xp, tokens)
        T, B = tokens.shape
        if T == 0:
            raise ValueError("xLSTMLanguageModel: the context has no tokens, expected 1 or more")
        if lengths is not None:
            tokens = Span(xp, Packing.of("xLSTMLanguageModel", lengths, T, B), tokens).mask(tokens, 0)
        self._within(self._swap(xp, tokens), "tokens")
        keep = checks.keeps("xLSTMLanguageModel", train, keep)
        rng = masks("xLSTMLanguageModel", "dropout draws", seed, bool(train and self.random))
        x = self.parts["embedding"].apply(xp, self.below("embedding", params), tokens)
        mask = dropout(rng, self.embedding_dropout, tuple(x.shape), x)
        y, state, saved = self.backbone.forward(
            self.below("backbone", params),
            x if mask is None else x * mask,
            state,
            train,
            lengths=lengths,
            seed=rng,
            keep=keep,
        )
        logits = self._head(xp, params, y)
        shape = tuple(logits.shape)
        kept = (
            SavedLanguage(tokens, mask, saved, y, shape, None if self.logit_cap is None else logits) if keep else None
        )
        return self._swap(xp, logits), state, kept

    def backward(
        self, params: Params, saved: SavedLanguage, dlogits: Array, dstate: Any = None
    ) -> tuple[Params, None, Any]:
        """Gradients of params and of the initial state from those of the logits and of the final state.

        Between them is None, in the place of a gradient by tokens.
        """
        if not isinstance(saved, SavedLanguage):
            raise TypeError("xLSTMLanguageModel: backward needs what forward saved, and train=False saves nothing")
        xp = self.namespace(params, {"dlogits": dlogits})
        T, B, V = saved.shape
        outer = {"B": B, "T": T} if self.batch_first else {"T": T, "B": B}
        checks.shape("xLSTMLanguageModel", "dlogits", dlogits, {**outer, "V": V})
        dlogits = self._swap(xp, dlogits)
        if self.logit_cap is not None:
            dlogits = soft_cap_bwd(xp, dlogits, None, saved.logits, self.logit_cap)
        found, dy = self.head.apply_bwd(xp, self._head_weights(params), saved.y, dlogits)
        grads, dx, dstate = self.backbone.backward(self.below("backbone", params), saved.backbone, dy, dstate)
        dx = dx if saved.mask is None else dx * saved.mask
        dW = self.parts["embedding"].apply_bwd(xp, saved.tokens, dx)["W"]
        if self.tied:
            dW = dW + found["W"]
        every = {"embedding.W": dW, "head.W": found["W"], **{f"backbone.{name}": g for name, g in grads.items()}}
        return {name: every[name] for name in params}, None, dstate

    def step(self, params: Params, tokens: Array, state: Any = None) -> tuple[Array, Any]:
        """One token of each sequence, (B,), and the state before -> logits of the next, (B, V), and the state after."""
        xp, tokens = self._check(params, tokens, 1)
        self._within(tokens, "tokens")
        x = self.parts["embedding"].apply(xp, self.below("embedding", params), tokens)
        y, state = self.backbone.step(self.below("backbone", params), x, state)
        return self._head(xp, params, y), state

    def loss(self, logits: Array, targets: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Mean cross-entropy of the targets in nats, and its gradient by the logits; see `losses.cross_entropy`."""
        return cross_entropy(logits, targets, mask)

    def generate(
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
    ) -> tuple[np.ndarray[Any, Any], Any]:
        """Go on from a prompt; memory does not grow with the text.

        Parameters
        ----------
        params : dict
        prompt : whole numbers (B, P)
            P of 1 or more.
        max_tokens : int
            How many tokens are added, at most.
        temperature : float
            Logits are divided by it; 0 always takes the likeliest token.
        top_k : int, optional
            Draw from the k likeliest tokens only.
        top_p : float, optional
            Draw from the likeliest tokens that together have this probability (Holtzman et al. 2020).
        seed : int or numpy.random.Generator
            Of what is drawn.
        stop : int, optional
            A token after which a sequence ends: it is then repeated, and all ends when every sequence has.
        state : optional
            State before the prompt, as from a call before; by default that before the first step.

        Returns
        -------
        tokens : numpy array (B, P + n)
            The prompt and what was added, on the host.
        state : tuple
            State after all but the last of them, for going on from that.

        Raises
        ------
        ValueError, TypeError
            The prompt is empty or has tokens the model does not know, or an option is out of range.
        """
        found = [self._prompt(prompt)]
        for token, after in self.stream(
            params,
            prompt,
            max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            state=state,
        ):
            found.append(token[:, None])
            state = after
        return np.concatenate(found, axis=1), state

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
    ) -> Iterator[tuple[np.ndarray[Any, Any], Any]]:
        """As `generate`, one token (B,) and the state before it at a time."""
        sampler = Sampler(temperature, top_k, top_p, seed)
        max_tokens = checks.count("generate", "max_tokens", max_tokens)
        self.namespace(params, {})
        host = self._prompt(prompt)
        stop = checks.optional(checks.integer)("generate", "stop", stop)
        if stop is not None and not 0 <= stop < self.vocab_size:
            raise ValueError(f"generate: stop is {stop}, expected a token from 0 to {self.vocab_size - 1}")
        backend = backend_like(next(iter(params.values())))
        logits, state = self._read(params, backend.asarray(host), state)
        return self._go_on(params, logits, state, max_tokens, sampler, stop, backend)

    def _read(self, params: Params, tokens: Array, state: Any) -> tuple[np.ndarray[Any, Any], Any]:
        """Logits after a prompt (B, P), on the host, and the state; so many tokens at a time as memory is to hold."""
        xp, tokens = self._check(params, tokens, 2)
        embedding, below = self.parts["embedding"], self.below("backbone", params)
        for first in range(0, tokens.shape[1], PROMPT):
            some = tokens[:, first : min(first + PROMPT, tokens.shape[1])].T
            x = embedding.apply(xp, self.below("embedding", params), some)
            y, state, _ = self.backbone.forward(below, x, state, train=False)
        return to_numpy(self._head(xp, params, y[-1, ...])), state

    def _go_on(
        self, params: Params, logits: Any, state: Any, most: int, sampler: Sampler, stop: int | None, backend: Any
    ) -> Iterator[tuple[np.ndarray[Any, Any], Any]]:
        over = np.zeros(logits.shape[0], dtype=bool)
        for k in range(most):
            token = sampler.draw(logits)
            if stop is not None:
                token = np.where(over, stop, token)
                over |= token == stop
            yield token, state
            if k + 1 == most or (stop is not None and over.all()):
                return
            found, state = self.step(params, backend.asarray(token), state)
            logits = to_numpy(found)

    def _prompt(self, prompt: Any) -> np.ndarray[Any, Any]:
        host = checks.host("generate", "the prompt", prompt, "shape (B, P)")
        if host.ndim != 2 or 0 in host.shape:
            raise ValueError(f"generate: the prompt has shape {host.shape}, expected (B, P), P of 1 or more")
        if host.dtype.kind not in "iu":  # Python's own may be too large for any
            raise TypeError(f"generate: the prompt has dtype {host.dtype}, expected whole numbers of at most 64 bits")
        self._within(host, "the prompt")
        return host.astype(np.int64)

    def _check(self, params: Params, tokens: Array, ndim: int) -> tuple[Namespace, Array]:
        """The namespace of the parameters, and tokens as int64, once both are checked but for values."""
        where = "xLSTMLanguageModel"
        xp = self.namespace(params, {})
        check_library(where, "tokens", xp, tokens)
        if not xp.isdtype(tokens.dtype, "integral"):
            raise TypeError(f"{where}: tokens has dtype {tokens.dtype}, expected whole numbers")
        if tokens.ndim != ndim:
            expected = "(B,)" if ndim == 1 else "(B, T)" if self.batch_first else "(T, B)"
            raise ValueError(f"{where}: tokens has shape {tuple(tokens.shape)}, expected {expected}")
        return xp, xp.astype(tokens, xp.int64)

    def _within(self, tokens: Array, name: str) -> None:
        """Raise ValueError unless tokens are from 0 to V - 1; to look at those on a GPU would be to wait for it."""
        if not isinstance(tokens, np.ndarray):
            return
        bad = np.argwhere((tokens < 0) | (tokens >= self.vocab_size))
        if bad.size:
            at = tuple(int(k) for k in bad[0])
            raise ValueError(
                f"xLSTMLanguageModel: {name} has {tokens[at]} at {at}, expected 0 to {self.vocab_size - 1}, "
                f"as vocab_size is {self.vocab_size}"
            )

    def _head_weights(self, params: Params) -> Params:
        return {"W": params["embedding.W" if self.tied else "head.W"]}

    def _head(self, xp: Namespace, params: Params, y: Array) -> Array:
        logits, _ = self.head.apply(xp, self._head_weights(params), y)
        return logits if self.logit_cap is None else soft_cap(xp, logits, self.logit_cap)

    def _swap(self, xp: Namespace, array: Array) -> Array:
        """Between the user's order of time and batch and (T, B, ...)."""
        return xp.permute_dims(array, (1, 0, *range(2, array.ndim))) if self.batch_first else array
