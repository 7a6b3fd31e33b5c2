"""Tracing: formulas run on symbols (`symbols`); their traces become C and Python (`writers`)."""
