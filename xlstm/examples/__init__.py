"""Whole programs: the LSTM of the notebook that this project began as, in the notebook's code and
with this library.
"""
