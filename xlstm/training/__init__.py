"""The training loop, losses, optimisers with gradient clipping, schedules, precision and checkpoints."""

from xlstm.data.batches import Batches
from xlstm.training.adapters import LowRank
from xlstm.training.callbacks import Callback, Clip, EarlyStopping, MovingAverage, Progress, ReduceOnPlateau
from xlstm.training.finder import RangeTest, find_learning_rate
from xlstm.training.loop import evaluate, train
from xlstm.training.run import Trained
from xlstm.training.signals import Interrupted, Terminated
from xlstm.training.step import Step, StepState, Taken
from xlstm.training.tensorboard import TensorBoard

__all__ = [
    "Batches",
    "Callback",
    "Clip",
    "EarlyStopping",
    "Interrupted",
    "LowRank",
    "MovingAverage",
    "Progress",
    "RangeTest",
    "ReduceOnPlateau",
    "Step",
    "StepState",
    "Taken",
    "TensorBoard",
    "Terminated",
    "Trained",
    "evaluate",
    "find_learning_rate",
    "train",
]
