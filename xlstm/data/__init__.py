"""Data for training: files and tables, series, and batches on the host."""

from typing import Any

from xlstm.core.places import attribute
from xlstm.data.batches import Batch, Prefetch, Sequences, Streams, Windows
from xlstm.data.series_windows import SeriesWindows, Split, carry_forward, split
from xlstm.data.shards import Shard

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

# Files and tables, which are imported on first use.
_NAMES = {
    "Columns": "frames",
    "FileShards": "file_shards",
    "is_table": "frames",
    "read_table": "table",
    "synthetic": "series",
    "table_like": "frames",
    "table_of": "frames",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use."""
    return attribute(__name__, _NAMES, name)
