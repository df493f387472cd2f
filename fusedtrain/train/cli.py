"""The command line of ``python -m fusedtrain train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fusedtrain.train import settings
from fusedtrain.train.errors import TrainError
from fusedtrain.train.world import rank_from_env

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)


def _option(name: str, text: str) -> Any:
    """A typer option whose help ends with its default, by task where tasks differ."""
    values = {task: d[name] for task, d in settings.DEFAULTS.items() if d.get(name) is not None}
    if len(set(values.values())) == 1 and len(values) == len(settings.DEFAULTS):
        shown = f" [default: {_show(next(iter(values.values())))}]"
    else:
        shown = f" [{', '.join(f'{task}: {_show(value)}' for task, value in values.items())}]" if values else ""
    choices = settings.CHOICES.get(name)
    listed = f" ({', '.join(choices)})" if choices else ""
    return typer.Option(settings.option(name), help=(text + listed + shown).replace("[", r"\["), show_default=False)


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@app.command(name="train")
def train(
    context_: typer.Context,
    task: Annotated[str | None, _option("task", "What to learn")] = None,
    text: Annotated[str | None, _option("text", "A file or folder; without it, Python's standard library")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder, to the bit.")] = None,
    out: Annotated[Path | None, typer.Option(help=r"Folder of the new run. \[default: runs/TASK-TIME]")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Stop training after so long; resumable.")] = None,
    steps: Annotated[int | None, _option("steps", "Optimizer steps at most")] = None,
    batch: Annotated[int | None, _option("batch", "Rows of a mini-batch, over all processes")] = None,
    model: Annotated[str | None, _option("model", "mlp or conv for digits; transformer for text")] = None,
    width: Annotated[int | None, _option("width", "Width of the model")] = None,
    depth: Annotated[int | None, _option("depth", "Layers or blocks")] = None,
    heads: Annotated[int | None, _option("heads", "Attention heads")] = None,
    context: Annotated[int | None, _option("context", "Bytes of context")] = None,
    activation: Annotated[str | None, _option("activation", "Activation")] = None,
    init: Annotated[str | None, _option("init", "Initialisation of the weights")] = None,
    dropout: Annotated[float | None, _option("dropout", "Drop probability")] = None,
    lr: Annotated[float | None, _option("lr", "Learning rate")] = None,
    warmup: Annotated[int | None, _option("warmup", "Steps of linear warm-up")] = None,
    schedule: Annotated[str | None, _option("schedule", "Learning rate after the warm-up")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", "Decoupled weight decay (L2)")] = None,
    l1: Annotated[float | None, _option("l1", "L1 coefficient")] = None,
    max_norm: Annotated[float | None, _option("max_norm", "Clip the gradient norm; inf: off")] = None,
    clip_value: Annotated[float | None, _option("clip_value", "Then clip each gradient; inf: off")] = None,
    shift: Annotated[float | None, _option("shift", "Augmentation: shift, in pixels")] = None,
    rotate: Annotated[float | None, _option("rotate", "Augmentation: rotation, in degrees")] = None,
    eval_every: Annotated[int | None, _option("eval_every", "Steps between evaluations and checkpoints")] = None,
    patience: Annotated[int | None, _option("patience", "Evaluations without gain before stopping")] = None,
    seed: Annotated[int | None, _option("seed", "Seed of everything random")] = None,
    device: Annotated[str | None, _option("device", "Device")] = None,
    backend: Annotated[str | None, _option("backend", "Of the fused side; python -m fusedtrain env lists them")] = None,
    dtype: Annotated[str | None, _option("dtype", "Dtype of the weights")] = None,
) -> None:
    """Train one model from one seed twice, with stock PyTorch and with fusedtrain, step by step in turn.

    Prints both sides' scores, step times and memory, and leaves metrics, plots and weights in the run folder.
    """
    try:
        from fusedtrain.train import job  # after the options are parsed: --help needs none of what it imports
    except ModuleNotFoundError as error:
        raise SystemExit(f"python -m fusedtrain train needs {error.name}: pip install 'fusedtrain[train]'") from None
    given = {name: value for name, value in context_.params.items() if name not in ("resume", "out", "max_seconds")}
    try:
        raise SystemExit(job.run(given, out, resume, max_seconds, Console()))
    except TrainError as error:
        if rank_from_env() == 0:
            shown = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
            shown.print(f"error: {error}", style="bold red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
