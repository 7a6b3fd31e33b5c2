"""Write pictures of the documentation as small files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parent / "_static"


def save(figure: Any, name: str, colours: int) -> None:
    """Write a figure of matplotlib in few colours, which takes a third of the bytes or less."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    few_colours = Image.open(drawn).convert("RGB").quantize(colours)
    few_colours.save(FOLDER / name, optimize=True)
