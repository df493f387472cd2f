"""The command line of ``python -m fusedtrain bench``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fusedtrain.bench.errors import BenchError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure fusedtrain against PyTorch and others on this machine, compare runs, make a report.",
)
_NAMES = "optim, clip, act, model, scaling"


@contextmanager
def _told(console: Console) -> Iterator[None]:
    """Errors of the user's as one line, Ctrl-C as the exit status that a shell expects."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "fusedtrain":
            raise
        why = BenchError("this needs", error.name, "it is not installed", "pip install 'fusedtrain[bench]'")
        console.print(f"error: {why}", style="bold red", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(2) from None
    except BenchError as error:
        console.print(f"error: {error}", style="bold red", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print("interrupted; the rows that were finished are in the file")
        raise typer.Exit(130) from None


def _err() -> Console:
    return Console(stderr=True, emoji=False)


def _out() -> Console:
    return Console(width=None if sys.stdout.isatty() else 150, emoji=False)


@app.command()
def run(
    suites: Annotated[list[str] | None, typer.Argument(help=f"Of {_NAMES}; all but the last if none.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help="A whole name, or a part of some; repeatable.")] = None,
    providers: Annotated[str, typer.Option(help="Comma-separated; also fusedtrain, torch or peers, for all.")] = "",
    device: Annotated[str | None, typer.Option(help=r"cpu or cuda. \[default: cuda if there is one]")] = None,
    dtype: Annotated[str | None, typer.Option(help=r"fp32, bf16, fp16, fp64. \[default: each workload's own]")] = None,
    mode: Annotated[str | None, typer.Option(help=r"Of activations: fwd, bwd, full. \[default: their own]")] = None,
    model: Annotated[str | None, typer.Option(help="What would your model gain? package.module:factory")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small workloads of each suite, under a minute.")] = False,
    scaling: Annotated[bool, typer.Option("--scaling", help="Add the suite scaling.")] = False,
    cudagraph: Annotated[bool, typer.Option("--cudagraph", help="Time CUDA graphs of the calls.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help=r"Of torch on the CPU. \[default: torch's; quick: 1]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all tensors.")] = 0,
    rounds: Annotated[int | None, typer.Option(min=1, help=r"Each times every provider once. \[default: 20]")] = None,
    seconds: Annotated[float | None, typer.Option(min=1e-4, help=r"Of one timing, at least. \[default: 0.1]")] = None,
    limit: Annotated[float | None, typer.Option(min=0, help=r"Seconds for the rounds of a row. \[default: 60]")] = None,
    json: Annotated[Path | None, typer.Option(help=r"Where the run goes. \[default: runs/bench-TIME.json]")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also a table for spreadsheets.")] = None,
    md: Annotated[Path | None, typer.Option(help="Also a table in Markdown.")] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if the interval of a ratio of ours lies below this, or there is none."),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on with the next row when something of ours fails.")
    ] = False,
) -> None:
    """Check every provider against fp64, then time them in turn, round after round.

    Finished rows are in the JSON at once. Exit status: 0; 1 if something of ours is wrong, breaks, or is slower than
    --fail-under; 2 if nothing can be measured as asked.
    """
    with _told(_err()):
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells stderr of every start and stop
        from fusedtrain.bench import plans  # after the options are parsed: --help needs none of what it imports
        from fusedtrain.bench.run import run as measure_all
        from fusedtrain.bench.selection import Wanted

        chosen = list(suites or [])
        if scaling:
            chosen = [*(chosen or [name for name in _NAMES.split(", ") if name != "scaling" and not model]), "scaling"]
        wanted = Wanted(
            chosen, workload or [], providers, dtype, mode, model, device or plans.default_device(), seed, quick
        )
        timing = plans.Timing(rounds, seconds, limit, threads, cudagraph)
        outputs = plans.Outputs(json, csv, md, fail_under, keep_going)
        plan = plans.make(wanted, timing, outputs, "python -m fusedtrain bench " + shlex.join(_arguments()))
        status = measure_all(plan, _out())
    raise typer.Exit(status)


def _arguments() -> list[str]:
    """Those of this command, for the record, which is passed on: of files elsewhere it has the names alone."""
    arguments = sys.argv[2:] if sys.argv[1:2] == ["bench"] else sys.argv[1:]
    split = [argument.rpartition("=") for argument in arguments]
    return [option + sep + (Path(value).name if value.startswith("/") else value) for option, sep, value in split]


@app.command(name="list")
def list_(
    suites: Annotated[list[str] | None, typer.Argument(help=f"Of {_NAMES}.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
) -> None:
    """Show the suites, their workloads and providers, and which of these cannot run here and why."""
    with _told(_err()):
        from fusedtrain.bench import listing, plans

        listing.show(suites or [], plans.device_of(device or plans.default_device()), _out())


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="JSON of a run.")],
    after: Annotated[Path, typer.Argument(help="JSON of a later one.")],
    force: Annotated[bool, typer.Option("--force", help="Even if the machines differ.")] = False,
    level: Annotated[float, typer.Option(min=0, max=1, help="Of significance, for all rows together.")] = 0.05,
    margin: Annotated[float, typer.Option(min=0, help="Relative difference that counts as none.")] = 0.05,
    bound: Annotated[float, typer.Option(min=0, help="Relative, of the interval of what has not changed.")] = 0.5,
    fail_slower: Annotated[
        bool, typer.Option("--fail-slower", help="Exit with 1 if a row is slower, or one of ours is broken.")
    ] = False,
) -> None:
    """Say for each row whether it became faster, slower, or neither, as far as the timings can tell."""
    with _told(_err()):
        from fusedtrain.bench import comparing

        slower = comparing.show((before, after), force, level, margin, bound, _out())
    raise typer.Exit(1 if slower and fail_slower else 0)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="JSON of one run, or of several.")],
    html: Annotated[Path | None, typer.Option(help=r"The page. \[default: beside the JSON]")] = None,
    md: Annotated[Path | None, typer.Option(help="The same in Markdown, without the plots.")] = None,
) -> None:
    """Make one self-contained page with plots and tables of a run."""
    with _told(_err()):
        from fusedtrain.bench.report import pages

        pages.write(results, html or results[0].with_suffix(".html"), md, _out())


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command; for tests and ``python -m fusedtrain.bench``."""
    command: Callable[..., Any] = app
    return command(args=arguments, prog_name="python -m fusedtrain bench")


if __name__ == "__main__":
    main()
