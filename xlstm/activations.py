"""Activations of gates: their names, and `register`, which adds one of your own."""

from xlstm.cells.activations import Activation, canonical, parse, register

__all__ = ["Activation", "canonical", "parse", "register"]
