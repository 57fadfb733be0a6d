"""The honest devices of `soak.py`: their training can be computed again, and everything around it goes wrong.

    python benchmarks/soak_peers.py PLAN.json LIFE

runs one device until the coordinator says that it is done. A device is killed at any moment by whoever started it; its
next life goes on with what the one before had written. Within a life its connection is cut at random, also in the
middle of a transfer, and it may read and send slowly. It knows the plan, the wire and its folder; it does not know who
else takes part.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from light_peers import LIMITS, Device, cut
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from protocol.messages import Accepted, Bye, ComponentRef, Heartbeat, Refuse, Rejected, Train
from protocol.session import Session
from protocol.tensors import digest_of
from protocol.transfer import Incoming
from tap_core.files import replace_private
from tap_core.manifest import load_manifest
from tap_core.seeds import derive_seed

CHANGE = 1e-4
"""Training changes a value by half of this to one and a half of it: far below any bound on the norm of an update."""

BACK_OFF = (0.2, 3.0)
"""Seconds between attempts to connect: at first, and at most."""


@dataclass(frozen=True)
class Plan:
    """One honest device. All seconds; 0 for a cut, a pause or thinking means never."""

    name: str
    directory: str
    """The federation's, for its manifest."""
    folder: str
    """The device's own, for what it makes durable."""
    url: str
    token: str
    tasks: dict[str, int]
    seed: int
    address: str = "127.0.0.1"
    thinking: float = 0.0
    """Most seconds of training."""
    cut_messages: int = 0
    """The connection is cut after about so many messages."""
    cut_seconds: float = 0.0
    """Or left after about so many seconds."""
    respite: float = 0.0
    """In so many seconds it happens twice at most, so that a round's time is enough for what it needs."""
    pause: float = 0.0
    """Seconds to wait at each message that is sent or read."""
    chunk: int = 1 << 20
    """Bytes of a chunk that it sends."""

    def save(self) -> Path:
        path = Path(self.folder) / "plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))
        return path


def trained(device: str, number: int, name: str, data: bytes) -> bytes:
    """What ``device`` makes in round ``number`` of the bytes of a component (float32). A bit more or less in what it
    received changes every value that it sends, so a difference between two runs never disappears."""
    generator = np.random.default_rng(derive_seed(device, number, name, digest_of(data)))
    start = 8 + int.from_bytes(data[:8], "little")  # safetensors: the length of the header, the header, the values
    values = np.frombuffer(data, "<f4", offset=start)
    size = generator.uniform(0.5 * CHANGE, 1.5 * CHANGE, values.size).astype(np.float32)
    sign = generator.integers(0, 2, values.size).astype(np.float32) * 2 - 1
    return data[:start] + (values + sign * size).tobytes()


class Cut(Exception):
    """The device cuts its connection."""


class Ended(Exception):
    """The coordinator ended the connection, with this code."""


class Diary:
    """What happened, for the report: a line of JSON for each event, written at once since a kill may be next."""

    def __init__(self, path: Path):
        self._path = path

    def note(self, what: str, **facts: Any) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps({"at": time.time(), "what": what, **facts}) + "\n")


class Journal:
    """The update that was made and may not be acknowledged yet. It survives a kill: written whole, then renamed."""

    def __init__(self, path: Path):
        self._path = path

    def save(self, number: int, offered: dict[str, str], components: dict[str, bytes]) -> None:
        replace_private(self._path, msgpack.packb([number, offered, components]), durable=False)

    def load(self, number: int, offered: dict[str, str]) -> dict[str, bytes] | None:
        """The update of this round, if it was made from these components."""
        if not self._path.exists():
            return None
        saved_number, saved_offered, components = msgpack.unpackb(self._path.read_bytes())
        return components if (saved_number, saved_offered) == (number, offered) else None


class HonestDevice(Device):
    """A device that does as it should, over a connection that does not."""

    def __init__(self, plan: Plan, life: int):
        super().__init__(load_manifest(Path(plan.directory)), plan.name)
        self.plan, self.tasks = plan, plan.tasks
        self.connecting = {**LIMITS, "local_addr": (plan.address, 0), "close_timeout": 1, "max_queue": 2}
        self.diary = Diary(Path(plan.folder) / "diary.jsonl")
        self.journal = Journal(Path(plan.folder) / "update")
        self.random = random.Random(derive_seed(plan.seed, plan.name, life))
        self.partial: dict[str, Incoming] = {}
        self.cache: dict[str, bytes] = {}
        self.connected = False
        self._left = 0
        self._mishaps: deque[float] = deque([-math.inf] * 2, maxlen=2)

    async def run(self) -> None:
        """Take part until the coordinator says that the device is done."""
        wait = BACK_OFF[0]
        while (why := await self._connect()) != "done":
            self.diary.note("disconnected", why=why)
            wait = BACK_OFF[0] if self.connected else min(2 * wait, BACK_OFF[1])
            await asyncio.sleep(wait * self.random.uniform(0.5, 1))
        self.diary.note("done")

    async def _connect(self) -> str:
        """One connection, from hello to its end, however that comes; returns how it came."""
        self.session = Session("device", partial=self.partial, chunk_size=self.plan.chunk)
        self.connected = False
        peace = max(0.0, self._mishaps[0] + self.plan.respite - time.monotonic())
        self._left = 0 if peace else self._about(self.plan.cut_messages)
        seconds = self._about(self.plan.cut_seconds) + peace if self.plan.cut_seconds else 0
        try:
            await asyncio.wait_for(self.take_part(self.plan.url, self.plan.token), seconds or None)
        except asyncio.TimeoutError:  # before OSError, which it is from Python 3.11 on
            self._mishaps.append(time.monotonic())
            return "left"
        except Cut:
            self._mishaps.append(time.monotonic())
            return "cut"
        except Ended as ended:
            return str(ended)
        except InvalidStatus as error:
            return f"HTTP {error.response.status_code}"
        except (InvalidHandshake, InvalidMessage, EOFError):
            return "no handshake"
        except ConnectionClosed as closed:
            return f"closed {closed.rcvd.code if closed.rcvd else 'without a word'}"
        except OSError:
            return "no connection"
        finally:
            self.session.connection_lost()
        return "done"

    def _about(self, mean: float) -> int:
        return max(1, round(self.random.expovariate(1 / mean))) if mean else 0

    async def _strain(self, socket: ClientConnection) -> None:
        """What befalls each message: a pause, or the end of the connection."""
        if self.plan.pause:
            await asyncio.sleep(self.plan.pause)
        if self._left:
            self._left -= 1
            if not self._left:
                cut(socket.transport)
                raise Cut

    async def send(self, socket: ClientConnection, data: bytes) -> None:
        await self._strain(socket)
        await super().send(socket, data)

    async def hear(self, socket: ClientConnection) -> Any:
        await self._strain(socket)
        event = await super().hear(socket)
        self.connected = True
        match event:
            case Refuse(code=code):
                raise Ended(f"refused {code}")
            case Bye(code=code) if code != "done":
                raise Ended(f"bye {code}")
        return event

    async def fetch(self, socket: ClientConnection, refs: tuple[ComponentRef, ...]) -> dict[str, bytes]:
        """As a device with a cache does: only what it lacks travels."""
        self.cache = {ref.digest: self.cache[ref.digest] for ref in refs if ref.digest in self.cache}
        lacking = tuple(ref for ref in refs if ref.digest not in self.cache)
        if any(ref.digest in self.partial for ref in lacking):
            self.diary.note("download resumed")
        if lacking:
            fetched = await super().fetch(socket, lacking)
            self.cache.update({ref.digest: fetched[ref.name] for ref in lacking})
        return {ref.name: self.cache[ref.digest] for ref in refs}

    async def take_round(self, socket: ClientConnection, train: Train) -> None:
        number, offered = train.round, {ref.name: ref.digest for ref in train.components}
        update = self.journal.load(number, offered)
        if update is None:
            received = await self.fetch(socket, train.components)
            await self._think(socket)
            update = {name: trained(self.name, number, name, data) for name, data in received.items()}
            self.journal.save(number, offered, update)
        else:
            self.diary.note("update again", round=number)
        match await self.report(socket, number, update):
            case Accepted():
                self.diary.note("accepted", round=number)
            case Rejected(code=code, why=why):
                self.diary.note("rejected", round=number, code=code, why=why)

    async def _think(self, socket: ClientConnection) -> None:
        steps = 4 if self.plan.thinking else 0
        for step in range(steps):
            await asyncio.sleep(self.random.uniform(0.2, 1) * self.plan.thinking / steps)
            beat = Heartbeat(phase="thinking", step=step + 1, steps=steps)
            await self.send(socket, self.session.send(beat))


if __name__ == "__main__":
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text()))
    asyncio.run(HonestDevice(plan, int(sys.argv[2])).run())
