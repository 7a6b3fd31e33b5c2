"""ONNX files in and out; gate orders are the same there, so that arrays only change their
packing.
"""

from xlstm.interop.onnx.onnx_export import to_onnx
from xlstm.interop.onnx.onnx_import import from_onnx

__all__ = ["from_onnx", "to_onnx"]
