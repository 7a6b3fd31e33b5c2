"""Pictures of models and of their training, and the numbers behind them.

Every function that draws returns a figure of matplotlib (`pip install '.[plot]'`), and none of them shows it or writes
a file: `save` does. Functions whose names end in `_table`, and `gradient_norms`, `course` and `confusion_counts`,
return numbers and need no matplotlib.
"""

from xlstm.plots.activity import Memory, Saturation, gates, memory, memory_table, saturation, saturation_table
from xlstm.plots.backpropagation import GradientNorm, gradient_norms, gradients
from xlstm.plots.figures import save
from xlstm.plots.html import page
from xlstm.plots.results import confusion, confusion_counts, forecast_errors
from xlstm.plots.runs import Course, course, curves
from xlstm.plots.traces import layers_of
from xlstm.plots.weights import Parameter, parameter_table, parameters

__all__ = [
    "Course",
    "GradientNorm",
    "Memory",
    "Parameter",
    "Saturation",
    "confusion",
    "confusion_counts",
    "course",
    "curves",
    "forecast_errors",
    "gates",
    "gradient_norms",
    "gradients",
    "layers_of",
    "memory",
    "memory_table",
    "page",
    "parameter_table",
    "parameters",
    "saturation",
    "saturation_table",
    "save",
]
