"""A user's model by the name of its factory, ``package.module:factory``, and the loss that it is trained for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusedtrain.bench.errors import BenchError, unknown

_CONTRACT = (
    "A factory returns (module, example): example is the input (a tensor, a tuple of arguments or a dict of keyword "
    "arguments), or a callable that takes the module, or nothing, and returns the loss"
)


@dataclass
class Training:
    """A model and what it is trained on."""

    model: nn.Module
    loss: Callable[[], Tensor]
    example: Any = None
    """The input, if the factory gave one and no callable."""


def build(path: str, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0) -> Training:
    """Calls the factory, with torch seeded, and moves what it gives.

    Args:
        dtype: of the model and of floating inputs; by default as they are. What a callable makes itself is its own
            affair.

    Raises:
        BenchError: there is no such module or function, it raises, or it returns something else than it should.
    """
    factory = _find(path)
    torch.manual_seed(seed)
    try:
        made = factory()
    except Exception as error:
        raise BenchError("--model", path, f"the factory raised {_told(error)}", "Call it alone, and mend it") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        shown = ", ".join(type(m).__name__ for m in made) if isinstance(made, tuple) else type(made).__name__
        raise BenchError("--model", path, f"the factory returned {shown}", _CONTRACT)
    model, example = made
    model = model.to(device=device, dtype=dtype).train()
    if not any(p.requires_grad for p in model.parameters()):
        raise BenchError("--model", path, "the model has no parameter to train", _CONTRACT)
    if callable(example) and not isinstance(example, (Tensor, nn.Module)):
        training = Training(model, _bound(example, model))
    else:
        example = moved(example, device, dtype)
        training = Training(model, lambda: loss_of(call(model, example)), example)
    _try(path, training)
    return training


def _find(path: str) -> Callable[[], Any]:
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise BenchError("--model", path, "it names no factory", "Write package.module:factory")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        reason = f"no module {error.name!r}"
        raise BenchError("--model", path, reason, "Run it where the module is, or set PYTHONPATH") from None
    except Exception as error:
        reason = f"importing it raised {_told(error)}"
        raise BenchError("--model", path, reason, "Import it alone, and mend it") from error
    if not hasattr(module, name):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise unknown("--model", path, f"function in {module_name}", known, name=name)
    factory = getattr(module, name)
    if not callable(factory):
        raise BenchError("--model", path, f"it is no function but {type(factory).__name__}", _CONTRACT)
    return factory  # type: ignore[no-any-return]


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _bound(loss: Callable[..., Tensor], model: nn.Module) -> Callable[[], Tensor]:
    """The callable with the model, if it takes one."""
    needed = [
        p
        for p in inspect.signature(loss).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return (lambda: loss(model)) if needed else loss


def moved(x: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(x, Tensor):
        return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
    if isinstance(x, Mapping):
        return {key: moved(value, device, dtype) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(moved(value, device, dtype) for value in x)
    return x


def call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, (tuple, list)) else model(example)


def loss_of(output: Any) -> Tensor:
    """Of an output that has a loss, that; else the mean square of the first floating tensor in it, in fp32 or fp64."""
    loss = getattr(output, "loss", None)
    if isinstance(output, Mapping):
        loss = output.get("loss")
        output = next((v for v in output.values() if _floats(v)), None)
    if isinstance(loss, Tensor):
        return loss
    if isinstance(output, (tuple, list)):
        output = next((v for v in output if _floats(v)), None)
    if not _floats(output):
        raise TypeError(f"the model returned {type(output).__name__}, in which there is no floating tensor")
    return output.to(torch.promote_types(output.dtype, torch.float32)).square().mean()


def _floats(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _try(path: str, training: Training) -> None:
    """One forward and backward, so that what is wrong is said before anything is measured."""
    try:
        loss = training.loss()
        if not (isinstance(loss, Tensor) and loss.numel() == 1):
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the loss is {shape}, not one number")
        loss.backward()
    except Exception as error:
        reason = f"a forward and backward raised {_told(error)}"
        raise BenchError("--model", path, reason, _CONTRACT) from error
    training.model.zero_grad(set_to_none=True)
