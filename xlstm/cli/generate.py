"""`xlstm generate`: text of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from xlstm.cli.configuration import BackendOption
from xlstm.cli.console import printable, put
from xlstm.cli.export_import import language
from xlstm.cli.sources import TEXT, find_model
from xlstm.data import text
from xlstm.estimators import TextModel


def generate(
    model: Annotated[Path, Argument(help="Model file or folder, or a published xLSTM checkpoint.")],
    prompt: Annotated[str, Option(help="Text, or tokens such as '3 1 4' if there is no tokenizer.json.")],
    max_tokens: Annotated[int, Option(help="Tokens to add, at most.")] = 100,
    temperature: Annotated[float, Option(help="0 takes the likeliest token always.")] = 0.0,
    top_k: Annotated[int | None, Option(help="Draw from so many likeliest tokens.")] = None,
    top_p: Annotated[float | None, Option(help="Draw from the likeliest, so probable together.")] = None,
    seed: Annotated[int, Option(help="Seed of the draws.")] = 0,
    stop: Annotated[int | None, Option(help="Token that ends the text.")] = None,
    as_bytes: Annotated[bool, Option("--bytes", help="Tokens are bytes of UTF-8.")] = False,
    backend: BackendOption = "auto",
    dtype: Annotated[str | None, Option(help="float32 or float64; that of the checkpoint if left out.")] = None,
) -> None:
    """Go on from a prompt with a language model, token by token."""
    printable("generate")
    draws: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    model, kind = find_model("generate", model, foreign=True)
    if kind == TEXT:
        if stop is not None or as_bytes or dtype is not None:
            raise ValueError(f"{model}: is a text model with tokens of its own, not for --stop, --bytes and --dtype")
        gap = ""
        pieces = TextModel.load(model, backend).stream(prompt, max_tokens, **draws)
    else:
        network, params = language(model, backend, dtype)
        codec = text.codec(model, as_bytes)
        gap = codec.GAP
        pieces = _pieces(codec, network.stream(params, [codec.encode(prompt)], max_tokens, stop=stop, **draws))
    put(f"{prompt}{gap}")  # as it is: not everything that looks like markup is
    for piece in pieces:
        put(piece)
    put("\n")


def _pieces(codec: text.Codec, drawn: Iterator[Any]) -> Iterator[str]:
    """Yield the text of tokens."""
    stream = text.Stream(codec)
    for token, _ in drawn:
        yield stream.push(int(token[0]))
    yield stream.rest()
