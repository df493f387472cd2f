"""One file holds all that a run needs to go on to the bit: tensors as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusedtrain.train import files
from fusedtrain.train.early_stopping import EarlyStopping
from fusedtrain.train.errors import TrainError
from fusedtrain.train.sides import Side
from fusedtrain.train.world import World

FILE = "checkpoint.safetensors"


def save(folder: Path, step: int, sides: list[Side], stoppers: dict[str, EarlyStopping], world: World) -> None:
    """Writes the state after ``step`` steps; the file is the last one or this one, never a part. Called by every
    process, since each has random numbers of its own; one of them writes.

    Raises:
        TrainError: it cannot be written; the previous checkpoint is whole.
    """
    tensors: dict[str, Tensor] = {}
    for side in sides:
        for rank, state in enumerate(world.gather(side.rng)):
            tensors[f"{side.name}/rng/{rank}"] = state
        for name, value in side.tensors().items():
            tensors[f"{side.name}/{name}"] = _alone(value)
        for name, value in stoppers[side.name].weights.items():
            tensors[f"{side.name}/best/{name}"] = _alone(value)
    if not world.writes:
        return
    progress = {"step": step, "early_stopping": {name: stopper.to_json() for name, stopper in stoppers.items()}}
    with files.aside(folder / FILE) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(progress, allow_nan=False)})


def _alone(x: Tensor) -> Tensor:
    """On the CPU, contiguous, and the only tensor of its memory, as safetensors wants it: small optimizer states are
    views of memory that they share."""
    here = x.detach().cpu().contiguous()
    return here if here.untyped_storage().nbytes() == here.nbytes else here.clone()


def load(folder: Path, sides: list[Side], stoppers: dict[str, EarlyStopping], world: World) -> int:
    """Puts the checkpoint of the run into the sides and stoppers. Returns the number of steps it has behind it, 0 if
    there is no checkpoint yet.

    Raises:
        TrainError: the file is damaged, or of other models.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        _check_shapes(tensors, sides)
        for side in sides:
            mine = {
                name.removeprefix(f"{side.name}/"): t for name, t in tensors.items() if name.startswith(side.name + "/")
            }
            side.load_tensors(mine)
            side.rng = mine[f"rng/{world.rank}"]
            best = {name.removeprefix("best/"): t for name, t in mine.items() if name.startswith("best/")}
            stoppers[side.name].load(state["early_stopping"][side.name], best)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainError(
            "--resume", path, f"it is not a whole checkpoint of this run ({error})", "Start another run"
        ) from error
    return int(state["step"])


def _check_shapes(tensors: dict[str, Tensor], sides: list[Side]) -> None:
    for side in sides:
        for name, p in side.model.named_parameters():
            found = tensors[f"{side.name}/model/{name}"]
            if found.shape != p.shape or found.dtype != p.dtype:
                raise ValueError(f"{side.name}/model/{name} is {list(found.shape)} {found.dtype}, not {list(p.shape)}")


def save_weights(folder: Path, side: Side) -> None:
    """``weights-<side>.safetensors``: the weights alone, by parameter name."""
    weights = {name: _alone(p) for name, p in side.model.named_parameters()}
    with files.aside(folder / f"weights-{side.name}.safetensors") as temporary:
        save_file(weights, temporary)
