"""The version of xlstm."""

__version__ = "0.1.0"
