"""How often somebody may do something: buckets, failed attempts by address, and lines of the log.

It knows counts and time, which is an argument wherever the library that counts attempts lets it be; it does not know
what is done.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

FAILURES_A_MINUTE = 30
"""Wrong tokens of one address beyond which the answer is 429 instead of 401."""

KNOWN_ADDRESSES = 1024
"""Addresses whose failed attempts are counted at a time; the one that was silent the longest is forgotten."""

REPORT_SECONDS = 60.0
"""Least time between two lines of the log about one address."""


class Bucket:
    """``burst`` at once, then ``per_second`` of them."""

    def __init__(self, burst: int, per_second: float, now: float):
        self._burst, self._per_second = burst, per_second
        self._left, self._at = float(burst), now

    def take(self, now: float) -> float:
        """Take one and return 0; or take none and return the seconds until there is one."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._per_second
        self._left -= 1
        return 0.0


@dataclass(frozen=True)
class Failure:
    """What follows from a failed attempt: seconds after which another may be made (0: at once), and how many attempts
    the log is to be told of (0: say nothing)."""

    retry_after: int
    report: int


class Failures:
    """Failed attempts by address."""

    def __init__(self, a_minute: int = FAILURES_A_MINUTE, clock: Callable[[], float] = time.monotonic):
        self._item = RateLimitItemPerMinute(a_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._clock = clock
        self._addresses: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when last reported, and how many since

    def is_over(self, address: str) -> bool:
        """Whether ``address`` has failed too often of late."""
        return not self._limiter.test(self._item, address)

    def note(self, address: str) -> Failure:
        """Count an attempt of ``address`` that failed."""
        is_over = self.is_over(address)
        if not is_over:
            self._limiter.hit(self._item, address)
        return Failure(self._retry_after(address) if is_over else 0, self._to_report(address))

    def _retry_after(self, address: str) -> int:
        reset = self._limiter.get_window_stats(self._item, address).reset_time
        return max(1, math.ceil(reset - time.time()))  # the library counts in seconds since 1970

    def _to_report(self, address: str) -> int:
        now = self._clock()
        reported, count = self._addresses.pop(address, (-math.inf, 0))
        is_due = now - reported >= REPORT_SECONDS
        self._addresses[address] = (now, 0) if is_due else (reported, count + 1)
        while len(self._addresses) > KNOWN_ADDRESSES:
            forgotten, _ = self._addresses.popitem(last=False)
            self._limiter.clear(self._item, forgotten)
        return count + 1 if is_due else 0
