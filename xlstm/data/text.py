"""Text as the tokens of a language model and back: by a tokenizer beside the model, as bytes, or as plain numbers."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from xlstm.arrays.checks import shown
from xlstm.data import reading

DIGITS = 18  # of a token that is written out
TOKENIZER = "tokenizer.json"
LONGEST = 1 << 26  # bytes of a tokenizer's file
LONGEST_ADDED = 1 << 20  # characters of its added tokens, which take some 60 bytes each
ADDED = 1000  # tokens around a text
GROWTH = 4096  # how many times as long steps may make a text


class Codec(Protocol):
    """From text to tokens and back."""

    GAP: str  # between a prompt and what follows it

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens."""
        ...


class Numbers:
    """Tokens written out, "3 1 4" or "3,1,4"."""

    GAP = " "

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        found = [part for part in re.split(r"[\s,]+", text) if part]
        if not all(part.isdecimal() and len(part) <= DIGITS for part in found):
            raise ValueError(
                f"prompt: {shown(text)} is text, but there is no {TOKENIZER} beside the model; "
                "expected whole numbers such as '3 1 4', or --bytes"
            )
        return [int(part) for part in found]

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens."""
        return "".join(f"{token} " for token in tokens)


class Bytes:
    """One token a byte of UTF-8."""

    GAP = ""

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class Tokenizer:
    """A `tokenizer.json`, read by the package tokenizers."""

    GAP = ""

    def __init__(self, file: Path) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise ImportError(f"{file}: to read it, pip install tokenizers") from error
        self._file = file
        with reading.brief():
            content = reading.content(file, LONGEST)
            with self._told("not a readable tokenizer"):
                _bounded(reading.from_json("content", content))
                self._inner: Any = tokenizers.Tokenizer.from_str(content.decode())
                # A prompt is one text, as long as it is.
                self._inner.no_padding()
                self._inner.no_truncation()
                if self._inner.num_special_tokens_to_add(is_pair=False) > ADDED:
                    raise ValueError(f"it adds more than {ADDED} tokens to a text")

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt; ValueError if the tokenizer has none for a part of it."""
        with self._told("cannot encode the prompt"):
            return list(self._inner.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens."""
        with self._told("cannot decode tokens"):
            return str(self._inner.decode(tokens))

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Errors of the package, which are a plain Exception or a panic that is not even that, as ValueError."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
                raise
            raise ValueError(reading.cut(f"{self._file}: {doing} ({error})")) from error


def _bounded(about: Any) -> None:
    """Raise ValueError if a tokenizer takes memory, or makes texts longer, out of proportion."""
    if not isinstance(about, dict):
        raise ValueError(f"it is {shown(about)}, expected an object")
    added = about.get("added_tokens")
    total = (
        sum(len(str(one.get("content"))) for one in added if isinstance(one, dict)) if isinstance(added, list) else 0
    )
    if total > LONGEST_ADDED:
        raise ValueError(f"its added tokens have {total} characters, expected at most {LONGEST_ADDED}")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        factor = _growth(about.get(name))
        if factor > GROWTH:
            raise ValueError(f"its {name} may make a text more than {GROWTH} times as long")


def _growth(step: Any) -> float:
    """How many times as long a text may become in a step of a tokenizer, and in those within it."""
    if isinstance(step, list):
        return math.prod(map(_growth, step), start=1.0)
    if not isinstance(step, dict):
        return 1.0
    kind = step.get("type")
    if kind == "ByteLevel":
        return 2.0
    if kind in ("Prepend", "Replace"):  # a regular expression may match between all characters
        return 1.0 + len(str(step.get("content", step.get("prepend"))))
    return math.prod(map(_growth, step.values()), start=1.0)


class Stream:
    """Text of tokens that come one at a time, without what the next one may change: parts of a character."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.tokens: list[int] = []
        self._from = self._until = 0  # those whose text is shown, as far back as is needed to join the next ones

    def push(self, token: int) -> str:
        """What is to be shown now."""
        self.tokens.append(token)
        before, now = self._texts()
        if now.endswith("\ufffd"):
            return ""
        self._from, self._until = self._until, len(self.tokens)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left at the end, whatever it is."""
        before, now = self._texts()
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        """Of the last tokens, without those that are not shown and with them."""
        decode = self.codec.decode
        return decode(self.tokens[self._from : self._until]), decode(self.tokens[self._from :])


def codec(model: Path, as_bytes: bool = False) -> Codec:
    """The codec for a model: bytes if asked for, else the tokenizer beside it, else numbers.

    Raises
    ------
    ValueError, ImportError
        There is a tokenizer that cannot be read.
    """
    file = (model if model.is_dir() else model.parent) / TOKENIZER
    if as_bytes:
        return Bytes()
    return Tokenizer(file) if file.is_file() else Numbers()
