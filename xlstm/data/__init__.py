"""From files and tables to batches on the host."""

from xlstm.data.batches import Batch, Streams, Windows
from xlstm.data.preparation import Scaler, Split, carry_forward, split, windows

__all__ = ["Batch", "Scaler", "Split", "Streams", "Windows", "carry_forward", "split", "windows"]
