"""`xlstm generate`: text of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xlstm.cli import convert
from xlstm.cli.console import BackendOption, printable
from xlstm.data import text


def generate(
    model: Annotated[Path, typer.Argument(help="Model file, or folder or file of a published xLSTM checkpoint.")],
    prompt: Annotated[str, typer.Option(help="Text, or tokens such as '3 1 4' if there is no tokenizer.json.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens to add, at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token always.")] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from so many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the likeliest, so probable together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Token that ends the text.")] = None,
    as_bytes: Annotated[bool, typer.Option("--bytes", help="Tokens are bytes of UTF-8.")] = False,
    backend: BackendOption = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; that of the checkpoint if left out.")] = None,
) -> None:
    """Go on from a prompt with a language model, token by token."""
    printable("generate")
    codec = text.codec(model, as_bytes)
    tokens = codec.encode(prompt)
    network, params = convert.language(model, backend, dtype)
    drawn = network.stream(
        params, [tokens], max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop
    )
    typer.echo(f"{prompt}{codec.GAP}", nl=False)  # as it is: not everything that looks like markup is
    shown = text.Stream(codec)
    for token, _ in drawn:
        typer.echo(shown.push(int(token[0])), nl=False)
    typer.echo(shown.rest())
