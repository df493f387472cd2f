"""When, where and on what a measurement was made: what goes beside it in JSON."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path
from typing import Any

import fusedtrain
from fusedtrain import env
from fusedtrain.bench import peers

ROOT = Path(fusedtrain.__file__).resolve().parent.parent


def git(*arguments: str) -> str | None:
    """The output of git in the source tree; None if there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def setting(command: str) -> dict[str, Any]:
    """The date, the command, the commit and whether files have changed since, versions, also of other projects'
    optimizers, machine, build, backends."""
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "commit": git("rev-parse", "HEAD"),
        "changed_since": None if changes is None else bool(changes),
        "versions": env.versions(),
        "peers": peers.installed(),
        "machine": env.machine(),
        "build": env.build_info(),
        "backends": fusedtrain.backends(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
