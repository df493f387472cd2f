"""Writing that is whole or not at all: aside, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fusedtrain.train.errors import TrainError


def write_error(path: Path, error: Exception) -> TrainError:
    """The error of a failed write to ``path``."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    try:
        free = f" ({shutil.disk_usage(path.parent).free / 2**20:.1f} MiB free there without it)"
    except OSError:
        free = ""
    return TrainError(
        "writing",
        path,
        f"{reason}{free}; what was there before is untouched",
        "Make room or mend the folder, then continue with --resume, or choose another --out",
    )


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to. When the block ends, what was written is flushed to the disk and takes
    the place of ``path`` in one rename; if anything fails, ``path`` is as it was and nothing is left beside it.

    Raises:
        TrainError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; some writers make their file private
        yield temporary
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    with aside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with aside(path) as temporary:
        temporary.write_text(text)


def new_folder(path: Path, option: str) -> None:
    """Makes the folder of a new run.

    Raises:
        TrainError: there is something in it already, or it cannot be made or written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise TrainError(option, path, "it exists and is not empty", f"Name another, or use --resume {path}")
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainError(
            option, path, f"it cannot be written: {error.strerror}", "Name a folder that you may write to"
        ) from None
