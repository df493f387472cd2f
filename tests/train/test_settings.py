"""Bad options are refused with the option, the value, the reason and the remedy, before anything is written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fusedtrain import rules
from fusedtrain.train import settings
from fusedtrain.train.errors import TrainError

BAD = [
    ({"lr": -1.0}, "--lr -1.0", "above 0"),
    ({"lr": math.nan}, "--lr nan", "not a number"),
    ({"lr": math.inf}, "--lr inf", "finite"),
    ({"lr": 0.0}, "--lr 0.0", "above 0"),
    ({"dropout": 1.5}, "--dropout 1.5", "probability"),
    ({"dropout": -0.1}, "--dropout -0.1", "probability"),
    ({"dropout": math.nan}, "--dropout nan", "not a number"),
    ({"max_norm": -1.0}, "--max-norm -1.0", "inf to switch"),
    ({"max_norm": 0.0}, "--max-norm 0.0", "above 0"),
    ({"max_norm": math.nan}, "--max-norm nan", "not a number"),
    ({"clip_value": -0.5}, "--clip-value -0.5", "above 0"),
    ({"weight_decay": -0.1}, "--weight-decay -0.1", "at least 0"),
    ({"l1": math.inf}, "--l1 inf", "finite"),
    ({"steps": 0}, "--steps 0", "at least 1"),
    ({"batch": 0}, "--batch 0", "at least 1"),
    ({"patience": -1}, "--patience -1", "at least 1"),
    ({"seed": -1}, "--seed -1", "at least 0"),
    ({"seed": 2**63}, "--seed 9223372036854775808", "63 bits"),
    ({"task": "images"}, "--task images", "digits, text"),
    ({"activation": "swish"}, "--activation swish", "silu"),
    ({"model": "resnet"}, "--model resnet", "mlp, conv"),
    ({"backend": "vulkan"}, "--backend vulkan", "reference"),
    ({"device": "tpu"}, "--device tpu", "cuda"),
    ({"dtype": "int8"}, "--dtype int8", "float32"),
    ({"init": "zeros"}, "--init zeros", "xavier"),
    ({"schedule": "step"}, "--schedule step", "cosine"),
    ({"heads": 4}, "--heads 4", "--task text"),
    ({"task": "text", "rotate": 5.0}, "--rotate 5.0", "--task digits"),
    ({"task": "text", "width": 130}, "--width 130", "--heads 4"),
]


@pytest.mark.parametrize(("given", "names", "says"), BAD, ids=[names for _, names, _ in BAD])
def test_bad_option_is_refused(given, names, says):
    with pytest.raises(TrainError) as caught:
        settings.new(given)
    assert names in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).count(". ") >= 1  # the remedy is a sentence of its own


def test_unavailable_backend_names_its_reason_and_the_usable_ones():
    with pytest.raises(TrainError, match=r"--backend cuda: .*Here one can choose .*reference"):
        settings.new({"backend": "cuda", "device": "cpu"})


def test_batch_must_divide_among_processes():
    with pytest.raises(TrainError, match="--batch 128: it does not divide among 3"):
        settings.new({}, world_size=3)


@pytest.mark.parametrize("task", settings.DEFAULTS)
def test_defaults_are_valid_and_survive_json(task, tmp_path):
    made = settings.new({"task": task})
    (tmp_path / settings.FILE).write_text(settings.to_json(made, world_size=1, data="abc"))
    again, rest = settings.from_run(tmp_path, {})
    assert again == made
    assert rest["data"] == "abc"


def test_every_activation_of_the_registry_is_accepted():
    for name in rules.ACTIVATIONS:
        assert settings.new({"activation": name}).activation == name


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    made = settings.new({"task": "digits", "steps": 100, "schedule": "constant"})
    (tmp_path / settings.FILE).write_text(settings.to_json(made, world_size=1))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "names"),
    [({"task": "text"}, "--task text"), ({"lr": 0.5}, "--lr 0.5"), ({"width": 8}, "--width 8")],
)
def test_resume_refuses_another_task_or_settings(run_folder, given, names):
    with pytest.raises(TrainError, match=f"{names}: the run in .* has"):
        settings.from_run(run_folder, given)


def test_resume_may_extend_a_run_of_constant_rate_only(run_folder):
    assert settings.from_run(run_folder, {"steps": 200})[0].steps == 200
    cosine = settings.new({"schedule": "cosine"})
    (run_folder / settings.FILE).write_text(settings.to_json(cosine, world_size=1))
    with pytest.raises(TrainError, match="--steps 200"):
        settings.from_run(run_folder, {"steps": 200})


def test_resume_refuses_another_number_of_processes(run_folder):
    with pytest.raises(TrainError, match="has 1 processes, this one 2"):
        settings.from_run(run_folder, {}, world_size=2)


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", "{}", '{"format": "other"}', '{"format": "fusedtrain run 1", "settings": {"task": 3}}'],
)
def test_resume_refuses_what_is_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / settings.FILE).write_text(content)
    with pytest.raises(TrainError, match=r"--resume .*Name the folder of an earlier run"):
        settings.from_run(tmp_path, {})


def test_resume_refuses_settings_of_wrong_type(run_folder):
    path = run_folder / settings.FILE
    path.write_text(path.read_text().replace('"width": 512', '"width": "wide"'))
    with pytest.raises(TrainError, match="width is 'wide'"):
        settings.from_run(run_folder, {})


def test_seeds_are_independent_streams():
    seeds = {settings.seed_for(s, *stream) for s in (0, 1) for stream in (("a", 1), ("a", 2), ("b", 1), ("a", 12))}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert settings.seed_for(0, "a", 1) == settings.seed_for(0, "a", 1)
