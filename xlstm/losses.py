"""Losses: each returns the loss (a 0-d array) and its gradient by the prediction."""

from xlstm.training.losses import cross_entropy, huber, mae, mse, pinball

__all__ = ["cross_entropy", "huber", "mae", "mse", "pinball"]
