"""Tests of the notebook that the library began as."""
