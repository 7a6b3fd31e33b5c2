"""Weights from and to Keras 3, as arrays and in files, without Keras."""

from xlstm.interop.keras_export import to_keras
from xlstm.interop.keras_import import from_keras

__all__ = ["from_keras", "to_keras"]
