"""Text as tokens and back: with the tokenizer beside the model, as bytes, or as plain numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.data import reading

DIGITS = 18  # of the longest token that is written out
TOKENIZER = "tokenizer.json"
LONGEST = 1 << 26  # the most bytes of a tokenizer's file
LONGEST_ADDED = 1 << 20  # the most characters of its added tokens, at some 60 bytes each
ADDED = 1000  # the most tokens added around a text
GROWTH = 4096  # the largest factor by which steps may lengthen a text


class Codec:
    """The base class of codecs, which encode text as tokens and decode tokens as text."""

    GAP = ""  # text between a prompt and its continuation
    size = 0  # of the vocabulary, if there is one
    content = b""  # the vocabulary, as models keep it

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt; raise ValueError if a part of it has no token."""
        raise NotImplementedError

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        raise NotImplementedError

    def token(self, text: str) -> int | None:
        """Return the single token of a text, or None if there is none."""
        try:
            tokens = self.encode(text)
        except ValueError:
            return None
        return tokens[0] if len(tokens) == 1 else None


class Numbers(Codec):
    """A codec of tokens written as numbers, "3 1 4" or "3,1,4"."""

    GAP = " "

    def encode(self, text: str) -> list[int]:
        words = text.replace(",", " ").split()
        if not all(word.isdecimal() and len(word) <= DIGITS for word in words):
            raise ValueError(
                f"prompt: {shown(text)} is text, but there is no {TOKENIZER} beside the model;"
                " expected whole numbers such as '3 1 4', or --bytes"
            )
        return list(map(int, words))

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"{token} " for token in tokens)


class Bytes(Codec):
    """A codec with a token for each byte of UTF-8."""

    size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class Characters(Codec):
    """A codec with a token for each character of an alphabet."""

    def __init__(self, alphabet: str) -> None:
        self.size = len(alphabet)
        self.content = alphabet.encode()
        self.alphabet = alphabet
        self._numbers = {character: number for number, character in enumerate(alphabet)}

    @classmethod
    def of(cls, text: str) -> Characters:
        """Return the codec of all characters of a text."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> list[int]:
        try:
            return [self._numbers[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"text: {error.args[0]!r} is not one of the {len(self.alphabet)} characters that"
                " the model knows"
            ) from None

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.alphabet[token] for token in tokens)


class Tokenizer(Codec):
    """The codec of a `tokenizer.json`, read by the package tokenizers; `content` is the file's
    text.
    """

    def __init__(self, file: Path, content: bytes | None = None) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise ImportError(f"{file}: to read it, pip install tokenizers") from error
        self._file = file
        with reading.brief():
            self.content = content = reading.content(file, LONGEST) if content is None else content
            with self._errors("not a readable tokenizer"):
                _check_growth(reading.from_json("content", content))
                self._inner: Any = tokenizers.Tokenizer.from_str(content.decode())
                self._inner.no_padding()  # a prompt is a single text
                self._inner.no_truncation()
                self.size = int(self._inner.get_vocab_size())
                # a template repeats lists of tokens
                if self._inner.num_special_tokens_to_add(is_pair=False) > ADDED:
                    raise ValueError(f"it adds more than {ADDED} tokens to a text")

    def encode(self, text: str) -> list[int]:
        with self._errors("cannot encode the prompt"):
            return list(self._inner.encode(text).ids)

    def token(self, text: str) -> int | None:
        with self._errors("cannot encode a token"):
            token = self._inner.token_to_id(text)
            if token is not None:
                return int(token)
            tokens = self._inner.encode(text, add_special_tokens=False).ids
            # an unknown text may become a token that stands for all unknown texts
            is_it = len(tokens) == 1 and self._inner.decode(tokens) == text
            return tokens[0] if is_it else None

    def decode(self, tokens: list[int]) -> str:
        with self._errors("cannot decode tokens"):
            return str(self._inner.decode(tokens))

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Raise the package's errors as ValueError; they are plain Exceptions, or panics outside of
        Exception.
        """
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
                raise
            raise ValueError(reading.cut(f"{self._file}: {doing} ({error})")) from error


class TextStream:
    """The text of tokens that arrive one at a time; it holds back incomplete characters."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.tokens: list[int] = []
        # tokens already shown, as many as are needed to join the next ones
        self._from = self._until = 0

    def push(self, token: int) -> str:
        """Add a token, and return the text to show now."""
        self.tokens.append(token)
        text = self.rest()
        if text.endswith("\ufffd"):
            return ""
        self._from = self._until
        self._until = len(self.tokens)
        return text

    def rest(self) -> str:
        """Return the text that is not shown yet, complete or not."""
        shown = self.codec.decode(self.tokens[self._from : self._until])
        return self.codec.decode(self.tokens[self._from :])[len(shown) :]


def codec(model: Path, as_bytes: bool = False) -> Codec:
    """Return a model's codec: bytes if asked for, else the tokenizer beside it, else numbers."""
    file = (model if model.is_dir() else model.parent) / TOKENIZER
    if as_bytes:
        return Bytes()
    return Tokenizer(file) if file.is_file() else Numbers()


def _check_growth(about: Any) -> None:
    """Raise ValueError if a tokenizer needs too much memory, or lengthens texts too much."""
    total = sum(len(token["content"]) for token in about.get("added_tokens") or [])
    if total > LONGEST_ADDED:
        raise ValueError(
            f"its added tokens have {total} characters, expected at most {LONGEST_ADDED}"
        )
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if _growth(about.get(name)) > GROWTH:
            raise ValueError(f"its {name} may make a text more than {GROWTH} times as long")


def _growth(step: Any) -> float:
    """Return the factor by which a step of a tokenizer, with the steps within it, may lengthen a
    text.
    """
    if isinstance(step, list):
        return math.prod(map(_growth, step), start=1.0)
    if not isinstance(step, dict):
        return 1.0
    # a regular expression may match between all characters
    if step.get("type") in ("Prepend", "Replace"):
        return 1.0 + len(str(step.get("content", step.get("prepend"))))
    own = 2.0 if step.get("type") == "ByteLevel" else 1.0
    return own * _growth(list(step.values()))
