"""The options of programs."""

import argparse


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows the docstring of a program as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
