"""What is decided must be recorded, however often the disk or the database has to be asked.

It knows which errors pass; it does not know what is recorded.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

PASSING = (OSError, MemoryError, OperationalError, InterfaceError, PoolTimeout)
"""Errors of a full disk, an absent database or too few descriptors: the same again may go well."""

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 30.0

Result = TypeVar("Result")

log = structlog.get_logger("coordinator.patience")


class Patience:
    """Does work again and again while the disk or the database fails; ``retrying`` is called before each repetition."""

    def __init__(self, retrying: Callable[[], None]):
        self._retrying = retrying

    async def surely(self, work: Callable[..., Result], *args: Any) -> Result:
        """The result of ``work`` in a thread."""
        return await self.until_it_works(lambda: asyncio.to_thread(work, *args))

    async def until_it_works(self, start: Callable[[], Awaitable[Result]]) -> Result:
        """The result of ``start``; an error that does not pass is raised."""
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                return await start()
            except PASSING as error:
                why = f"{type(error).__name__}: {error}".split("\n")[0]
                log.error("cannot read or store; trying again", why=why, seconds=wait)
                self._retrying()
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_RETRY_SECONDS)
