"""The record of a run and its statistics."""

from __future__ import annotations

import csv
import json
import math
import os

import pytest
import torch
from torch import nn

from fusedtrain.train import metrics
from fusedtrain.train.early_stopping import EarlyStopping
from fusedtrain.train.errors import TrainError
from fusedtrain.train.metrics import PARTS


def row(step: int, stock: float | None, fused: float | None, **more) -> metrics.Row:
    made = {"step": step, "lr": 0.1, "first": "stock", **more}
    for name, seconds in (("stock", stock), ("fused", fused)):
        if seconds is not None:
            made |= {f"{name}_loss": 1.0 / step, f"{name}_clip_coef": 1.0, **{f"{name}_{p}_s": seconds for p in PARTS}}
    return made


def test_ratio_is_taken_step_by_step():
    """Noise that lasts longer than a step cancels: the ratio of medians would be 1 here."""
    rows = [row(1, 2.0, 1.0), row(2, 4.0, 2.0), row(3, 2.0, 1.0), row(4, 1.0, 2.0)]
    times = metrics.paired(rows, ("forward",))
    assert times.ratio.median == 2.0
    assert times.stock.median == 2.0
    assert times.steps == 4
    assert metrics.paired(rows).stock.median == 6.0


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.012, "12.0"), (0.00056, "0.560"), (0.1024, "102"), (1.5, "1500"), (math.nan, "nan")]
)
def test_milliseconds_have_three_digits(seconds, shown):
    assert metrics.milliseconds(seconds) == shown


def test_timing_needs_both_sides_and_leaves_warm_up_out():
    rows = [row(i, 1.0, 1.0) for i in range(1, 31)] + [row(31, 1.0, None)]
    assert [r["step"] for r in metrics.warm(rows)] == list(range(4, 31))
    assert len(metrics.warm([row(i, 1.0, 1.0) for i in range(1, 1001)])) == 980
    assert math.isnan(metrics.paired([]).ratio.median)


def test_share_clipped_counts_the_steps_a_side_took():
    rows = [row(1, 1.0, 1.0), {**row(2, 1.0, None), "stock_clip_coef": 0.5}]
    assert metrics.share_clipped(rows, "stock") == 0.5
    assert metrics.share_clipped(rows, "fused") == 0.0
    assert math.isnan(metrics.share_clipped([], "stock"))


def test_both_files_hold_the_rows_and_resuming_drops_the_later_ones(tmp_path):
    log = metrics.Log(tmp_path)
    for step in range(1, 6):
        log.append(row(step, 0.5, None if step == 3 else 0.25))
    log.close()
    lines = (tmp_path / metrics.JSONL).read_text().splitlines()
    table = list(csv.DictReader((tmp_path / metrics.CSV).open()))
    assert [json.loads(line)["step"] for line in lines] == [int(r["step"]) for r in table] == [1, 2, 3, 4, 5]
    assert tuple(table[0]) == metrics.COLUMNS
    assert table[2]["fused_loss"] == ""
    assert float(table[4]["stock_loss"]) == json.loads(lines[4])["stock_loss"] == 0.2

    with (tmp_path / metrics.JSONL).open("a") as file:
        file.write('{"step": 6, "stock_lo')  # the line a kill tore
    with (tmp_path / metrics.JSONL).open("ab") as file:
        file.write(b"\xff\x00")
    log = metrics.Log(tmp_path, keep=3)
    assert [r["step"] for r in log.rows] == [1, 2, 3]
    log.append(row(4, 1.0, 1.0))
    log.close()
    assert len((tmp_path / metrics.JSONL).read_text().splitlines()) == 4
    assert len((tmp_path / metrics.CSV).read_text().splitlines()) == 5


def written(folder, steps):
    log = metrics.Log(folder)
    for step in range(1, steps + 1):
        log.append(row(step, 0.5, 0.25))
    log.close()
    return folder / metrics.JSONL


DAMAGES = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "too few": (lambda path: path.write_text("".join(path.read_text().splitlines(True)[:2])), "ends after step 2"),
    "cut within a line": (lambda path: path.write_text(path.read_text()[:-20]), "Unterminated|delimiter|Expecting"),
    "a line lost": (lambda path: path.write_text("".join(path.read_text().splitlines(True)[1:])), "line 1 is not"),
    "no rows": (lambda path: path.write_text("[]\n" * 5), "line 1 is not the row of step 1"),
    "noise": (lambda path: path.write_bytes(b"\xff\xfe" * 100), "Expecting value"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_rows_of_a_checkpoint_that_are_not_all_there_are_refused(damage, tmp_path):
    path = written(tmp_path, 4)
    harm, reason = DAMAGES[damage]
    harm(path)
    kept = path.read_bytes() if path.exists() else None
    with pytest.raises(TrainError, match=rf"--resume .*metrics\.jsonl.* 4 steps .*({reason}).*or start another run"):
        metrics.Log(tmp_path, keep=4)
    assert (path.read_bytes() if path.exists() else None) == kept


def test_flushed_rows_are_on_the_disk(tmp_path, monkeypatch):
    log, synced = metrics.Log(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((descriptor, os.fstat(descriptor).st_size)))
    log.append(row(1, 0.5, 0.25))
    log.flush()
    sizes = [(tmp_path / name).stat().st_size for name in (metrics.JSONL, metrics.CSV)]
    assert synced == [(file.fileno(), size) for file, size in zip(log._files, sizes, strict=True)]
    assert sizes[0] > 0
    log.close()


def test_diverged_values_are_valid_json_and_come_back_as_nan(tmp_path):
    log = metrics.Log(tmp_path)
    log.append({"step": 1, "stock_loss": math.nan, "fused_loss": math.inf})
    log.close()
    assert json.loads((tmp_path / metrics.JSONL).read_text()) == {"step": 1, "stock_loss": None, "fused_loss": None}
    assert math.isnan(metrics.read(tmp_path, 1)[0]["stock_loss"])


def test_early_stopping_keeps_the_best_and_counts_nan_as_no_gain():
    model, stopper = nn.Linear(1, 1, bias=False), EarlyStopping(patience=3)
    for step, loss in enumerate([3.0, 1.0, 2.0, math.nan], start=1):
        with torch.no_grad():
            model.weight.fill_(step)
        stopper.update(step, loss, model)
    assert not stopper.stopped
    assert (stopper.best, stopper.best_step, stopper.bad) == (1.0, 2, 2)

    again = EarlyStopping(patience=3)
    again.load(json.loads(json.dumps(stopper.to_json())), stopper.weights)
    again.update(5, 1.0, model)  # equal is not better
    assert again.stopped_at == 5
    again.restore(model)
    assert model.weight.item() == 2.0


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_restarts_its_patience_at_each_gain(patience):
    model, stopper = nn.Linear(1, 1), EarlyStopping(patience)
    for step, loss in enumerate([5.0, 4.0, 4.5, 3.0, 3.5, 3.5], start=1):
        if not stopper.stopped:
            stopper.update(step, loss, model)
    assert stopper.stopped_at == (3 if patience == 1 else 6)
