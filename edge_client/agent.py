"""The device's life as the coordinator sees it: join, answer what is asked, leave when all is done.

It knows messages and their order. The work itself, and what is made durable when, is `worker`'s; sockets are
`connection`'s. It knows no tensors, no files of data and no torch.

Theory of operation. The coordinator asks for one thing at a time: a round (`Train`) or stage 2 (`Finish`). What is
asked is remembered per connection; the work on it outlives connections. `_advance` looks at what is asked, at the
committed state and at the work under way, and takes the one next step: answer from the committed state, fetch what the
cache lacks, or start the work. It is called whenever one of these changes, so a lost connection, a restart or a
repeated question needs no case of its own. A round that diverges changes no state: the device declines it, whenever it
is asked for with the same values, and waits for the next. A round's result is committed before it is sent, and the same
bytes are sent again until the coordinator has moved on; a round is never trained twice once its result is committed.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from edge_client.config import ClientConfig
from edge_client.connection import Connection, TokenRefused, open_connection
from edge_client.greeting import greet, sent_away
from edge_client.journal import Progress, read_settings
from edge_client.outages import Backoff, Disconnected, Outages
from edge_client.private_store import PendingUpdate, StateError
from edge_client.tls import tls_context
from edge_client.token_file import explained, is_replaced, read_token
from edge_client.worker import Build, Given, Worker
from protocol.codes import ByeCode, DeclineCode, RejectionCode
from protocol.messages import (
    Accepted,
    Bye,
    ComponentRef,
    Decline,
    Done,
    Fetch,
    Finish,
    Heartbeat,
    Rejected,
    Train,
    Update,
    Want,
)
from protocol.names import ComponentName as WireName
from protocol.names import Digest
from protocol.session import BlobReceived, SessionEvent
from protocol.transfer import Incoming
from tap_core.components import examples_per_component
from tap_core.errors import TapError
from tap_core.names import ComponentName, TaskName
from tap_core.settings.federation import FederationConfig

HEARTBEAT_SECONDS = 5.0

TICK_SECONDS = 0.5
"""How often live progress is written while something is going on."""

FAREWELL_SECONDS = 20.0
"""How long a device that has said it is done looks for a coordinator that went away without an answer."""


class _SettingsChanged(Exception):
    """The coordinator's settings are not those that the trainer was built for."""


class Agent:
    """One device in one federation. `run` returns when the federation is over and this device's part is done."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        build: Build,
        foundation_digest: Callable[[], str],
        say: Callable[[str], None] = print,
        watch: Callable[[Progress, int], None] = lambda progress, rounds: None,
        backoff: Backoff | None = None,
        max_wait: float | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
    ):
        """``build`` and ``foundation_digest`` run in the worker thread. ``say`` gets lines for the user, ``watch`` the
        progress and the number of rounds. ``max_wait``: seconds of one outage after which `run` gives up.

        Raises UsageError for a bad token file and StateError if the state directory cannot be used.
        """
        self._config, self._foundation_digest = config, foundation_digest
        self._say, self._watch, self._heartbeat = say, watch, heartbeat
        read_token(config.token_file)  # read anew for each connection: it may be replaced meanwhile
        self._worker = Worker(config, build)
        self._journal = self._worker.journal
        self._outages = Outages(config.coordinator, say, backoff=backoff, max_wait=max_wait)
        self._partial: dict[Digest, Incoming] = {}
        self._federation = read_settings(config.state_dir)
        self._foundation = ""
        self._done_said = False
        # of the present connection:
        self._asked: Train | Finish | None = None
        self._outstanding: set[Digest] = set()
        self._beat_at = 0.0

    async def run(self) -> None:
        """Take part until the end. Raises TapError if the user must change something; otherwise goes on for ever.

        Cancelling it ends the work under way and leaves the last committed state.
        """
        try:
            self._worker.show(phase="loading")
            self._write_progress()
            self._foundation = await asyncio.to_thread(self._foundation_digest)
            if self._federation is None:
                await self._stay_connected(self._learn_settings)
            while True:
                await self._worker.prepare(self._settings)
                try:
                    return await self._stay_connected(self._serve)
                except _SettingsChanged:
                    self._say("the operator changed the federation's settings; loading them")
                    await self._worker.drop()
        except OSError as error:
            where = error.filename or self._config.state_dir
            raise TapError(f"cannot write {where}: {error.strerror}; mend that and run the command again") from None
        finally:
            with contextlib.suppress(OSError):
                await self._worker.drop()
                if self._worker.finished:
                    self._worker.show(phase="done")
                self._write_progress()

    @property
    def _settings(self) -> FederationConfig:
        assert self._federation is not None
        return self._federation

    # --- connections

    async def _stay_connected(self, talk: Callable[[Connection], Awaitable[None]]) -> None:
        """Connect, again and again, until ``talk`` returns by itself."""
        while True:
            token = read_token(self._config.token_file)
            try:
                async with open_connection(
                    self._config.coordinator,
                    token,
                    token_file=self._config.token_file,
                    partial=self._partial,
                    traffic=self._journal.traffic,
                    tls=tls_context(self._config.tls_ca, self._config.tls_cert, self._config.tls_key),
                ) as connection:
                    return await talk(connection)
            except Disconnected as error:
                if self._done_said and (error.farewell or self._outages.seconds() > FAREWELL_SECONDS):
                    return
                await self._pause(self._outages.next_wait(error))
            except TokenRefused as error:
                if not await is_replaced(self._config.token_file, token):
                    raise explained(error, self._config.token_file) from None
            finally:
                self._asked, self._outstanding = None, set()

    async def _pause(self, seconds: float) -> None:
        """Wait, while noticing that the work under way has ended."""
        if self._worker.task is None:
            self._worker.show(phase="waiting")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._write_progress()
            if self._worker.task is None:
                await asyncio.sleep(left)
            else:
                await asyncio.wait({self._worker.task}, timeout=min(left, TICK_SECONDS))
                self._collect()

    async def _learn_settings(self, connection: Connection) -> None:
        """First contact: only the settings say how the data is read and split, and so how much there is to train on."""
        self._adopt(await self._greet(connection, {}))

    async def _greet(self, connection: Connection, examples: Mapping[TaskName, int]) -> FederationConfig:
        federation = await greet(connection, self._config, self._foundation, examples)
        self._outages.end()
        return federation

    def _adopt(self, federation: FederationConfig) -> None:
        self._journal.write_settings(federation)
        self._federation = federation

    async def _serve(self, connection: Connection) -> None:
        """One connection's talk; returns when the federation is over for this device."""
        assert self._worker.trainer is not None
        federation = await self._greet(connection, self._worker.trainer.examples)
        if federation != self._federation:
            self._adopt(federation)
            raise _SettingsChanged
        if self._worker.task is None:
            self._worker.show(phase="idle")
        receiving = asyncio.ensure_future(connection.receive())
        try:
            while True:
                work = self._worker.task
                waited_for = {receiving} if work is None else {receiving, work}
                await asyncio.wait(waited_for, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._collect():
                    await self._advance(connection)
                if receiving.done():
                    for event in receiving.result():
                        if await self._handle(connection, event):
                            return
                    receiving = asyncio.ensure_future(connection.receive())
                await self._beat(connection)
                self._write_progress()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    def _collect(self) -> bool:
        """Take over what the worker has ended, and tell the user what is to be told; whether there was any."""
        has_ended = self._worker.collect()
        for note in self._worker.take_notes():
            self._say(note)
        return has_ended

    async def _handle(self, connection: Connection, event: SessionEvent) -> bool:
        """Take one event; True if it was the last of this device's life in the federation."""
        match event:
            case Train() | Finish():
                self._asked = event
                await self._advance(connection)
            case BlobReceived():
                await asyncio.to_thread(self._worker.cache.put, event.digest, event.data)
                self._outstanding.discard(event.digest)
                if not self._outstanding:
                    await self._advance(connection)
            case Want():
                self._send_wanted(connection, event)
            case Accepted():
                self._asked = None
                self._worker.show(phase="idle")
            case Rejected():
                self._asked = None
                self._worker.show(phase="idle")
                self._say(f"round {event.round + 1}: the update was not counted ({event.code}: {event.why}); going on")
                if event.code != RejectionCode.LATE:  # the coordinator asks this device no more until it connects again
                    raise Disconnected("an update was rejected", reached=True)
            case Bye():
                if self._done_said and event.code == ByeCode.DONE:
                    return True
                raise sent_away(event, self._config)
        return False

    async def _beat(self, connection: Connection) -> None:
        """A heartbeat while something is asked of this device, so that the operator sees it is alive and how far."""
        now = time.monotonic()
        if self._asked is not None and not self._done_said and now - self._beat_at >= self._heartbeat:
            self._beat_at = now
            progress = self._worker.progress
            await connection.send(Heartbeat(phase=progress.phase, step=progress.step, steps=progress.steps))

    def _write_progress(self) -> None:
        rounds = 0 if self._federation is None else self._federation.rounds.total
        self._journal.progress(self._worker.progress, rounds)
        self._watch(self._worker.progress, rounds)

    # --- what to do next

    async def _advance(self, connection: Connection) -> None:
        """Take the next step towards what is asked (see the module's theory of operation)."""
        asked, worker = self._asked, self._worker
        if asked is None:
            return
        home = {ComponentName(ref.name): ref.version for ref in asked.components if ref.name in asked.home}
        given = Given({ComponentName(ref.name): ref.digest for ref in asked.components}, home)
        if isinstance(asked, Finish) and worker.finished:
            self._done_said = True
            await connection.send(Done())
            return
        if isinstance(asked, Train) and asked.round <= worker.last_round:
            await self._send_update(connection, asked, given)
            return
        failed = worker.divergence
        if isinstance(asked, Train) and failed and (failed.round, failed.given) == (asked.round, given):
            self._asked = None
            worker.show(phase="idle")
            await connection.send(Decline(round=asked.round, code=DeclineCode.DIVERGED.value, why=failed.why[:1024]))
            return
        if worker.does("round" if isinstance(asked, Train) else "finish", given):
            return
        if worker.task is not None:
            await worker.drop()
            await self._advance(connection)
            return
        missing = set(await asyncio.to_thread(worker.cache.missing, list(worker.received(given).values())))
        if missing:
            await self._fetch(connection, {ref.digest: ref.size for ref in asked.components if ref.digest in missing})
        elif isinstance(asked, Train):
            worker.start_round(asked.round, given)
        else:
            worker.start_finish(given)

    async def _fetch(self, connection: Connection, sizes: Mapping[Digest, int]) -> None:
        if self._outstanding:
            return
        self._worker.show(phase="receiving")
        offsets = tuple(connection.session.expect(digest, size) for digest, size in sizes.items())
        self._outstanding = set(sizes)
        await connection.send(Fetch(digests=tuple(sizes), offsets=offsets))

    async def _send_update(self, connection: Connection, asked: Train, given: Given) -> None:
        """Offer the committed update of the round that is asked for."""
        state = self._worker.state
        pending = None if state is None else state.pending
        is_the_same = (
            pending is not None
            and pending.round == asked.round
            and pending.trained_from.items() <= given.digests.items()
            and pending.digests.keys() == given.digests.keys() - given.home.keys()
        )
        if pending is None or not is_the_same:
            raise StateError(
                f"the coordinator asks for round {asked.round + 1} and this device has completed round "
                f"{self._worker.last_round + 1} of an earlier run of federation {self._config.federation!r}; move "
                f"{self._config.state_dir} away to join the new one"
            )
        self._worker.show(phase="sending", round=asked.round)
        components = tuple(
            ComponentRef(name=WireName(name), version=asked.round, digest=digest, size=len(pending.blobs[digest]))
            for name, digest in sorted(pending.digests.items())
        )
        await connection.send(Update(round=asked.round, examples=self._announced(pending), components=components))

    def _announced(self, pending: PendingUpdate) -> dict[WireName, int]:
        """n_{i,r}, at most what this connection's hello announced: data may have been removed since the training."""
        assert self._worker.trainer is not None
        tasks = self._settings.tasks_named(self._config.tasks)
        now = examples_per_component(tasks, self._worker.trainer.examples)
        return {WireName(name): min(count, now[name]) for name, count in pending.examples.items()}

    def _send_wanted(self, connection: Connection, want: Want) -> None:
        state = self._worker.state
        assert state is not None and state.pending is not None  # the session lets only offered blobs be wanted
        connection.send_blob(want.digest, state.pending.blobs[want.digest], want.offset)
