"""A formula run on symbols, and its trace written as source code."""
