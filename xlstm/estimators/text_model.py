"""TextModel: a language model of characters, bytes or tokens that learns from a text."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import backend_of
from xlstm.arrays.groups import Group
from xlstm.arrays.namespace import Params
from xlstm.data import text
from xlstm.data.batches import Streams
from xlstm.data.host import Host
from xlstm.estimators.base import AnyPath, Export, NetworkEstimator, bytes_of, checked, learn
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import layer_of
from xlstm.training import evaluate

VOCABULARY = "vocabulary"  # the array with the codec's content in a model file
# Functions that make the codec of each kind from its content.
CODECS: dict[str, Callable[[bytes], text.Codec]] = {
    "characters": lambda content: text.Characters(content.decode()),
    "bytes": lambda content: text.Bytes(),
    "tokenizer": lambda content: text.Tokenizer(Path(VOCABULARY), content),
}
LEAST = 2  # least tokens of a text to learn from or to evaluate


@dataclass(eq=False, repr=False, kw_only=True)
class TextModel(NetworkEstimator):
    """A language model that learns from a text and continues a prompt.

    Training reads the text as parallel streams, and carries their states from batch to batch
    (truncated backpropagation through time). The last part of the text is held out. After training,
    `fit` evaluates the model there: it predicts each token from the tokens before it.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "slstm", "minlstm", "mingru", "mlstm", "xlstm"}
        Or the name of a registered cell.
    hidden_size : int
        Units of each recurrent layer; in "xlstm", the width of the blocks.
    embedding_size : int
        Width of the embedding of a token; in "xlstm", the width of the blocks.
    num_layers : int
        Number of recurrent layers or blocks.
    dropout : float
        Rate of dropout of embeddings and between layers.
    options : dict, optional
        Further options of the layer.
    tokens : "characters", "bytes", or path
        The kind of tokens: the characters of the text, its bytes in UTF-8, or the tokens of a
        tokenizer.json.
    document_end : str or int, optional
        The token that ends a document, as its text (str) or its number (int). After it, `fit`,
        `nats`, `perplexity` and `score` reset the state to the state before the first step. Only
        this token ends a document: the end of a text in a list of texts does not. `stream` and
        `generate` treat a prompt and its continuation as one document.
    batch_size : int
        Number of parallel streams.
    length : int
        Tokens of each stream in a batch: the steps that a gradient goes back.
    steps : int
        Number of batches to train on.
    learning_rate, weight_decay : float
        Options of AdamW.
    schedule : {"constant", "cosine"}
        Whether the learning rate is constant, or falls to a tenth along half a cosine.
    clip : float
        Limit of the global norm of the gradient.
    averaging : float
        Decay of the moving average of the weights that is evaluated and kept.
    validation_fraction : float
        Share of the text, at its end, that is held out; 0 holds out nothing.
    seed : int
        Seed of the initial weights and of the masks of dropout.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training, on a GPU.
    backend : str or Backend, optional
        "auto", "numpy", "cupy" or "torch", as for `xlstm.backend`; by default "auto".
    dtype : {"float32", "float64"}
    warm_start : bool
        Continue from the weights and the vocabulary of the last `fit`.
    callbacks : list of Callback
        Callbacks, as for `training.train`.
    checkpoints : path, optional
        A folder for checkpoints and the history of training.
    every : int, optional
        Batches between two checkpoints; by default a checkpoint follows each pass over the text.
    resume : bool
        Continue from the newest checkpoint in that folder.
    graph : bool or "auto"
        Capture steps in CUDA graphs, as for `training.train`.

    Attributes
    ----------
    codec_ : object
        Its `encode(text)` returns tokens, and its `decode(tokens)` returns text.
    codec_kind_ : {"characters", "bytes", "tokenizer"}
        The kind of the codec.
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

    KIND = "text model"
    _takes = ("string",)
    _facts: ClassVar = {"codec_kind_": checks.choice(CODECS)}
    hidden_size: int = 256
    embedding_size: int = 64
    tokens: AnyPath = "characters"
    document_end: str | int | None = None
    batch_size: int = 64
    length: int = 128
    steps: int = 800
    schedule: str = "constant"
    every: int | None = None

    def fit(
        self, X: Any, y: Any = None, group: Group | None = None, progress: Any = "auto"
    ) -> Self:
        """Learn from a text.

        Parameters
        ----------
        X : str, or list of str
            A text, or several texts, which are joined with nothing between them. If a text is a
            document, it has to end with `document_end`.
        y : None
            It is not used.
        group : Group, optional
            The ranks that train together, each with the same arguments, as for `training.train`.
        progress : callable, bool or "auto"
            As for `training.train`: by default there is a progress bar on a terminal.

        Returns
        -------
        TextModel
            Itself.

        Raises
        ------
        ValueError, TypeError
            A parameter is out of range, the text is too short, or X is not text.
        FloatingPointError
            Training diverged.
        Interrupted, Terminated
            A signal ended training after a step. The model is then fitted with the weights so far.
        """
        checked(self)
        whole = _text(X)
        again = self.warm_start and self.__sklearn_is_fitted__()
        kind, codec = (self.codec_kind_, self.codec_) if again else self._codec(whole)
        if self.tokens in CODECS and self.tokens != kind:
            raise ValueError(
                f"TextModel: tokens is {self.tokens!r}, expected those of before, {kind!r}, or"
                " warm_start=False"
            )
        end = self._end(codec)
        numbers = np.array(codec.encode(whole), dtype=np.int64)
        held = int(self.validation_fraction * len(numbers))
        fitted, held_out = np.split(numbers, [len(numbers) - held])
        if end is not None and end not in fitted:
            warnings.warn(
                f"TextModel: document_end is {self.document_end!r}, token {end}, which the text does"
                " not have in the part to train on, so that is one document",
                stacklevel=2,
            )
        need = self.batch_size * self.length + 1
        if len(fitted) < need:
            raise ValueError(
                f"TextModel: the text has {len(numbers)} tokens, {len(fitted)} without those held"
                f" out, expected {need} or more for {self.batch_size} streams (batch_size) of"
                f" {self.length} tokens (length); give more text, or make one of these smaller"
            )
        data = Streams.of_tokens(fitted, self.batch_size, self.length, end)
        model = self._model(codec.size)
        home = backend_of(self.backend, self.dtype)
        if again:
            self._check_warm_start(self.model_.backbone, model.backbone)
        start = self.params_ if again else model.init(self.seed, home)
        options = {"steps": self.steps, "every": self.every, "group": group, "progress": progress}
        trained, stop = learn(self, model, start, data, home, **options)
        self._become(
            codec_=codec,
            codec_kind_=kind,
            model_=model,
            params_=trained.params,
            trained_=trained,
            n_iter_=len(trained.losses),
            vocab_size_=model.vocab_size,
        )
        self.held_out_ = self._nats(held_out) if len(held_out) >= LEAST else None
        return self._become(stop)

    def nats(self, X: Any) -> float:
        """Return the mean of -log p of a token, given the tokens before it, in nats.

        Parameters
        ----------
        X : str, or list of str
            As for `fit`.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            The text has fewer than two tokens or an unknown character, or X is not text.
        """
        return self._nats(np.array(self.codec_.encode(_text(X)), dtype=np.int64))

    def perplexity(self, X: Any) -> float:
        """Return the perplexity of a text per token, which is exp of `nats`.

        Parameters
        ----------
        X : str, or list of str
            As for `fit`.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            As for `nats`.
        """
        return math.exp(self.nats(X))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of log p of a token, the negative of `nats`: higher is better.

        Parameters
        ----------
        X : str, or list of str
            As for `fit`.
        y : None
            It is not used.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            As for `nats`.
        """
        return -self.nats(X)

    def stream(
        self, prompt: str, max_tokens: int = 200, *, temperature: float = 0.8, **options: Any
    ) -> Iterator[str]:
        """Yield the continuation of a prompt, piece by piece.

        Parameters
        ----------
        prompt : str
            The beginning of the text, at least one character.
        max_tokens : int
            Number of tokens to generate, at most.
        temperature : float
            The logits are divided by it; 0 always takes the likeliest token.
        options : top_k, top_p, seed
            As for `xLSTMLanguageModel.generate`.

        Yields
        ------
        str

        Raises
        ------
        ValueError, TypeError
            The prompt is empty or has an unknown character, or an option is out of range.
        """
        numbers = self.codec_.encode(checks.text("TextModel", "prompt", prompt))
        drawn = self.model_.stream(
            self.params_, [numbers], max_tokens, temperature=temperature, **options
        )
        return text_of_tokens(self.codec_, drawn)

    def generate(self, prompt: str, max_tokens: int = 200, **options: Any) -> str:
        """Return a prompt with its continuation.

        Parameters
        ----------
        prompt, max_tokens, options
            As for `stream`, with `temperature` among the options.

        Returns
        -------
        str

        Raises
        ------
        ValueError, TypeError
            As for `stream`.
        """
        return prompt + "".join(self.stream(prompt, max_tokens, **options))

    def _for_export(self, lengths: bool) -> Export:
        about, inputs, formula = super()._for_export(lengths)
        return about | {"vocabulary": self.codec_.content.decode()}, inputs, formula

    def _fitted(self) -> dict[str, Any]:
        return super()._fitted() | {VOCABULARY: np.frombuffer(self.codec_.content, dtype=np.uint8)}

    def _restore(self, fitted: dict[str, Any]) -> Params:
        self.codec_ = CODECS[self.codec_kind_](bytes_of(fitted, VOCABULARY))
        self.tokens = self.codec_kind_
        self.model_ = self._model(self.codec_.size)
        return self._weights(fitted)

    def _nats(self, numbers: Host) -> float:
        if len(numbers) < LEAST:
            raise ValueError(
                f"TextModel: the text has {len(numbers)} tokens, expected {LEAST} or more"
            )
        streams = max(1, min(self.batch_size, (len(numbers) - 1) // self.length))
        length = min(self.length, (len(numbers) - 1) // streams)
        data = Streams.of_tokens(numbers, streams, length, self._end(self.codec_))
        return float(evaluate(self.model_, self.params_, data))

    def _codec(self, whole: str) -> tuple[str, text.Codec]:
        """Return the codec that the parameter `tokens` asks for, with its kind."""
        if self.tokens == "characters":
            return "characters", text.Characters.of(whole)
        if self.tokens == "bytes":
            return "bytes", text.Bytes()
        path = checks.path("TextModel", "tokens", self.tokens)
        if not path.is_file():
            raise FileNotFoundError(
                f"TextModel: tokens is {path}, expected 'characters', 'bytes' or a tokenizer.json"
            )
        return "tokenizer", text.Tokenizer(path)

    def _end(self, codec: text.Codec) -> int | None:
        """Return the number of the token in `document_end`."""
        end = self.document_end
        token = codec.token(end) if isinstance(end, str) else end
        if end is not None and token not in range(codec.size):
            raise ValueError(
                f"TextModel: document_end is {checks.shown(end)}, expected one of the"
                f" {codec.size} tokens, as text or by its number, from 0 to {codec.size - 1}"
            )
        return token

    def _model(self, vocab_size: int) -> xLSTMLanguageModel:
        sizes: dict[str, Any] = {"input_size": self.embedding_size, "hidden_size": self.hidden_size}
        dropout = self.dropout if self.num_layers > 1 or self.cell == "xlstm" else 0.0
        sizes |= {"num_layers": self.num_layers, "dropout": dropout}
        layer = layer_of("TextModel", self.cell, **sizes, **(self.options or {}))
        return xLSTMLanguageModel(layer, vocab_size, embedding_dropout=self.dropout)


def _text(X: Any) -> str:
    """Return X as one text; raise if UTF-8 cannot hold it."""
    texts = [X] if isinstance(X, str) or not isinstance(X, Iterable) else [*X]
    if not texts or not all(isinstance(part, str) for part in texts):
        raise TypeError(f"TextModel: X is {checks.shown(X)}, expected a text or a list of texts")
    whole = "".join(texts)
    whole.encode()  # raises if it has half of a surrogate pair
    return whole


def text_of_tokens(codec: text.Codec, drawn: Iterator[Any]) -> Iterator[str]:
    """Yield the text of tokens, which come one at a time."""
    stream = text.TextStream(codec)
    for token, _ in drawn:
        if piece := stream.push(int(token[0])):
            yield piece
    if piece := stream.rest():
        yield piece
