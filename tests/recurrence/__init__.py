"""Tests of sequences of different lengths."""
