"""The estimator of text: a language model of characters, bytes or tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import DType
from xlstm.data import reading, text
from xlstm.data.batches import Streams
from xlstm.estimators import base
from xlstm.estimators.base import Estimator, check_warm_start, layer_options
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import layer_of
from xlstm.training import Callback, Interrupted, Terminated, Trained, checkpoint, evaluate
from xlstm.training.schedules import cosine

KIND = "text model"
VOCABULARY = "vocabulary"  # the array of a model file with the alphabet, or the content of the tokenizer's file
TOKENS = ("characters", "bytes")
LEAST = 2  # tokens of a text that can be learnt from or judged
CHECKS: dict[str, checks.Kind] = {
    **base.CHECKS,
    **dict.fromkeys(("embedding_size", "length"), checks.size),
    "steps": checks.count,
    "every": checks.optional(checks.count),
    "schedule": checks.choice(("constant", "cosine")),
}


class TextModel(Estimator):
    """A language model that learns from a text, and writes more of it.

    The text is read as parallel streams whose state is carried on (truncated backpropagation through time). The last
    part is held out; the model predicts each of its tokens from those before it.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "slstm", "mlstm", "xlstm"}, or the name of a registered cell
    hidden_size, embedding_size, num_layers : int
        In "xlstm" the embedding is as wide as the blocks.
    dropout : float
        Rate of dropout of embeddings and between layers.
    options : dict, optional
        Further options of the layer.
    tokens : "characters", "bytes", or path
        Tokens are the characters of the text, the bytes of its UTF-8, or those of a tokenizer.json.
    batch_size : int
        Number of parallel streams.
    length : int
        Tokens of each stream in a batch.
    steps : int
        Batches in all.
    learning_rate, weight_decay : float
        Options of AdamW.
    schedule : {"constant", "cosine"}
        Whether the learning rate stays, or goes down to a tenth along half a cosine.
    clip : float
        Limit of the global norm of the gradient.
    averaging : float
        Decay of the moving average of the weights that is judged and kept.
    validation_fraction : float
        Share of the text, at its end, that is held out; with 0 nothing is.
    seed : int
        Decides the initial weights and the masks of dropout.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training, on a GPU.
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}
    warm_start : bool
        Let `fit` go on from the weights and the vocabulary that it found before.
    callbacks : list of Callback
        Callbacks of `training.train`.
    checkpoints : path, optional
        The folder for checkpoints and the history.
    every : int, optional
        Batches between two checkpoints; by default one after each pass over the text.
    resume : bool
        Go on from the newest checkpoint there.

    Attributes
    ----------
    codec_ : object
        It has `encode(text)` and `decode(tokens)`.
    tokens_ : str or path
        The `tokens` of the codec.
    params_ : dict of str to array
        The weights.
    model_ : xLSTMLanguageModel
    trained_ : Trained
        How training went.

    Examples
    --------
    >>> from xlstm.estimators import TextModel
    >>> model = TextModel(hidden_size=16, steps=30, batch_size=4, length=16, backend="numpy")
    >>> model.fit("to be or not to be, that is the question: " * 20).generate("to be", 5)[:5]
    'to be'
    """

    _takes = ("string",)

    def __init__(
        self,
        *,
        cell: str = "lstm",
        hidden_size: int = 256,
        embedding_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        options: dict[str, Any] | None = None,
        tokens: str | os.PathLike[str] = "characters",
        batch_size: int = 64,
        length: int = 128,
        steps: int = 800,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        clip: float = 1.0,
        averaging: float = 0.0,
        validation_fraction: float = 0.1,
        seed: int = 0,
        precision: str | None = None,
        backend: str | Backend | None = None,
        dtype: DType = "float32",
        warm_start: bool = False,
        callbacks: Iterable[Callback] = (),
        checkpoints: str | os.PathLike[str] | None = None,
        every: int | None = None,
        resume: bool = False,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.options = options
        self.tokens = tokens
        self.batch_size = batch_size
        self.length = length
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.clip = clip
        self.averaging = averaging
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.precision = precision
        self.backend = backend
        self.dtype = dtype
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.checkpoints = checkpoints
        self.every = every
        self.resume = resume

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from a text.

        Parameters
        ----------
        X : str, or list of str
            A text, or texts that follow each other.
        y : None
            It is not used.

        Returns
        -------
        TextModel
            Itself.

        Raises
        ------
        ValueError, TypeError
            A parameter is out of range, the text is too short, or X is no text.
        FloatingPointError
            Training diverged.
        Interrupted, Terminated
            A signal ended training after a step; the model has what was best so far.
        """
        where = type(self).__name__
        for name, kind in CHECKS.items():
            kind(where, name, getattr(self, name))
        whole = _text(where, X)
        again = self.warm_start and self.__sklearn_is_fitted__()
        if again and self.tokens != self.tokens_:
            shown = f"tokens is {checks.shown(self.tokens)}, expected those of before, {checks.shown(self.tokens_)}"
            raise ValueError(f"{where}: {shown}, or warm_start=False")
        codec = self.codec_ if again else self._codec(whole)
        numbers = np.array(codec.encode(whole), dtype=np.int64)
        held = int(self.validation_fraction * len(numbers))
        need = self.batch_size * self.length + 1
        if len(numbers) - held < need:
            raise ValueError(
                f"{where}: the text has {len(numbers) - held} tokens to learn from, expected {need} or more: "
                f"batch_size times length, and one"
            )
        fitted, kept = numbers[: len(numbers) - held], numbers[len(numbers) - held :]
        model, home = self._model(_size(codec)), backend_of(self.backend, self.dtype)
        if again:
            check_warm_start(where, self.model_.backbone, model.backbone)
        start = self.params_ if again else model.init(self.seed, home)
        rate = self.learning_rate
        try:
            trained = base.learn(
                self,
                model,
                start,
                Streams(fitted[:-1], fitted[1:], self.batch_size, self.length),
                home,
                None if self.schedule == "constant" else cosine(rate, self.steps, rate / 10),
                steps=self.steps,
                callbacks=self.callbacks,
                checkpoints=self.checkpoints,
                every=self.every,
                resume=self.resume,
            )
        except (Interrupted, Terminated) as error:
            self._take(codec, model, error.trained, kept)
            raise
        self._take(codec, model, trained, kept)
        return self

    def nats(self, X: Any) -> float:
        """Return the mean of -log p of a token given those before it, in nats; `X` as for `fit`.

        Raises
        ------
        ValueError, TypeError
            The text has fewer than two tokens or a character that is not known, or is no text.
        """
        self._check_fitted()
        return self._nats(np.array(self.codec_.encode(_text(type(self).__name__, X)), dtype=np.int64))

    def perplexity(self, X: Any) -> float:
        """Return the perplexity of a text by token, exp of `nats`."""
        return math.exp(self.nats(X))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of log p of a token, the negative of `nats`: more is better."""
        return -self.nats(X)

    def stream(
        self,
        prompt: str,
        max_tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the text that follows a prompt, piece by piece.

        Parameters
        ----------
        prompt : str
            A character at least.
        max_tokens : int
        temperature, top_k, top_p, seed
            As for `xLSTMLanguageModel.generate`.

        Yields
        ------
        str

        Raises
        ------
        ValueError, TypeError
            The prompt is empty or has a character that is not known, or an option is out of range.
        """
        self._check_fitted()
        numbers = self.codec_.encode(_sound("TextModel", "prompt", checks.text("TextModel", "prompt", prompt)))
        if not numbers:
            raise ValueError(f"TextModel: prompt is {checks.shown(prompt)}, expected a token at least")
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        with np.errstate(over="ignore", invalid="ignore"):  # the sampler names what is not finite
            drawn = self.model_.stream(self.params_, [numbers], max_tokens, **options)
        return _pieces(text.Stream(self.codec_), drawn)

    def generate(self, prompt: str, max_tokens: int = 200, **options: Any) -> str:
        """Return a prompt and the text that follows it; the options are those of `stream`."""
        return prompt + "".join(self.stream(prompt, max_tokens, **options))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, vocabulary and parameters to a safetensors file, whole or not at all; raises OSError."""
        self._check_fitted()
        names = [name for name in CHECKS if name not in ("warm_start", "resume", "every")]
        config = {name: getattr(self, name) for name in (*names, "cell", "options", "dtype")}
        kind = {text.Characters: "characters", text.Bytes: "bytes", text.Tokenizer: "tokenizer"}[type(self.codec_)]
        vocabulary = {"characters": lambda: self.codec_.alphabet.encode(), "tokenizer": lambda: self.codec_.content}
        content = vocabulary.get(kind, lambda: b"")()
        arrays = {**self.params_, VOCABULARY: np.frombuffer(content, dtype=np.uint8)}
        checkpoint.save(path, arrays, KIND, {"settings": config, "tokens": kind})

    @classmethod
    @reading.brief()
    def load(cls, path: str | os.PathLike[str], backend: str | Backend | None = None) -> Self:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path : path
        backend : str or Backend, optional
            As for `xlstm.backend`, by default "auto".

        Returns
        -------
        TextModel

        Raises
        ------
        OSError, ValueError
            There is no such file, or it is not that of a text model.
        """
        arrays, config = checkpoint.load(path, KIND)
        try:
            settings, kind = config.get("settings"), config.get("tokens")
            if not isinstance(settings, dict) or VOCABULARY not in arrays:
                raise ValueError("its settings or its vocabulary are missing")
            made = cls(**settings, backend=backend)
            for name, check in CHECKS.items():
                check("TextModel", name, getattr(made, name))
            content = arrays.pop(VOCABULARY).astype(np.uint8).tobytes()
            made.codec_ = _known(Path(path), kind, content)
            made.tokens = made.tokens_ = kind if kind in TOKENS else made.tokens
            made.model_ = made._model(_size(made.codec_))
            made.model_.check(arrays)
        except (TypeError, ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a sound text model ({type(error).__name__}: {error})") from error
        home = backend_of(backend, made.dtype)
        checkpoint.finite(path, arrays, home.dtype)
        made.params_ = {name: home.asarray(array) for name, array in arrays.items()}
        return made

    def _take(self, codec: Any, model: xLSTMLanguageModel, trained: Trained, kept: np.ndarray[Any, Any]) -> None:
        self.codec_, self.model_, self.params_, self.trained_ = codec, model, trained.params, trained
        self.tokens_ = self.tokens
        self.vocab_size_, self.n_iter_ = model.vocab_size, len(trained.losses)
        self.held_out_ = self._nats(kept) if len(kept) >= LEAST else None

    def _nats(self, numbers: np.ndarray[Any, Any]) -> float:
        if len(numbers) < LEAST:
            raise ValueError(f"TextModel: the text has {len(numbers)} tokens, expected {LEAST} or more")
        streams = max(1, min(self.batch_size, (len(numbers) - 1) // self.length))
        length = min(self.length, (len(numbers) - 1) // streams)
        return evaluate(self.model_, self.params_, Streams(numbers[:-1], numbers[1:], streams, length))

    def _codec(self, whole: str) -> text.Codec:
        if self.tokens == "characters":
            return text.Characters.of(whole)
        if self.tokens == "bytes":
            return text.Bytes()
        path = checks.path("TextModel", "tokens", self.tokens)
        if not path.is_file():
            raise FileNotFoundError(
                f"TextModel: tokens is {checks.shown(self.tokens)}, expected 'characters', 'bytes' or a tokenizer.json"
            )
        return text.Tokenizer(path)

    def _model(self, vocab_size: int) -> xLSTMLanguageModel:
        own = ("hidden_size", "num_layers", "dropout", "input_size", "cell", "where")
        options = layer_options("TextModel", self.options, own)
        layer = layer_of(
            "TextModel",
            self.cell,
            self.embedding_size,
            self.hidden_size,
            num_layers=self.num_layers,
            dropout=self.dropout if self.num_layers > 1 or self.cell == "xlstm" else 0.0,
            **options,
        )
        return xLSTMLanguageModel(layer, vocab_size, embedding_dropout=self.dropout)


def _text(where: str, X: Any) -> str:
    """Return X as one text."""
    if isinstance(X, str):
        return _sound(where, "X", X)
    try:
        parts = [*X]
    except TypeError:
        parts = [X]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise TypeError(f"{where}: X is {checks.shown(X)}, expected a text or a list of texts")
    return _sound(where, "X", "".join(parts))


def _sound(where: str, name: str, given: str) -> str:
    """Return a text; raise ValueError if UTF-8, in which it is kept, cannot hold it."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        problem = f"{name} has {given[error.start]!r} at position {error.start}, half of a surrogate pair"
        raise ValueError(f"{where}: {problem}; expected text that UTF-8 can hold") from None
    return given


def _size(codec: Any) -> int:
    """Return the number of tokens of a codec."""
    if isinstance(codec, text.Characters):
        return len(codec.alphabet)
    return 256 if isinstance(codec, text.Bytes) else int(codec.size)


def _known(path: Path, kind: Any, content: bytes) -> text.Codec:
    """Return the codec of a model file."""
    if kind == "characters":
        return text.Characters(content.decode())
    if kind == "bytes":
        return text.Bytes()
    if kind == "tokenizer":
        return text.Tokenizer(path, content)
    raise ValueError(f"its tokens are {checks.shown(kind)}, expected characters, bytes or tokenizer")


def _pieces(shown: text.Stream, drawn: Iterator[Any]) -> Iterator[str]:
    while True:
        with np.errstate(over="ignore", invalid="ignore"):
            token, _ = next(drawn, (None, None))
        if token is None:
            break
        if piece := shown.push(int(token[0])):
            yield piece
    if piece := shown.rest():
        yield piece
