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
from xlstm.training.evaluation import evaluate
from xlstm.training.loop import Trained, train
from xlstm.training.range_test import RangeTest, find_learning_rate
from xlstm.training.state import StepState, Taken
from xlstm.training.steps import TrainStep
from xlstm.training.stop_signals import Interrupted, Terminated

Step = TrainStep  # an alias that other programs may already use

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
    "TrainStep",
    "Trained",
    "evaluate",
    "find_learning_rate",
    "train",
]
