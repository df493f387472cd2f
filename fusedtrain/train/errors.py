"""The one error that a user of the command sees: what was given, why it cannot be, and what to do."""

from __future__ import annotations


class TrainError(Exception):
    """Bad input or a failed write. Composed here so that every message has the same four parts.

    Args:
        option: the option, file or step at fault, as the user writes it.
        value: its value; left out of the message if None.
        reason: what is wrong with it.
        remedy: what to do instead, a sentence without its full stop.
    """

    def __init__(self, option: str, value: object, reason: str, remedy: str) -> None:
        shown = "" if value is None else f" {value}"
        super().__init__(f"train: {option}{shown}: {reason}. {remedy}.")
