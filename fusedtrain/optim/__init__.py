"""Optimizers that clip in their step: torch's where torch has them, with ``max_norm=`` and its like added."""

from __future__ import annotations

from fusedtrain.optim.adagrad import Adagrad
from fusedtrain.optim.adam import Adam
from fusedtrain.optim.adamw import AdamW
from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.lamb import LAMB
from fusedtrain.optim.lars import LARS
from fusedtrain.optim.lion import Lion
from fusedtrain.optim.rmsprop import RMSprop
from fusedtrain.optim.sgd import SGD

__all__ = ["LAMB", "LARS", "SGD", "Adagrad", "Adam", "AdamW", "ClippedOptimizer", "Lion", "RMSprop"]
