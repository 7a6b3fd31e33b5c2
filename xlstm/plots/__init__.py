"""Plots of models, training and forecasts, and the numbers behind them.

Every function that draws returns a figure of matplotlib (`pip install '.[plot]'`). None of them
shows the figure or writes a file; `save` writes one. Functions whose names end in `_table`, and
`gradient_norms`, `course` and `confusion_counts`, return numbers and need no matplotlib.
"""

from xlstm.plots.activity import (
    gates,
    layers_of,
    memory,
    memory_table,
    saturation,
    saturation_table,
)
from xlstm.plots.figures import save
from xlstm.plots.networks import gradient_norms, gradients, parameter_table, parameters
from xlstm.plots.results import (
    Fan,
    confusion,
    confusion_counts,
    course,
    curves,
    fans,
    forecast,
    forecast_errors,
)

__all__ = [
    "Fan",
    "confusion",
    "confusion_counts",
    "course",
    "curves",
    "fans",
    "forecast",
    "forecast_errors",
    "gates",
    "gradient_norms",
    "gradients",
    "layers_of",
    "memory",
    "memory_table",
    "parameter_table",
    "parameters",
    "saturation",
    "saturation_table",
    "save",
]
