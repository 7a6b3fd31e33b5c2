"""The options of programs."""

import argparse
import re


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows the docstring of a program as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def file_name(text: str) -> str:
    """Return a text fit for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
