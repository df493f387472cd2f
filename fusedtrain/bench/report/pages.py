"""From the JSON of one run or several of one machine to a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console

from fusedtrain.bench import compare, fits, gains, results, tables
from fusedtrain.bench.errors import BenchError
from fusedtrain.bench.figures import Figure, of_results
from fusedtrain.bench.report import bars, plots
from fusedtrain.bench.report.style import STYLE
from fusedtrain.bench.report.template import PAGE
from fusedtrain.bench.results import Results

HEADS = (
    "workload", "provider", "dtype", "time", "spread", "ratio (95 %)", "of copy", "host", "launches", "error / torch's",
)  # fmt: skip


def write(paths: Sequence[Path], html: Path, markdown: Path | None, console: Console) -> None:
    """Writes the page.

    Raises:
        BenchError: a file cannot be read or written, or the runs are of different machines.
    """
    merged = load(paths)
    results.write_text(html, page(merged))
    console.print(f"written to {html}")
    if markdown is not None:
        results.write_text(markdown, as_markdown(merged))
        console.print(f"written to {markdown}")


def load(paths: Sequence[Path]) -> Results:
    """One run, or several as one: where two have the same row, the later file's stands."""
    runs = [results.load(path) for path in paths]
    first = runs[0]
    rows: dict[Any, Any] = {}
    for path, run in zip(paths, runs, strict=True):
        different = compare.differences(first, run)
        if different:
            reason = f"it is of another machine or setting than {paths[0]} ({'; '.join(different)})"
            raise BenchError("report", path, reason, "Make a page of each")
        for row in run["rows"]:
            own = {"copy_bandwidth": run["copy_bandwidth"]} if run.get("copy_bandwidth") else {}
            rows[row["name"], row["dtype"], row["device"]] = row | own
    listed = list(rows.values())
    return {
        **first,
        "rows": listed,
        "fits": fits.of_rows(listed),
        "all_gains": [run["gains"] for run in runs if "gains" in run],
        "copy_bandwidths": [one for run in runs for one in run.get("copy_bandwidths") or [run.get("copy_bandwidth")]],
        "complete": all(run.get("complete") for run in runs),
        "runs": runs,
    }


def page(run: Results) -> str:
    """The HTML, which needs nothing but itself."""
    found = of_results(run)
    providers = list(dict.fromkeys(f.provider for f in found if f.seconds is not None))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(PAGE).render(
        style=STYLE,
        machine=_machine(run),
        facts=_facts(run),
        incomplete=not run["complete"],
        numbers=_numbers(found),
        gains=[{"model": g["model"], "lines": gains.lines(g)[1:] or gains.lines(g)} for g in run["all_gains"]],
        suites=bars.of_suites(run, providers),
        plots=_plots(run, providers),
        law=tables.LAW,
        laws=tables.laws(run),
        memory=bars.of_memory(run, providers),
        heads=HEADS,
        lines=[_cells(f) for f in found if f.seconds is not None],
        reasons=[(why, ", ".join(who)) for why, who in tables.reasons(run).items()],
    )


def as_markdown(run: Results) -> str:
    """The tables of the page, for a place that shows no HTML."""
    shown = [f"# fusedtrain against PyTorch on {_machine(run)}", ""]
    shown += [f"- {key}: {value}" for key, value in _facts(run)]
    for gain in run["all_gains"]:
        shown += ["", "```", *gains.lines(gain), "```"]
    shown += ["", tables.as_markdown(run)]
    laws = tables.laws(run)
    if laws:
        shown += ["### Laws: t = a + b n^k", "", tables.markdown_row(*tables.LAW), "|" + "---|" * len(tables.LAW)]
        shown += [tables.markdown_row(*law) for law in laws]
    return "\n".join(shown).rstrip() + "\n"


def _machine(run: Results) -> str:
    gpus = [gpu["name"] for gpu in run["machine"].get("gpus", [])]
    if gpus and str(run["options"].get("device", "")).startswith("cuda"):
        return str(gpus[0])
    threads = run["options"].get("threads")
    return f"{run['machine'].get('cpu')}, {threads} thread{'' if threads == 1 else 's'}"


def _facts(run: Results) -> list[tuple[str, str]]:
    machine, runs = run["machine"], run["runs"]
    memory = machine.get("memory_bytes")
    ours = [f"{name} ({state})" for name, state in run.get("backends", {}).items() if state.startswith("available")]
    return [
        ("measured", _each(str(one.get("when")) for one in runs)),
        (
            "commit",
            _each(
                f"{one.get('commit') or 'unknown'}{' with changes' * bool(one.get('changed_since'))}" for one in runs
            ),
        ),
        ("versions", _each(_versions(one["versions"]) for one in runs)),
        ("others", _each(_versions(one.get("peers", {})) for one in runs) or "none, or not recorded"),
        ("machine", f"{machine.get('cpus')} CPUs, {tables.size(memory)}, {machine.get('cpu_capability')}"),
        ("backends", "; ".join(ours)),
        ("copy bandwidth", _copies(run)),
        ("load at the start", _each(f"{one['load']:.2f}" for one in runs if isinstance(one.get("load"), float))),
        ("command", _each(str(one.get("command")) for one in runs)),
    ]


def _each(told: Iterable[str]) -> str:
    """What several runs say, where they differ."""
    return "; ".join(dict.fromkeys(filter(None, told)))


def _versions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _copies(run: Results) -> str:
    """The range, for the machine's clock wanders."""
    found = [one / 1e9 for one in run["copy_bandwidths"] if one]
    if not found:
        return "unknown"
    low, high = f"{min(found):,.1f}", f"{max(found):,.1f}"
    return f"{low if low == high else f'{low} to {high}'} GB/s, reads and writes counted"


def _numbers(found: Sequence[Figure]) -> list[tuple[str, str]]:
    ours = [f for f in found if f.ours and f.provider != "fusedtrain-reference" and f.ratio]
    faster = sum(f.ratio_low > 1 for f in ours if f.ratio_low)
    slower = sum(f.ratio_high < 1 for f in ours if f.ratio_high)
    wrong = sum(f.ours and f.reason.startswith(("WRONG", "failed")) for f in found)
    return [
        (str(len(ours)), "rows of ours beside their baseline"),
        (str(faster), "faster: the whole interval above 1x"),
        (str(slower), "slower: the whole interval below 1x"),
        (str(wrong), "wrong or broken"),
    ]


def _plots(run: Results, providers: Sequence[str]) -> list[dict[str, str]]:
    drawn = []
    shares = plots.shares(run["rows"], run.get("copy_bandwidth"))
    kept = [s for s in shares if s.provider != "fusedtrain-reference"]
    if kept:
        svg = plots.plot(kept, providers, "bytes that must move", "share of copy bandwidth", line_at=1.0)
        what = "Above 1 is no mistake: of small sizes, what is needed lay in a cache; and a copy on a CPU reads, "
        what += "uncounted, the lines that it is to write, which a step has read before."
        drawn.append({"title": "Share of the copy bandwidth against size", "what": what, "svg": svg})
    names = {"tensors": "Host time against the number of tensors"}
    for name in ("tensors", "elements", "groups", "threads", "ranks"):
        series = plots.axis(run["rows"], run["fits"], name)
        if series:
            svg = plots.plot(series, providers, name, "microseconds for one step")
            title = names.get(name, f"Time against {name}")
            drawn.append({"title": title, "what": f"Of clip + AdamW: {plots.axis_label(name)}.", "svg": svg})
    return [{**one, "svg": plots.unique_ids(one["svg"], f"p{i}")} for i, one in enumerate(drawn)]


def _cells(f: Figure) -> tuple[str, ...]:
    share = "" if f.share_of_copy is None else f"{f.share_of_copy:.0%}"
    launches = "" if f.launches is None else str(f.launches)
    return (
        f.workload, f.provider, f.dtype, tables.duration(f.seconds), tables.spread(f), tables.ratio(f), share,
        tables.duration(f.host_seconds), launches, tables.error(f),
    )  # fmt: skip
