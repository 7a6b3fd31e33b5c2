"""Tests of layers, blocks and stacks."""
