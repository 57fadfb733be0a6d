"""The errors that a user can mend: each message is one line that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable


class TapError(Exception):
    """Root of the errors with a one-line message for the user. Commands print it and exit with ``exit_code``."""

    exit_code = 1


class Diverged(TapError):
    """Training left the finite numbers, by what it was given or by its settings: its result is of no use."""


class UsageError(TapError):
    """A configuration, a file or an argument is wrong: mend it and run again (exit code 2)."""

    exit_code = 2


def quoted(value: object, most: int = 60) -> str:
    """A value from a user's data as a message shows it: in quotes where it is text, and no longer than a line bears.

    >>> quoted("a long answer", most=8)
    "'a long ..."
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(name: str, known: Iterable[str], *, quoted: bool = True) -> str:
    """The part of a message that asks for the nearest of the ``known`` names; empty if none is near.

    >>> did_you_mean("learning_rat", ["steps", "learning_rate"])
    "did you mean 'learning_rate'?"
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if not nearest:
        return ""
    return f"did you mean {nearest[0]!r}?" if quoted else f"did you mean {nearest[0]}?"
