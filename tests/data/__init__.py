"""Tests of series, tables, text and batches."""
