"""A run as JSON: one format, with a number that says which; written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fusedtrain.bench.errors import BenchError

SCHEMA = 1
KIND = "fusedtrain-bench"
Results = dict[str, Any]
"""``kind``, ``schema``, what `setting.setting` says, ``options``, ``complete``, ``copy_bandwidth`` and ``rows``; and
``fits`` or ``gains`` of the suites that have them."""
_NEEDED = {"rows": list, "machine": dict, "versions": dict, "options": dict}
_ROW = {"name": str, "dtype": str, "device": str, "baseline": str, "providers": dict}


def write_json(path: Path, value: Any) -> None:
    """Writes aside and renames, so that the file is whole at any time."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """As `write_json`.

    Raises:
        BenchError: the folder cannot be made or written, or the disk is full.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, "utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True) if aside.is_file() else None
        raise BenchError(
            "writing", path, f"{error.strerror or error}", "Name a file in a folder that you may write to"
        ) from None


def check_writable(option: str, path: Path) -> None:
    """Raises BenchError unless the file can be written: said before anything is measured, not after."""
    probe = path.with_name(f"{path.name}.{os.getpid()}.probe")
    try:
        if path.is_dir():
            raise BenchError(option, path, "it is a folder", "Name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        reason = f"it cannot be written: {error.strerror or error}"
        raise BenchError(option, path, reason, "Name a file in a folder that you may write to") from None


def load(path: Path) -> Results:
    """Reads a run.

    Raises:
        BenchError: no such file, no JSON or a part of one, not of this program, or of a newer version of it.
    """
    again = "Run bench run --json again"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BenchError("reading", path, reason, "Name a file that bench run --json wrote") from None
    try:
        value = json.loads(text)
    except ValueError as error:
        reason = f"no whole JSON ({error}), as if it was cut off while it was copied"
        raise BenchError("reading", path, reason, f"{again}, or copy it again") from None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise BenchError("reading", path, "it was not written by bench run", f"{again} and name that file")
    schema = value.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise BenchError("reading", path, f"its schema is {schema!r}", again)
    if schema > SCHEMA:
        reason = f"its schema is {schema}, and this fusedtrain reads up to {SCHEMA}"
        raise BenchError("reading", path, reason, "Read it with the version that wrote it, or a newer one")
    for key, kind in _NEEDED.items():
        if not isinstance(value.get(key), kind):
            raise BenchError("reading", path, f"it has no {key}", again)
    for number, row in enumerate(value["rows"]):
        if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in _ROW.items()):
            raise BenchError("reading", path, f"row {number} is no row of a run", again)
    return value
