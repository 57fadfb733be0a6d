"""When the coordinator is away: how long to wait before each try, what to tell the user, and when to give up.

It knows time and reasons; it opens no socket.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tap_core.errors import TapError


class Disconnected(Exception):
    """The connection is gone or could not be made. ``reached``: whether the coordinator answered at all; ``farewell``:
    whether it closed the connection in good order.
    """

    def __init__(self, reason: str, *, reached: bool, farewell: bool = False):
        super().__init__(reason)
        self.reason, self.reached, self.farewell = reason, reached, farewell


@dataclass
class Backoff:
    """Infinite exponential back-off with jitter: the n-th wait is uniform in [limit / 10, limit] seconds, where limit
    is min(most, first * 2^n).
    """

    first: float = 1.0
    most: float = 30.0
    uniform: Callable[[float, float], float] = random.uniform
    _tries: int = 0

    def wait(self) -> float:
        """Seconds to wait before the next try."""
        limit = min(self.most, self.first * 2 ** min(self._tries, 30))
        self._tries += 1
        return self.uniform(limit / 10, limit)

    def reset(self) -> None:
        self._tries = 0


class Outages:
    """The device's side of every time without the coordinator."""

    def __init__(
        self,
        address: str,
        say: Callable[[str], None],
        *,
        backoff: Backoff | None = None,
        max_wait: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """``max_wait``: seconds of one outage after which `next_wait` gives up; None never does."""
        self._address, self._say, self._max_wait, self._clock = address, say, max_wait, clock
        self._backoff = Backoff() if backoff is None else backoff
        self._since: float | None = None
        self._said = False

    def end(self) -> None:
        """The coordinator has welcomed this device."""
        if self._said:
            self._say("connected")
        self._since, self._said = None, False
        self._backoff.reset()

    def next_wait(self, error: Disconnected) -> float:
        """Seconds until the next try, after telling the user once per outage. Raises TapError after ``max_wait``."""
        now = self._clock()
        if self._since is None:
            self._since = now
        wait = self._backoff.wait()
        if self._max_wait is not None:
            left = self._since + self._max_wait - now
            if left <= 0:
                raise TapError(
                    f"cannot reach the coordinator at {self._address} ({error.reason}); check that it runs and that "
                    "'coordinator' names its address and port"
                )
            wait = min(wait, left)
        if not self._said:
            what = "lost the coordinator at" if error.reached else "cannot reach the coordinator at"
            self._say(f"{what} {self._address} ({error.reason}); retrying until it answers")
            self._said = True
        return wait

    def seconds(self) -> float:
        """How long the present outage has lasted; 0 while connected."""
        return 0.0 if self._since is None else self._clock() - self._since
