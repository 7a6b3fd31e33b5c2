"""Weights in and out of other libraries: names, orders and layouts; no maths."""
