"""Tests of programs on several processes."""
