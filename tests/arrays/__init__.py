"""Tests of arrays and operations on them, on every backend."""
