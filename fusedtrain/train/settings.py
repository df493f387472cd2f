"""The settings of a run: defaults by task, checks before anything is written, JSON in the run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

import fusedtrain
from fusedtrain import dispatch, rules
from fusedtrain.train.errors import TrainError

FORMAT = "fusedtrain run 1"
FILE = "settings.json"


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run's numbers. None: the option does not belong to this task."""

    task: str
    model: str
    width: int
    depth: int
    activation: str
    init: str
    dropout: float
    steps: int
    batch: int
    lr: float
    warmup: int
    schedule: str
    weight_decay: float
    l1: float
    max_norm: float
    clip_value: float
    eval_every: int
    patience: int
    seed: int
    device: str
    backend: str | None
    dtype: str
    shift: float | None
    rotate: float | None
    text: str | None
    heads: int | None
    context: int | None

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32


_SHARED: dict[str, Any] = {"init": "auto", "schedule": "cosine", "seed": 0, "device": "auto", "dtype": "float32"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        **_SHARED,
        "model": "mlp",
        "width": 512,
        "depth": 2,
        "activation": "relu",
        "dropout": 0.2,
        "steps": 1500,
        "batch": 128,
        "lr": 2e-3,
        "warmup": 50,
        "weight_decay": 0.01,
        "l1": 1e-5,
        "max_norm": 1.0,
        "clip_value": 0.1,
        "eval_every": 50,
        "patience": 10,
        "shift": 1.0,
        "rotate": 10.0,
    },
    "text": {
        **_SHARED,
        "model": "transformer",
        "width": 128,
        "depth": 4,
        "activation": "gelu",
        "dropout": 0.1,
        "steps": 300,
        "batch": 16,
        "lr": 2e-3,
        "warmup": 30,
        "weight_decay": 0.1,
        "l1": 0.0,
        "max_norm": 1.0,
        "clip_value": math.inf,
        "eval_every": 50,
        "patience": 5,
        "text": None,
        "heads": 4,
        "context": 128,
    },
}
"""What each task understands, and its value unless the user says otherwise."""

CHOICES = {
    "task": tuple(DEFAULTS),
    "init": ("auto", "he", "xavier"),
    "schedule": ("constant", "cosine"),
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("float32", "float64"),
    "activation": tuple(rules.ACTIVATIONS),
}
MODELS = {"digits": ("mlp", "conv"), "text": ("transformer",)}

_AT_LEAST_ONE = ("width", "depth", "heads", "context", "steps", "batch", "eval_every", "patience")
_AT_LEAST_ZERO = ("warmup", "seed", "weight_decay", "l1", "shift", "rotate")
_POSITIVE = ("lr",)
_BOUNDS = ("max_norm", "clip_value")


def option(name: str) -> str:
    """The option as it is typed: ``weight_decay`` -> ``--weight-decay``."""
    return "--" + name.replace("_", "-")


def new(given: dict[str, Any], world_size: int = 1) -> Settings:
    """The settings of a new run from the options the user gave.

    Args:
        given: option name -> value; absent or None means the task's default.
        world_size: the number of processes that share each batch.

    Raises:
        TrainError: naming the option, its value, the reason and the remedy.
    """
    given = {name: value for name, value in given.items() if value is not None}
    task = given.get("task", "digits")
    _check_choice("task", task, CHOICES["task"])
    defaults = DEFAULTS[task]
    for name, value in given.items():
        if name not in ("task", "backend") and name not in defaults:
            other = next(t for t in DEFAULTS if name in DEFAULTS[t])
            raise TrainError(
                option(name), value, f"it means nothing to --task {task}", f"Leave it out or use --task {other}"
            )
    fields = {f.name: None for f in dataclasses.fields(Settings)}
    settings = Settings(**{**fields, **defaults, **given, "task": task})
    check(settings)
    _check_batch(settings, world_size)
    return dataclasses.replace(settings, device=resolve_device(settings.device))


def check(settings: Settings) -> None:
    """Raises TrainError for the first value that cannot be run here. Touches no file."""
    values = dataclasses.asdict(settings)
    for name, choices in CHOICES.items():
        _check_choice(name, values[name], choices)
    _check_choice("model", settings.model, MODELS[settings.task])
    for name, value in values.items():
        if value is None or isinstance(value, str):
            continue
        if math.isnan(value):
            raise TrainError(option(name), value, "it is not a number", "Give a finite number")
        if name in _AT_LEAST_ONE and value < 1:
            raise TrainError(option(name), value, "it must be at least 1", f"Use a number such as {_example(name)}")
        if name in _AT_LEAST_ZERO and (value < 0 or math.isinf(value)):
            raise TrainError(option(name), value, "it must be finite and at least 0", "Use 0 to switch it off")
        if name in _POSITIVE and (value <= 0 or math.isinf(value)):
            raise TrainError(
                option(name), value, "it must be finite and above 0", f"Use a number such as {_example(name)}"
            )
        if name in _BOUNDS and value <= 0:
            raise TrainError(option(name), value, "it must be above 0", "Use inf to switch this clipping off")
    if not 0 <= settings.dropout < 1:
        raise TrainError(
            "--dropout", settings.dropout, "it must be a probability in [0, 1)", "Use 0 to switch dropout off"
        )
    if settings.seed >= 2**63:
        raise TrainError("--seed", settings.seed, "it must fit in 63 bits", "Use a smaller number")
    if settings.heads is not None and settings.width % settings.heads:
        raise TrainError(
            "--width", settings.width, f"it is not a multiple of --heads {settings.heads}", "Change one of the two"
        )
    _check_backend(settings)


def _example(name: str) -> Any:
    return next(defaults[name] for defaults in DEFAULTS.values() if name in defaults)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise TrainError(option(name), value, "it is unknown", f"Choose one of {', '.join(choices)}")


def _check_batch(settings: Settings, world_size: int) -> None:
    if settings.batch % world_size:
        raise TrainError(
            "--batch", settings.batch, f"it does not divide among {world_size} processes", "Use a multiple of them"
        )


def _check_backend(settings: Settings) -> None:
    if settings.backend is None:
        return
    _check_choice("backend", settings.backend, dispatch.ORDER)
    device = torch.device(resolve_device(settings.device))
    dtypes = frozenset({settings.torch_dtype})
    for rule in (settings.activation, "adamw"):
        try:
            dispatch.resolve("train", device, dtypes, rule, settings.backend)
        except RuntimeError as error:
            usable = [name for name, line in fusedtrain.backends().items() if line.startswith("available")]
            raise TrainError(
                "--backend", settings.backend, str(error).rstrip("."), f"Here one can choose {', '.join(usable)}"
            ) from None


def resolve_device(name: str) -> str:
    """``auto`` -> ``cuda`` where there is a GPU, else ``cpu``."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise TrainError("--device", name, "PyTorch sees no CUDA GPU here", "Use --device cpu or auto")
    return ("cuda" if available else "cpu") if name == "auto" else name


def to_json(settings: Settings, **extra: Any) -> str:
    """What `FILE` holds: the settings, and what else must not change between parts of a run. An infinite bound is
    written as the string "inf", since JSON has none."""
    values = {name: "inf" if value == math.inf else value for name, value in dataclasses.asdict(settings).items()}
    return json.dumps({"format": FORMAT, **extra, "settings": values}, indent=2) + "\n"


def from_run(folder: Path, given: dict[str, Any], world_size: int = 1) -> tuple[Settings, dict[str, Any]]:
    """The settings of a run to be continued, and the rest of its settings file.

    Args:
        folder: the run folder.
        given: the options given beside ``--resume``: they must agree with the run. Only the number of steps may change,
            and only under a constant learning rate, which does not depend on it.

    Raises:
        TrainError: no run there, or another task or other settings.
    """
    path = folder / FILE
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']!r}, this version reads {FORMAT!r}")
        values: dict[str, Any] = stored.pop("settings")
        values = {name: math.inf if value == "inf" else value for name, value in values.items()}
        settings = Settings(**values)
        _check_types(settings)
    except OSError as error:
        raise TrainError(
            "--resume", folder, f"{FILE} cannot be read there ({error.strerror})", "Name the folder of an earlier run"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(
            "--resume", folder, f"{FILE} is not the settings of a run ({error})", "Name the folder of an earlier run"
        ) from None
    for name, value in given.items():
        if value is None or value == values[name] or (name == "device" and resolve_device(value) == values[name]):
            continue
        if name == "text" and values[name] is not None and str(Path(value).resolve()) == values[name]:
            continue
        if name == "steps" and settings.schedule == "constant":
            settings = dataclasses.replace(settings, steps=value)
            continue
        why = f"the run in {folder} has {option(name)} {values[name]}"
        raise TrainError(option(name), value, why, f"Leave {option(name)} out to continue it, or start another run")
    check(settings)
    resolve_device(settings.device)
    if stored.get("world_size") != world_size:
        raise TrainError(
            "--resume",
            folder,
            f"the run has {stored.get('world_size')} processes, this one {world_size}",
            "Use as many (torchrun --nproc-per-node)",
        )
    return settings, stored


def _check_types(settings: Settings) -> None:
    for name, kind in get_type_hints(Settings).items():
        value = getattr(settings, name)
        if not isinstance(value, int | kind if kind in (float, float | None) else kind) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")


def seed_for(seed: int, *stream: object) -> int:
    """An independent 63-bit seed for one use of randomness: ``stream`` names it, e.g. ``("augment", step)``. Being a
    function of the step and not of what was drawn before, it makes data order resumable without any state."""
    key = "/".join(str(part) for part in (seed, *stream))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
