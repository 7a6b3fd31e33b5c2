"""Tests of the package, its pages and their programs."""
