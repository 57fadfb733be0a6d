"""A value that is read from the database now and then and kept in memory meanwhile.

It knows time and reading; it does not know what the value means.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

SECONDS = 0.25
"""Least time between two reads, however many ask."""

Value = TypeVar("Value")


class Fresh(Generic[Value]):
    """The value that ``read`` returns. ``read`` blocks and runs in a thread; what it raises, the callers get."""

    def __init__(
        self, read: Callable[[], Value], *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ):
        self._read, self._seconds, self._clock = read, seconds, clock
        self._known: tuple[float, Value] | None = None  # when its reading began
        self._began = -seconds
        self._next: asyncio.Task[Value] | None = None

    async def recent(self) -> Value:
        """The value as it was at most ``seconds`` ago."""
        if self._known is None or self._clock() - self._known[0] >= self._seconds:
            return await self.later()
        return self._known[1]

    async def later(self) -> Value:
        """The value as it is from now on: one read, as soon as one is due, for all who ask until it begins."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._read_soon())
            self._next.add_done_callback(_seen)
        return await asyncio.shield(self._next)

    async def _read_soon(self) -> Value:
        await asyncio.sleep(max(0.0, self._began + self._seconds - self._clock()))
        self._next, self._began = None, self._clock()  # who asks from here on needs a later read
        began, value = self._began, await asyncio.to_thread(self._read)
        if self._known is None or began >= self._known[0]:
            self._known = (began, value)
        return value


def _seen(task: "asyncio.Task[Value]") -> None:
    """Whoever asked is told of the error, if anybody is still there."""
    if not task.cancelled():
        task.exception()
