"""From files and tables to batches on the host."""

from xlstm.data.windows import Batch, Scaler, Split, Streams, Windows, carry_forward, split, windows

__all__ = ["Batch", "Scaler", "Split", "Streams", "Windows", "carry_forward", "split", "windows"]
