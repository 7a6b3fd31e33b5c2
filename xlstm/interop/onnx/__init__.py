"""Export and import of ONNX; its gate orders are the same, so arrays only change their packing."""

from xlstm.interop.onnx.onnx_export import to_onnx
from xlstm.interop.onnx.onnx_import import from_onnx

__all__ = ["from_onnx", "to_onnx"]
