"""Lengths of time as operators write them: 90d, 12h, 30m, 45s. It knows text and numbers, and no clock."""

import re

from tap_core.errors import UsageError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MOST = 100 * 365 * 86400.0


def seconds_of(text: str, option: str) -> float:
    """The length in seconds. Raises UsageError, which names ``option``, if it is none."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(match[1]) * SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MOST:
        raise UsageError(f"{option} {text!r} is no length of time; write it as 90d, 12h, 30m or 45s, 100 years at most")
    return float(seconds)
