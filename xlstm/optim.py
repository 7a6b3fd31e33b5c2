"""Optimisers as pairs of pure functions over a state, schedules, and clipping of gradients."""

from xlstm.training.optimizers import *  # noqa: F403
from xlstm.training.optimizers import __all__ as __all__
