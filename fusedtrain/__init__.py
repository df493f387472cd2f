"""fusedtrain: drop-in PyTorch parts that make a training step do less work."""

from __future__ import annotations

from fusedtrain import schemas as _schemas  # noqa: F401  defines the operators before anything uses them

# isort: split
from fusedtrain import functional, nn, optim
from fusedtrain.backends import libraries as _libraries
from fusedtrain.clip import clip_grad_norm_, clip_grad_value_, global_norm
from fusedtrain.dispatch import available as backends
from fusedtrain.fuse import fuse_, unfuse_
from fusedtrain.norms import tensor_norms

__version__ = "0.1.0"

_libraries.load_libraries()

__all__ = [
    "backends",
    "clip_grad_norm_",
    "clip_grad_value_",
    "functional",
    "fuse_",
    "global_norm",
    "nn",
    "optim",
    "tensor_norms",
    "unfuse_",
]
