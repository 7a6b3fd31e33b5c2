"""Weights from and to Keras 3, as arrays and in files, without Keras."""

from xlstm.interop.keras.exporting import to_keras
from xlstm.interop.keras.importing import from_keras

__all__ = ["from_keras", "to_keras"]
