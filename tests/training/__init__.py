"""Tests of losses, optimisers, the loop, runs and their files."""
