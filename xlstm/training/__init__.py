"""The training loop, losses, optimizers, precision and checkpoints."""

from xlstm.training.loop import Batches, Progress, Trained, evaluate, train

__all__ = ["Batches", "Progress", "Trained", "evaluate", "train"]
