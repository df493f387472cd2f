"""The page: whole in itself, right in its numbers, and without scripts of whoever named a workload."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusedtrain.bench import cli, fits, tables
from fusedtrain.bench.report import pages, plots, style

from .conftest import Run, results, row, timings, write


def full() -> dict[str, Any]:
    """A run that has something of everything."""
    run = results()
    odd = row("<script>alert(1)</script>", **timings(1, 3.0))
    odd["providers"]["fusedtrain-cuda"] = {"why_not": "no <b>GPU</b>"}
    odd["providers"]["fusedtrain-triton"] = {"wrong": "error 3 exceeds 2"}
    act = {**row("gelu", **timings(2, 0.5)), "suite": "act"}
    for found in act["providers"].values():
        found |= {"peak_bytes": 2**20, "saved_bytes": 2**19, "max_error": 1e-7, "max_error_of_torch": 2e-7}
    scaled = [
        {**row(f"scaling, {axis}: {n}", fusedtrain_cpu=[1e-5 + 1e-6 * n], theirs=[1e-4 + 2e-5 * n])}
        | {"axis": axis, "value": n, "suite": "scaling"}
        for axis in ("tensors", "groups", "ranks")
        for n in (1, 10, 100, 1000, 10000)
    ]
    run["rows"] = [odd, act, *scaled, {**row("too large"), "why_not": "needs 99 GB"}]
    run["fits"] = fits.of_rows(run["rows"])
    run["gains"] = {"model": "a.b:c", "why_not": "its training step was not measured"}
    return run


class Parsed(html.parser.HTMLParser):
    VOID = frozenset({"meta", "br", "path", "use", "rect", "line", "circle", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    folder = tmp_path_factory.mktemp("report")
    path = write(folder / "run.json", full())
    done = CliRunner().invoke(cli.app, ["report", str(path), "--md", str(folder / "run.md")])
    assert done.exit_code == 0, done.output
    parsed = Parsed()
    parsed.source = (folder / "run.html").read_text("utf-8")
    parsed.markdown = (folder / "run.md").read_text("utf-8")
    parsed.feed(parsed.source)
    assert parsed.open == []
    return parsed


def test_it_needs_nothing_from_elsewhere(page: Parsed) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.findall(r"https?:|@import|url\((?!#)|@font-face", page.source)


def test_names_are_text_and_no_markup(page: Parsed) -> None:
    assert "<script" not in page.source
    assert "<script>alert(1)</script>" in page.text
    assert "no <b>GPU</b>" in page.text


def test_ids_of_plots_do_not_collide(page: Parsed) -> None:
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids)) > 10
    used = {a["href"][1:] for _, a in page.tags if (a.get("href") or "").startswith("#")}
    assert used <= set(ids)
    assert sum(tag == "svg" for tag, _ in page.tags) == 4  # bandwidth, tensors, groups, ranks


def test_colours_are_the_pages_own_in_both_schemes(page: Parsed) -> None:
    drawn = page.source[page.source.index("</style>") :]
    assert not re.findall(r"#0[12]0[12]|(?:stroke|fill): #(?!none)", drawn)
    light, dark = style.STYLE.split("prefers-color-scheme: dark")
    names = set(re.findall(r"(--\w+):", light))
    assert {f"--c{i}" for i in range(plots.COLOURS)} | {"--ink", "--line", "--paper"} <= names
    assert names == set(re.findall(r"(--\w+):", dark))
    assert set(re.findall(r"var\((--\w+)\)", page.source)) <= names


def test_ours_and_the_first_nine_others_have_colours_of_their_own() -> None:
    from fusedtrain.bench.selection import OURS, PROVIDERS

    ours = [p for p in OURS if p != "fusedtrain-cpu"]  # which is never beside the others of a GPU
    listed = [*ours, *[p for p in PROVIDERS if p not in OURS][:9]]
    assert len({plots.colour(p, listed) for p in listed}) == len(listed)
    assert all(plots.colour(p, listed) < plots.COLOURS for p in PROVIDERS if p in listed)
    alone = ["torch-fused", "fusedtrain-triton"]
    assert plots.colour("fusedtrain-triton", alone) == plots.colour("fusedtrain-triton", listed)


def test_numbers_are_those_of_the_run(page: Parsed) -> None:
    run = full()
    found = tables.of_results(run)
    ours = next(f for f in found if f.workload == "gelu" and f.provider == "fusedtrain-cpu")
    assert f"{ours.ratio:.2f}x, {tables.duration(ours.seconds)}" in page.text
    assert tables.ratio(ours) in page.text and tables.ratio(ours) in page.markdown
    assert "fusedtrain-triton: WRONG: error 3 exceeds 2" in page.text
    assert "512.0 KiB" in page.text
    assert "needs 99 GB" in page.text
    assert "its training step was not measured" in page.text
    law = next(law for law in run["fits"] if law["axis"] == "tensors")
    assert f"{law['exponent']:.2f} ±" in page.text and "### Laws" in page.markdown


def test_a_wrong_row_has_no_time(page: Parsed) -> None:
    lines = [line for line in page.markdown.splitlines() if "fusedtrain-triton" in line]
    assert lines == ["- fusedtrain-triton, of <script>alert(1)</script>: WRONG: error 3 exceeds 2"]


def test_an_unfinished_run_says_so(bench: Run, tmp_path: Path) -> None:
    for complete in (False, True):
        path = write(tmp_path / "run.json", results() | {"rows": [], "complete": complete})
        assert bench("report", path).exit_code == 0
        assert ("This run was cut off" in (tmp_path / "run.html").read_text()) != complete


def test_several_runs_of_one_machine_are_one_page(bench: Run, tmp_path: Path) -> None:
    first, second = results(**timings(0, 2.0)), results(**timings(0, 4.0))
    second["rows"].append(row("another", **timings(3, 2.0)))
    paths = [write(tmp_path / "a.json", first), write(tmp_path / "b.json", second)]
    merged = pages.load(paths)
    assert [r["name"] for r in merged["rows"]] == ["played", "another"]
    assert merged["rows"][0].items() >= json.loads(paths[1].read_text())["rows"][0].items()
    write(paths[1], second | {"machine": {"cpu": "Babbage", "cpus": 2, "gpus": []}})
    refused = bench("report", *paths)
    assert refused.exit_code == 2
    assert "of another machine" in " ".join(refused.output.split())


def test_a_row_is_held_against_the_copies_of_its_own_run(tmp_path: Path) -> None:
    first, second = results(**timings(0, 2.0)), results()
    second |= {"copy_bandwidth": 2e10, "copy_bandwidths": [1.9e10, 2e10], "rows": [row("other", **timings(0, 2.0))]}
    merged = pages.load([write(tmp_path / f"{i}.json", run) for i, run in enumerate((first, second))])
    one, other = (f for f in tables.of_results(merged) if f.provider == "fusedtrain-cpu")
    assert one.share_of_copy == pytest.approx(2 * other.share_of_copy)
    (drawn,) = (s for s in plots.shares(merged["rows"], None) if s.provider == "fusedtrain-cpu")
    assert drawn.y == [one.share_of_copy, other.share_of_copy]
    assert "10.0 to 20.0 GB/s" in pages.page(merged)


def test_what_merged_runs_differ_in_is_told(tmp_path: Path) -> None:
    first, second = results(**timings(0, 2.0)), results()
    first |= {"when": "Monday", "command": "bench run optim", "peers": {"torchao": "0.18"}}
    second |= {"when": "Friday", "changed_since": True, "versions": {"torch": "2.13.0"}, "command": "bench run act"}
    shown = pages.page(pages.load([write(tmp_path / f"{i}.json", run) for i, run in enumerate((first, second))]))
    for told in ("Monday; Friday", "torch 2.11.0; torch 2.13.0", "bench run optim; bench run act", "torchao 0.18"):
        assert told in shown
    assert f"{'0' * 40}; {'0' * 40} with changes" in shown


def test_an_empty_run_has_a_page() -> None:
    run = results() | {"rows": [], "fits": [], "all_gains": [], "copy_bandwidths": []}
    run["runs"] = [run]
    assert "0 lines" in pages.page(run)
    assert pages.as_markdown(run).startswith("# fusedtrain against PyTorch on Abacus, 2 threads")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (4.2e-5, "42 us"), (3e-8, "30 ns"), (0.0, "0 ns"), (1234.0, "1,234 s")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert tables.duration(seconds) == shown
