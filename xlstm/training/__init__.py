"""The training loop, losses, optimisers with gradient clipping, schedules, precision and checkpoints."""

from xlstm.training.feed import Batches
from xlstm.training.loop import Progress, Trained, evaluate, train

__all__ = ["Batches", "Progress", "Trained", "evaluate", "train"]
