"""Data for training: files and tables, series, and batches on the host."""

from xlstm.data.batches import Batch, Prefetch, Sequences, Streams, Windows
from xlstm.data.file_shards import FileShards
from xlstm.data.frames import Columns, is_table, table_like, table_of
from xlstm.data.series import synthetic
from xlstm.data.series_windows import SeriesWindows, Split, carry_forward, split
from xlstm.data.shards import Shard
from xlstm.data.table import read_table

__all__ = [
    "Batch",
    "Columns",
    "FileShards",
    "Prefetch",
    "Sequences",
    "SeriesWindows",
    "Shard",
    "Split",
    "Streams",
    "Windows",
    "carry_forward",
    "is_table",
    "read_table",
    "split",
    "synthetic",
    "table_like",
    "table_of",
]
