"""The one error that a user of the command sees: what was given, why it cannot be, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Bad input, or a file that cannot be read or written.

    Args:
        option: the option or file at fault, as the user writes it.
        value: its value; left out of the message if None.
        reason: what is wrong with it.
        remedy: what to do instead, a sentence without its full stop.
    """

    def __init__(self, option: str, value: object, reason: str, remedy: str) -> None:
        shown = "" if value is None else f" {value}"
        super().__init__(f"bench: {option}{shown}: {reason}. {remedy}.")


def unknown(
    option: str, value: str, kind: str, known: Iterable[str], listed_by: str = "", name: str | None = None
) -> BenchError:
    """The error for a name that does not exist, with the nearest one that does. ``name``: the part of ``value`` that is
    the name, if it is not all of it."""
    name = (value if name is None else name).lower()
    names = sorted(known)
    lower = {n.lower(): n for n in names}
    # A part of a long name is as near as a misspelt one.
    near = [n for n in names if name in n.lower()]
    near = near or [lower[n] for n in difflib.get_close_matches(name, lower, n=1, cutoff=0.4)]
    remedy = f"Did you mean {near[0]!r}?" if near else ""
    remedy += (" " if remedy else "") + (listed_by or f"There are {', '.join(names)}")
    return BenchError(option, value, f"no such {kind}", remedy)
