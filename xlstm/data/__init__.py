"""From files and tables to batches on the host."""

from xlstm.data.batches import Batch, Streams, Windows
from xlstm.data.files import read_table
from xlstm.data.frames import Columns, is_table, table_like, table_of
from xlstm.data.prefetch import Prefetch
from xlstm.data.preparation import Scaler, Split, carry_forward, split, windows
from xlstm.data.sequences import Sequences
from xlstm.data.series_windows import SeriesWindows

__all__ = [
    "Batch",
    "Columns",
    "Prefetch",
    "Scaler",
    "Sequences",
    "SeriesWindows",
    "Split",
    "Streams",
    "Windows",
    "carry_forward",
    "is_table",
    "read_table",
    "split",
    "table_like",
    "table_of",
    "windows",
]
