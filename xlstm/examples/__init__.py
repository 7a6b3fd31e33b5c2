"""Whole programs: the LSTM of the notebook that this project began as, in its own words and in
ours.
"""
