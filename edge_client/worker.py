"""The local half of the device's life: rounds and stage 2 in a worker thread, each made durable before it counts.

It knows the order in which things are written: what the state directory holds can at any moment be the last word of
this process. It does not know connections. One piece of work runs at a time; it outlives connections, and it ends early
when `drop` says that nobody asks for it any more.
"""

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from edge_client.cache import ComponentCache
from edge_client.config import ClientConfig
from edge_client.journal import EXPORTS, Journal, Progress
from edge_client.private_store import PrivateStore, StoredState
from protocol.names import Digest
from tap_core.cohorts import own_values
from tap_core.errors import Diverged, TapError
from tap_core.names import ComponentName, TaskName
from tap_core.settings.federation import FederationConfig
from tap_core.training.progress import OnProgress

CACHE_DIRECTORY = "cache"


@dataclass(frozen=True)
class Given:
    """What the coordinator offers a piece of work to start from: the digest of each owned component's value, and the
    version of each of those that stay at home."""

    digests: Mapping[ComponentName, Digest]
    home: Mapping[ComponentName, int]


class Trainer(Protocol):
    """What is needed of the local computation; `edge_client.trainer.LocalTrainer` is the real one."""

    @property
    def examples(self) -> Mapping[TaskName, int]:
        """n_{i,o}: training examples by task."""

    @property
    def components(self) -> tuple[ComponentName, ...]:
        """The owned components, sorted."""

    def take_part(
        self,
        round_number: int,
        received: Mapping[ComponentName, bytes],
        stored: StoredState | None,
        on_progress: OnProgress,
        *,
        home: Mapping[ComponentName, int],
    ) -> tuple[StoredState, Mapping[str, Any]]: ...

    def finish(
        self,
        received: Mapping[ComponentName, bytes],
        stored: StoredState | None,
        on_progress: OnProgress,
        *,
        home: Mapping[ComponentName, int],
        distilling: bool = True,
    ) -> tuple[StoredState, Mapping[TaskName, Any], Mapping[TaskName, Any]]: ...

    def export(self, stored: StoredState, task: TaskName, directory: Path) -> object: ...


Build = Callable[[FederationConfig], Trainer]
"""Reads the device's data and builds its model for a federation's settings; called in the worker thread."""


class _Dropped(Exception):
    """Raised inside the worker thread to end work that nobody asks for any more."""


@dataclass(frozen=True)
class Divergence:
    """A round that this device cannot take part in: its number, what it starts from, and why."""

    round: int
    given: Given
    why: str


@dataclass(frozen=True)
class _Work:
    kind: Literal["round", "finish"]
    round: int
    given: Given
    dropped: threading.Event
    task: "asyncio.Task[StoredState]"


class Worker:
    """Owner of the state directory and of the work under way. All methods belong to the event loop's thread."""

    def __init__(self, config: ClientConfig, build: Build):
        """Raises StateError if the state directory cannot be used."""
        self._config, self._build = config, build
        self._store = PrivateStore(config.state_dir, device=config.device_id, federation=config.federation)
        self.state: StoredState | None = self._store.load()
        self.journal = Journal(config.state_dir, config.device_id)
        self.journal.forget_rounds_after(self.last_round)
        self.cache = ComponentCache(config.state_dir / CACHE_DIRECTORY)
        self.trainer: Trainer | None = None
        self.progress = Progress()
        self.divergence: Divergence | None = None
        """Of the last round that diverged. The same values would lead to the same end again."""
        self._notes: list[str] = []
        self._work: _Work | None = None
        self._recent: list[set[Digest]] = []

    @property
    def last_round(self) -> int:
        """The last round whose result is committed, -1 before the first."""
        return -1 if self.state is None else self.state.round

    @property
    def finished(self) -> bool:
        """Whether stage 2, the results and the exports are complete."""
        return self.state is not None and self.state.finished

    @property
    def task(self) -> "asyncio.Task[StoredState] | None":
        """What to wait for while work is under way."""
        return None if self._work is None else self._work.task

    def does(self, kind: Literal["round", "finish"], given: Given) -> bool:
        """Whether this very work is under way."""
        return self._work is not None and self._work.kind == kind and self._work.given == given

    def received(self, given: Given) -> dict[ComponentName, Digest]:
        """Of the offered digests, by component, those that the work needs: at home the device's own value may count."""
        kept, last_round = (
            (frozenset[ComponentName](), -1) if self.state is None else (self.state.home.components, self.last_round)
        )
        own = own_values(given.home, kept, last_round)
        return {name: digest for name, digest in given.digests.items() if name not in own}

    async def prepare(self, federation: FederationConfig) -> None:
        """Read the data and build the model. Raises what ``build`` raises."""
        self.show(phase="loading")
        self.trainer = await asyncio.to_thread(self._build, federation)

    def start_round(self, round_number: int, given: Given) -> None:
        """Start a round of stage 1; the cache must hold what is `received`."""
        self.show(phase="training", round=round_number)
        self._start("round", round_number, given, lambda report: self._do_round(round_number, given, report))

    def start_finish(self, given: Given) -> None:
        """Start stage 2, with the results and the exports; the cache must hold what is `received`."""
        self.show(phase="training")
        self._start("finish", -1, given, lambda report: self._do_finish(given, report))

    def collect(self) -> bool:
        """Take over the state of work that has ended; whether there was any. Raises TapError if the work failed, but
        for a round that diverged: that changes no state, see ``divergence``."""
        work = self._work
        if work is None or not work.task.done():
            return False
        self._work = None
        try:
            self.state = work.task.result()
        except _Dropped:
            return False
        except Diverged as error:
            if work.kind == "finish":
                raise
            self.divergence = Divergence(work.round, work.given, str(error))
            self._notes.append(
                f"round {work.round + 1}: {error}; this device sits the round out, keeps the models that it had, and "
                "waits for the next"
            )
        return True

    def take_notes(self) -> list[str]:
        """What the user should hear of, since the last call."""
        notes, self._notes = self._notes, []
        return notes

    async def drop(self) -> None:
        """End the work under way; a result that is committed in spite of that counts."""
        if self._work is not None:
            self._work.dropped.set()
            await asyncio.wait({self._work.task})
            self.collect()

    def show(self, **changes: Any) -> None:
        """Change what `progress` says; a new phase starts at step 0."""
        if changes.get("phase", self.progress.phase) != self.progress.phase:
            changes = {"step": 0, "steps": 0} | changes
        self.progress = replace(self.progress, **changes)

    def _start(
        self,
        kind: Literal["round", "finish"],
        round_number: int,
        given: Given,
        do: Callable[[OnProgress], StoredState],
    ) -> None:
        assert self._work is None
        pending = set() if self.state is None or self.state.pending is None else set(self.state.pending.blobs)
        self._recent = [*self._recent[-1:], set(given.digests.values())]
        self.cache.keep_only(set().union(*self._recent) | pending)
        dropped = threading.Event()

        def on_progress(phase: str, step: int, steps: int) -> None:
            if dropped.is_set():
                raise _Dropped
            self.show(phase=phase, step=step, steps=steps)

        task = asyncio.ensure_future(asyncio.to_thread(do, on_progress))
        self._work = _Work(kind, round_number, given, dropped, task)

    # --- in the worker thread

    def _do_round(self, round_number: int, given: Given, on_progress: OnProgress) -> StoredState:
        """The report is written before the commit: a restart drops it again if the commit never came."""
        assert self.trainer is not None
        received, home = self._bytes_of(self.received(given)), given.home
        state, report = self.trainer.take_part(round_number, received, self.state, on_progress, home=home)
        self.journal.add_round(report)
        self._store.commit(state)
        if state.pending is not None:
            for digest, data in state.pending.blobs.items():
                self.cache.put(digest, data)  # a component that nobody else owns comes back with these very bytes
        return state

    def _do_finish(self, given: Given, on_progress: OnProgress) -> StoredState:
        """The commit comes last: a finished state has its results and exports, and stage 2 runs once on stage 1's.

        If stage 2 diverges, the personal models of stage 1 are the result: they are finite, and better than none."""
        assert self.trainer is not None
        finish = functools.partial(
            self.trainer.finish, self._bytes_of(self.received(given)), self.state, on_progress, home=given.home
        )
        try:
            state, results, samples = finish()
        except Diverged as error:
            state, results, samples = finish(distilling=False)
            self._notes.append(f"stage 2: {error}; the personal models of stage 1 are kept as the result")
        names = sorted(self.trainer.examples) if self._config.export else []
        for step, name in enumerate(names):
            on_progress("export", step, len(names))
            self.trainer.export(state, name, self._config.state_dir / EXPORTS / name)
        self.journal.write_results(self.trainer.components, results, samples)
        finished = replace(state, finished=True)
        self._store.commit(finished)
        return finished

    def _bytes_of(self, digests: Mapping[ComponentName, Digest]) -> dict[ComponentName, bytes]:
        received = {}
        for name, digest in digests.items():
            data = self.cache.get(digest)
            if data is None:
                raise TapError(
                    f"a file vanished from {self._config.state_dir / CACHE_DIRECTORY}; run the command again"
                )
            received[name] = data
        return received
