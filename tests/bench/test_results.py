"""Files of runs: whole, of this format, and where they cannot be, an error that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusedtrain.bench import results as files
from fusedtrain.bench.errors import BenchError, unknown

from .conftest import Run, results, timings, write


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = results(**timings(0, 2.0))
    path = tmp_path / "deep" / "run.json"
    files.write_json(path, run)
    assert files.load(path) == run
    assert list(path.parent.iterdir()) == [path]


BAD = {
    "truncated": (json.dumps(results())[:-20], "no whole JSON", "copy it again"),
    "empty": ("", "no whole JSON", "copy it again"),
    "newer": (json.dumps(results() | {"schema": 2}), "schema is 2, and this fusedtrain reads up to 1", "newer one"),
    "other program": (json.dumps({"rows": []}), "not written by bench run", "bench run --json"),
    "list": ("[1, 2]", "not written by bench run", "bench run --json"),
    "no schema": (json.dumps(results() | {"schema": None}), "schema is None", "bench run --json"),
    "odd rows": (json.dumps(results() | {"rows": [1]}), "row 0 is no row of a run", "bench run --json"),
    "rows of nobody": (json.dumps(results() | {"rows": [{"name": "x"}]}), "row 0 is no row", "bench run --json"),
    "no rows": (json.dumps(results() | {"rows": 3}), "has no rows", "bench run --json"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_bad_files_are_refused(bench: Run, tmp_path: Path, command: str, what: str) -> None:
    text, reason, remedy = BAD[what]
    path, good = tmp_path / "bad.json", write(tmp_path / "good.json", results(**timings(0, 2.0)))
    path.write_text(text)
    done = bench(command, *((good, path) if command == "compare" else (path,)))
    told = " ".join(done.output.split())
    assert done.exit_code == 2
    assert reason in told and remedy in told and str(path) in told.replace(" ", "")
    assert {p.name for p in tmp_path.iterdir()} == {"bad.json", "good.json"}


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="No such file"):
        files.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("option", ["--json", "--csv", "--md"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    bench: Run, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "run.json", tmp_path):
        rest = () if option == "--json" else ("--json", tmp_path / "run.json")
        done = bench("run", "--quick", option, bad, *rest)
        told = " ".join(done.output.split())
        assert done.exit_code == 2
        assert f"bench: {option}" in told and "Name a file" in told
        assert "copy bandwidth" not in told
        assert not (tmp_path / "run.json").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run.json", results())
    before = path.read_text()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BenchError, match="No space left on device"):
        files.write_json(path, {})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_names_get_the_nearest() -> None:
    names = ["clip + AdamW, GPT-2 small", "clip + AdamW, GPT-2 XL", "optim", "torch-fused"]
    assert "Did you mean 'optim'?" in str(unknown("SUITE", "optm", "suite", names))
    assert "Did you mean 'torch-fused'?" in str(unknown("--providers", "fused", "provider", names))
    assert "Did you mean 'clip + AdamW, GPT-2 small'?" in str(
        unknown("--workload", "clip+adamw,gpt2 small", "w", names)
    )
    assert "Did you mean" not in str(unknown("SUITE", "xyzzy", "suite", names))
    assert "There are" in str(unknown("SUITE", "xyzzy", "suite", names))
