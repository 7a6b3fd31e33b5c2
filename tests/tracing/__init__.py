"""Tests of formulas on symbols."""
