"""Tasks of the event loop that must end well or end the service. It knows tasks, and nothing of what they do."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

Result = TypeVar("Result")

log = structlog.get_logger("coordinator.supervisor")


class Supervisor:
    """Runs tasks; the first of those spawned that fails sets `stopping`, and `close` raises its error."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None

    def spawn(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Run the work beside everything else."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    async def whole(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await the work, which goes on to its end even if the caller is cancelled meanwhile.

        Its error is the caller's alone: what fails for one device must not end the service.
        """
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell)  # nobody waits for it any more
            raise

    async def close(self) -> None:
        """Cancel what still runs. Raises the error of the task that failed, if one did."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    def _reap(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            if self._failure is None:
                self._failure = error
                log.error("the service stops", error=f"{type(error).__name__}: {error}")
            self.stopping.set()


def _tell(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("failed after its caller was gone", error=f"{type(error).__name__}: {error}")
