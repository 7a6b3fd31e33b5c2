"""Mixed precision: float16 or bfloat16 passes with float32 weights; TF32 products on request."""

from xlstm.training.precision import Mixed, Scaling, tf32

__all__ = ["Mixed", "Scaling", "tf32"]
