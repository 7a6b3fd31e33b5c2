"""How the time loop of a recurrent layer runs.

`engine.py` is the seam: the protocol of an engine, the list of engines, and the choice.
`array_api.py` is the reference; `numba/` and `cuda/` compile their loops.
"""
