"""A run for people and for spreadsheets: lines as it goes, a table at its end, CSV, Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

from rich.markup import escape
from rich.table import Table

from fusedtrain.bench.figures import Figure, figures, of_results
from fusedtrain.bench.measure import Row
from fusedtrain.bench.workload import SUITES


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:,.3g} {unit}" if seconds < 1000 * scale else f"{seconds / scale:,.0f} {unit}"
    return f"{seconds / 1e-9:,.3g} ns"


def size(n: int | None) -> str:
    if n is None:
        return ""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= scale:
            return f"{n / scale:,.1f} {unit}"
    return f"{n} B"


def spread(f: Figure) -> str:
    """Half the distance between the quartiles, relative to the median."""
    if f.seconds is None or f.low is None or f.high is None:
        return ""
    return f"± {(f.high - f.low) / 2 / f.seconds:.0%}"


def ratio(f: Figure) -> str:
    if f.ratio is None:
        return ""
    return f"{f.ratio:.2f}x ({interval(f.ratio_low, f.ratio_high)})"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """A dash where too few visits tell none."""
    return "-" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def lines(row: Row, copy_bandwidth: float | None) -> list[str]:
    """A row as it is finished: a line for each provider that was timed or went wrong, and one for the rest."""
    shown = [f"{row['name']} ({row['dtype']} on {row['device']}, {row['clock']} time)"]
    absent = []
    for f in figures(row, copy_bandwidth):
        if f.seconds is not None:
            share = f"{f.share_of_copy:6.1%} of copy" if f.share_of_copy is not None else ""
            shown.append(f"  {f.provider:<22} {duration(f.seconds):>9} {spread(f):>7}  {ratio(f):<24} {share}".rstrip())
        elif f.provider in row["providers"] and "why_not" in row["providers"][f.provider]:
            absent.append(f.provider)
        else:
            shown.append(f"  {f.provider:<22} {f.reason}")
    if absent:
        shown.append(f"  not here: {', '.join(absent)}")
    return shown


def table(results: dict[str, Any]) -> Table:
    """Everything that was timed."""
    shown = Table(
        title="fusedtrain bench",
        caption="ratio: how many times as long the baseline of the row takes, median of the rounds and its 95 % "
        "interval, - with fewer than three visits. copy: share of the copy bandwidth. error: against fp64, in torch's "
        "own.",
    )
    for column in ("workload", "provider"):
        shown.add_column(column)
    for column in ("time", "spread", "ratio", "copy", "peak", "saved", "error"):
        shown.add_column(column, justify="right")
    last = ""
    for f in of_results(results):
        if f.seconds is None and not f.reason.startswith(("WRONG", "failed")) and f.provider:
            continue
        name, last = ("" if f.workload == last else f.workload), f.workload
        if f.seconds is None:
            shown.add_row(escape(name), escape(f.provider), f"[red]{escape(f.reason)}")
            continue
        share = "" if f.share_of_copy is None else f"{f.share_of_copy:.0%}"
        shown.add_row(
            escape(name), escape(f.provider), duration(f.seconds), spread(f), ratio(f), share, size(f.peak_bytes),
            size(f.saved_bytes), error(f),
        )  # fmt: skip
    return shown


def error(f: Figure) -> str:
    if f.max_error is None or not f.max_error_of_torch:
        return ""
    return f"{f.max_error / f.max_error_of_torch:.2g}x"


LAW = ("n", "provider", "fixed a", "b", "exponent k", "misfit")


def laws(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of `LAW` for everything that has one."""
    return [
        (
            law["axis"],
            law["provider"],
            duration(law["fixed"]),
            duration(law["scale"]),
            f"{law['exponent']:.2f}" + (f" ± {law['exponent_error']:.2f}" if law["exponent_error"] is not None else ""),
            f"{law['misfit']:.0%}",
        )
        for law in results["fits"]
        if "exponent" in law
    ]


def reasons(results: dict[str, Any]) -> dict[str, list[str]]:
    """Why providers were not measured: reason, and the providers that have it."""
    found: dict[str, list[str]] = {}
    for f in of_results(results):
        if f.seconds is None:
            who = found.setdefault(f.reason, [])
            name = f.provider or f.workload
            if f.provider and f.reason.startswith(("WRONG", "failed")):
                name = f"{f.provider}, of {f.workload}"
            if name not in who:
                who.append(name)
    return found


def as_csv(results: dict[str, Any]) -> str:
    """A line for each workload and provider; numbers in full, times in seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Figure)])
    for f in of_results(results):
        writer.writerow(["" if value is None else value for value in dataclasses.astuple(f)])
    return out.getvalue()


def markdown_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _what(suite: str) -> list[str]:
    return [f"{SUITES[suite][0].upper()}{SUITES[suite][1:]}.", ""] if suite in SUITES else []


def as_markdown(results: dict[str, Any]) -> str:
    """A table for each suite."""
    shown: list[str] = []
    head = ("workload", "provider", "time", "spread", "ratio (95 %)", "of copy", "peak", "saved", "error / torch's")
    for suite in dict.fromkeys(row["suite"] for row in results["rows"]):
        shown += [f"### {suite}", "", *_what(suite), markdown_row(*head), "|" + "---|" * len(head)]
        for f in of_results(results):
            if f.suite == suite and f.seconds is not None:
                share = "" if f.share_of_copy is None else f"{f.share_of_copy:.0%}"
                shown.append(
                    markdown_row(
                        f.workload, f.provider, duration(f.seconds), spread(f), ratio(f), share, size(f.peak_bytes),
                        size(f.saved_bytes), error(f),
                    )
                )  # fmt: skip
        shown.append("")
    told = reasons(results)
    if told:
        shown += ["### Not measured", ""]
        shown += [f"- {', '.join(who)}: {why}" for why, who in told.items()]
        shown.append("")
    return "\n".join(shown)
