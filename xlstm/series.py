"""A time series from a CSV file, and the series that come with the package."""

from xlstm.data.series import DATASETS, Series, bundled, read_csv

__all__ = ["DATASETS", "Series", "bundled", "read_csv"]
