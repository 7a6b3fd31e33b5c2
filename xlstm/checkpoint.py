"""Arrays and their description in one safetensors file, which is written whole or not at all."""

from xlstm.training.checkpoint import load, save

__all__ = ["load", "save"]
