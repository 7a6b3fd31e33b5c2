"""ONNX files in and out; gate orders are the same there, so that arrays only change their packing."""

from xlstm.interop.onnx.exporting import to_onnx
from xlstm.interop.onnx.importing import from_onnx

__all__ = ["from_onnx", "to_onnx"]
