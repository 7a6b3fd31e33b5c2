"""Text as the tokens of a language model and back: by a tokenizer beside the model, as bytes, or as plain numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

TOKENIZER = "tokenizer.json"


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
        if not all(part.isdecimal() for part in found):
            raise ValueError(
                f"prompt: {text!r} is text, but there is no {TOKENIZER} beside the model; "
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
        try:
            self._inner: Any = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{file}: not a readable tokenizer ({error})") from error

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        return list(self._inner.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens."""
        return str(self._inner.decode(tokens))


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
