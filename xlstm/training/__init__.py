"""The training loop, losses, optimisers with gradient clipping, schedules, precision and
checkpoints.
"""

from xlstm.data.batches import Batches
from xlstm.training.adapters import LowRank
from xlstm.training.callbacks import (
    Callback,
    Clip,
    EarlyStopping,
    MovingAverage,
    Progress,
    ProgressBar,
    ReduceOnPlateau,
    TensorBoard,
)
from xlstm.training.feed import evaluate
from xlstm.training.loop import Trained, train
from xlstm.training.range_test import RangeTest, find_learning_rate
from xlstm.training.steps import Step, StepState, Taken
from xlstm.training.stop_signals import Interrupted, Terminated

__all__ = [
    "Batches",
    "Callback",
    "Clip",
    "EarlyStopping",
    "Interrupted",
    "LowRank",
    "MovingAverage",
    "Progress",
    "ProgressBar",
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
