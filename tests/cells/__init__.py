"""Tests of formulas of cells: activations, the mLSTM's two forms, cells of users."""
