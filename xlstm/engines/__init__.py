"""Engines, which run the time loop of a recurrent layer.

`engine.py` has the protocol of an engine, the list of engines, and the choice among them.
`array_api.py` is the reference; `numba/` and `cuda/` compile their loops.
"""
