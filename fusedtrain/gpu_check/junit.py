"""What a JUnit report of pytest says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from fusedtrain.gpu_check.step import Done, Found

_NAMED = 50
"""Failures that are named; the rest is counted."""


def read(done: Done, scratch: Path) -> Found:
    """Counts, the reasons of skips, and the names of failures of ``scratch/junit.xml``."""
    path = scratch / "junit.xml"
    try:
        suites = ElementTree.parse(path).getroot().iter("testsuite")
        cases = [case for suite in suites for case in suite.iter("testcase")]
    except (OSError, ElementTree.ParseError) as error:
        begun = [line.split()[0] for line in done.output.splitlines() if re.match(r"\S+\.py::\S", line)]
        last = f"; the last test begun was {begun[-1]}" if begun else ""
        return Found(failures=[f"pytest left no report ({error}); exit status {done.status}{last}"])
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failures = []
    for case in cases:
        kinds = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        counts[kinds[0] if kinds else "passed"] += 1
        node = case.find(kinds[0]) if kinds else None
        message = " ".join((node.get("message") or "").split()) if node is not None else ""
        if kinds and kinds[0] != "skipped":
            name = f"{case.get('classname', '').replace('.', '/')}::{case.get('name')}"
            failures.append(f"{name}: {message[:300]}")
        elif kinds:
            reasons[message[:200]] += 1
    found = Found({"counts": dict(counts), "skipped": dict(reasons.most_common())}, failures[:_NAMED])
    if len(failures) > _NAMED:
        found.failures.append(f"and {len(failures) - _NAMED} more")
    if not counts["passed"] and not failures:
        found.failures.append(f"no test ran (exit status {done.status})")
    elif done.status not in (0, 1) and not done.timed_out:
        found.failures.append(f"pytest ended with status {done.status}")
    return found
