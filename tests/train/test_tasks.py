"""Data: splits that share nothing, batches that are a function of the step, augmentation that moves what it says."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fusedtrain.train import settings, tasks, text
from fusedtrain.train.digits import Digits, affine
from fusedtrain.train.errors import TrainError
from fusedtrain.train.text import Text


@pytest.fixture(scope="module")
def plain() -> Digits:
    return Digits(settings.new({"shift": 0.0, "rotate": 0.0, "batch": 60, "device": "cpu"}))


def test_digits_are_all_there_once_and_stratified(plain):
    assert sum(len(labels) for _, labels in plain.parts.values()) == 1797
    for _, labels in plain.parts.values():
        share = torch.bincount(labels, minlength=10) / len(labels)
        assert (share - 0.1).abs().max() < 0.02


def test_digits_epoch_visits_every_image_once(plain):
    images, _ = plain.parts["train"]
    per_epoch = len(images) // 60
    seen = torch.cat([plain.batch(step)[0] for step in range(per_epoch, 2 * per_epoch)]).flatten(1)
    assert len(torch.unique(seen, dim=0)) == len(torch.unique(images.flatten(1), dim=0)) - (len(images) - len(seen))


@pytest.mark.parametrize("task", ["digits", "text"])
def test_batches_depend_on_the_step_alone_and_ranks_share_them(task, tmp_path):
    s = settings.new({"batch": 16, "device": "cpu"}) if task == "digits" else corpus(tmp_path, os.urandom(50_000))
    whole, again = tasks.load(s), tasks.load(s)
    for step in (0, 7, 500):
        for a, b in zip(whole.batch(step), again.batch(step), strict=True):
            assert torch.equal(a, b)
        parts = [tasks.load(s, rank, 2).batch(step) for rank in (0, 1)]
        for i, joined in enumerate(whole.batch(step)):
            assert torch.equal(joined[0::2], parts[0][i])
            assert torch.equal(joined[1::2], parts[1][i])
    assert not torch.equal(whole.batch(0)[0], whole.batch(1)[0])


def test_augmentation_of_nothing_is_the_image_and_a_pixel_is_a_pixel(plain):
    images = plain.parts["train"][0][:5]
    still = affine(5, 0.0, 0.0, torch.Generator())
    shifting = Digits(dataclasses.replace(plain.settings, shift=1.0))
    assert torch.allclose(shifting._moved(images, still.to(images.dtype)), images, atol=1e-5)
    one_right = still.clone()
    one_right[:, 0, 2] = 2 / 8  # sampling one pixel further right moves the image one left
    moved = shifting._moved(images, one_right.to(images.dtype))
    assert torch.allclose(moved[..., :-1], images[..., 1:], atol=1e-5)
    assert torch.allclose(moved[..., -1], torch.full_like(moved[..., -1], plain.background), atol=1e-5)


def test_augmentation_stays_within_its_bounds():
    moves = affine(2000, 1.0, 10.0, torch.Generator().manual_seed(0))
    angle = torch.atan2(moves[:, 1, 0], moves[:, 0, 0]).rad2deg()
    assert 9 < angle.abs().max() <= 10
    assert 0.24 < moves[:, :, 2].abs().max() <= 0.25
    rotation = moves[:, :, :2]
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(2, dtype=torch.float64).expand(2000, 2, 2))


def test_digits_batch_larger_than_the_data_is_refused():
    with pytest.raises(TrainError, match="--batch 5000: there are 11"):
        Digits(settings.new({"batch": 5000, "device": "cpu"}))


def corpus(tmp_path, content: bytes, **given):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    return settings.new({"task": "text", "text": str(path), "device": "cpu", **given})


def test_text_windows_are_the_text_shifted_by_one(tmp_path):
    task = Text(corpus(tmp_path, bytes(range(256)) * 40, context=16))
    x, y = task.batch(3)
    assert x.shape == y.shape == (16, 16)
    assert torch.equal(x[:, 1:], y[:, :-1])
    inner = (x[:, 1:] - x[:, :-1]) % 256 == 1
    assert inner.float().mean() > 0.9  # but for windows over the seam of two blocks


def test_text_splits_share_no_block(tmp_path):
    block = 1 << 15
    content = b"".join(i.to_bytes(2, "big") * (block // 2) for i in range(1, 61))
    task = Text(corpus(tmp_path, content))
    ids = {
        name: set(part.view(-1, 2).int().mul(torch.tensor([256, 1])).sum(1).tolist())
        for name, part in task.parts.items()
    }
    assert ids["val"] == {19, 39, 59}
    assert ids["test"] == {20, 40, 60}
    assert len(ids["train"]) == 54
    assert not ids["train"] & (ids["val"] | ids["test"])


def test_text_evaluation_is_the_mean_over_its_windows_whatever_the_ranks(tmp_path):
    s = corpus(tmp_path, os.urandom(50_000), context=32)
    model = torch.nn.Embedding(256, 256)
    whole = Text(s).evaluate(model, "val")
    shared = Text(s, 0, 2).evaluate(model, "val") + Text(s, 1, 2).evaluate(model, "val")
    assert torch.allclose(whole, shared)
    loss, bits, count = whole.tolist()
    assert count == 64 * 32
    assert bits / count == pytest.approx(loss / count / 0.6931471805599453)
    data = Text(s).parts["val"].long()
    with torch.no_grad():
        everywhere = float(F.cross_entropy(model(data[:-1]), data[1:]))
    assert loss / count == pytest.approx(everywhere, rel=0.1)


def test_standard_library_is_the_default_corpus_and_large():
    files = [f for f in text.corpus_path(None).rglob("*.py") if "site-packages" not in f.parts]
    assert len(text.read_corpus(text.corpus_path(None))) > 5_000_000
    assert any(f.name == "argparse.py" for f in files)


def test_folder_is_read_in_order_without_installed_packages(tmp_path):
    for name, content in {"b.py": b"B", "a.txt": b"A", "c.bin": b"C", "site-packages/d.py": b"D"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert text.read_corpus(tmp_path) == b"A\nB"


def test_corpus_missing_empty_or_too_small(tmp_path):
    with pytest.raises(TrainError, match=r"--text .*nowhere: it cannot be read: No such file"):
        text.read_corpus(tmp_path / "nowhere")
    with pytest.raises(TrainError, match=r"--text .*the folder has no \.py"):
        text.read_corpus(tmp_path)
    with pytest.raises(TrainError, match=r"its 100 bytes are too few for --context 128\. Give at least 2580 bytes"):
        Text(corpus(tmp_path, b"x" * 100))
    Text(corpus(tmp_path, b"x" * 2580))


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that exists and cannot be read")
def test_corpus_that_cannot_be_read():
    with pytest.raises(TrainError, match=r"--text /proc/self/mem: it cannot be read: Input/output error\. Name"):
        text.read_corpus(Path("/proc/self/mem"))
