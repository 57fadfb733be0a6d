"""The errors that a user can mend: each message is one line that says what is wrong and what to do."""


class TapError(Exception):
    """Root of the errors with a one-line message for the user. Commands print it and exit with ``exit_code``."""

    exit_code = 1


class Diverged(TapError):
    """Training left the finite numbers, by what it was given or by its settings: its result is of no use."""


class UsageError(TapError):
    """A configuration, a file or an argument is wrong: mend it and run again (exit code 2)."""

    exit_code = 2
