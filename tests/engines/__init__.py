"""Tests of engines: the choice, every batch size, interruptions."""
