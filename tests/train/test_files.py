"""Writes are whole or not at all: a full disk leaves what was there, and says so."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusedtrain.train import files
from fusedtrain.train.errors import TrainError


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_leaves_the_previous_file_whole(tmp_path, monkeypatch, failing):
    path = tmp_path / "state.json"
    files.write_json(path, {"step": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(TrainError, match=r"writing .*state\.json: No space left on device .*--resume"):
            files.write_json(path, {"step": 2})
    assert path.read_text() == '{\n  "step": 1\n}\n'
    assert os.listdir(tmp_path) == ["state.json"]


def test_interrupted_write_leaves_nothing(tmp_path):
    path = tmp_path / "state.json"

    def interrupted():
        with files.aside(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_private_writers_get_the_mode_of_the_umask(tmp_path):
    (tmp_path / "ordinary").touch()
    with files.aside(tmp_path / "w.safetensors") as temporary:
        save_file({"w": torch.zeros(1)}, temporary)
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_file_size_limit_leaves_the_previous_tensors_whole(tmp_path):
    """A real failing write, by the kernel: the limit on file size of a child process."""
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(10)}, path)
    script = textwrap.dedent(
        f"""
        import resource, sys
        from pathlib import Path
        import torch
        from safetensors.torch import save_file
        from fusedtrain.train import files
        from fusedtrain.train.errors import TrainError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with files.aside(Path({str(path)!r})) as temporary:
                save_file({{"w": torch.zeros(100_000)}}, temporary)
        except TrainError as error:
            sys.exit(str(error))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "writing" in done.stderr
    assert "w.safetensors" in done.stderr
    assert torch.equal(load_file(path)["w"], torch.ones(10))
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_new_folder_must_be_new_and_writable(tmp_path):
    files.new_folder(tmp_path / "a" / "b", "--out")
    files.new_folder(tmp_path / "a" / "b", "--out")  # empty still
    (tmp_path / "a" / "b" / "file").touch()
    with pytest.raises(TrainError, match=r"--out .*not empty.*--resume"):
        files.new_folder(tmp_path / "a" / "b", "--out")
    with pytest.raises(TrainError, match=r"--out .*cannot be written: Not a directory"):
        files.new_folder(tmp_path / "a" / "b" / "file" / "c", "--out")
    with pytest.raises(TrainError, match=r"--out .*cannot be written"):
        files.new_folder(files.Path("/proc/nowhere/run"), "--out")
