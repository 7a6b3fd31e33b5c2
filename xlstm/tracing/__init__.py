"""Formulas run on symbols (`symbols`), and their traces written as C and Python (`writers`)."""
