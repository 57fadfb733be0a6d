"""The hostile peers of `soak.py`: who has no token, and enrolled members who break every rule but one.

    python benchmarks/hostile_peers.py CAMPAIGN.json LIFE

runs until it is killed. The one rule: no member ever sends a whole update that a coordinator should accept, so none may
count, and the result of the honest devices is theirs alone. Each member repeats one act, each act with a token of its
own; those without a token repeat theirs all the time, members leave for a while now and then, as a round with a silent
member lasts to its deadline. Outcomes are counted by act, and written to a file every second.
"""

import asyncio
import contextlib
import json
import random
import resource
import secrets
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from light_peers import LIMITS, Device, cut
from soak_peers import trained
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.messages import (
    MAX_COUNT,
    MAX_MESSAGE,
    SUBPROTOCOL,
    Accepted,
    Bye,
    Chunk,
    ComponentRef,
    Done,
    Fetch,
    Finish,
    Heartbeat,
    Refuse,
    Train,
    Update,
    Want,
)
from protocol.session import Session
from protocol.tensors import ComponentTensors, digest_of, encode_tensors
from tap_core.components import examples_per_component
from tap_core.files import replace_private
from tap_core.manifest import load_manifest
from tap_core.seeds import derive_seed


@dataclass(frozen=True)
class Campaign:
    """What the hostile process does."""

    directory: str
    """The federation's, for its manifest: an insider knows it."""
    folder: str
    """Where outcomes go."""
    host: str
    port: int
    members: dict[str, str]
    """Each act of a member and the file with its token; the file is read anew for each connection."""
    outsiders: tuple[str, ...]
    seed: int
    bare: int = 200
    """Bare connections that are held at a time."""
    attack: float = 40.0
    """Seconds for which members attack, and then `lull` seconds for which they are gone."""
    lull: float = 30.0
    hold: float = 15.0
    """Seconds for which an act holds what it holds."""
    victim: str = "honest-0"
    """The device whose updates are stolen."""
    victim_tasks: dict[str, int] = field(default_factory=dict)

    def save(self) -> Path:
        path = Path(self.folder) / "campaign.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))
        return path


class Member(Device):
    """An enrolled device that keeps to the protocol as long as its act wants it to."""

    def __init__(self, campaign: Campaign, act: str, life: int):
        manifest = load_manifest(Path(campaign.directory))
        super().__init__(manifest, member_name(act, campaign.members))
        self.campaign, self.act = campaign, act
        self.random = random.Random(derive_seed(campaign.seed, act, life))
        self.address = address_of(act)
        self.cache: dict[str, bytes] = {}

    @contextlib.asynccontextmanager
    async def open(self) -> Any:
        """A connection with a valid token on which nothing has been said."""
        token = Path(self.campaign.members[self.act]).read_text().strip()
        self.session = Session("device", partial={})
        subprotocols: Any = [SUBPROTOCOL]
        url = f"ws://{self.campaign.host}:{self.campaign.port}"
        headers = {"Authorization": f"Bearer {token}"}
        options = {**LIMITS, "close_timeout": 1, "local_addr": (self.address, 0)}
        socket = await connect(url, additional_headers=headers, subprotocols=subprotocols, **options)
        try:
            yield socket
        finally:
            cut(socket.transport)

    @contextlib.asynccontextmanager
    async def welcomed(self) -> Any:
        """A connection on which the device is a member."""
        async with self.open() as socket:
            await self.send(socket, self.session.send(self.hello()))
            event = await self.hear(socket)
            if event.type != "welcome":
                raise Over(name_of(event))
            yield socket

    @contextlib.asynccontextmanager
    async def asked(self) -> Any:
        """A connection and the Train that came on it."""
        async with self.welcomed() as socket:
            event = await self.hear(socket)
            while not isinstance(event, Train):
                if isinstance(event, (Bye, Finish, Refuse)):
                    raise Over(name_of(event))
                event = await self.hear(socket)
            yield socket, event

    async def values(self, socket: ClientConnection, train: Train) -> dict[str, bytes]:
        """The components of the Train; those that are in the cache do not travel."""
        lacking = tuple(ref for ref in train.components if ref.digest not in self.cache)
        if lacking:
            fetched = await self.fetch(socket, lacking)
            self.cache.update({ref.digest: fetched[ref.name] for ref in lacking})
        self.cache = {ref.digest: self.cache[ref.digest] for ref in train.components}
        return {ref.name: self.cache[ref.digest] for ref in train.components}

    async def offer(
        self,
        socket: ClientConnection,
        number: int,
        blobs: dict[str, bytes],
        *,
        announced: dict[str, str] | None = None,
        factor: int = 1,
        withheld: Collection[str] = (),
        most: int | None = None,
    ) -> str:
        """Send an update with the session's blessing; returns the answer.

        ``announced`` names other digests than those of ``blobs``, ``factor`` multiplies the examples. Blobs whose
        digest is among ``withheld`` are not sent, and after ``most`` bytes, if given, nothing is.
        """
        by_name = announced or {name: digest_of(data) for name, data in blobs.items()}
        examples = examples_per_component(self.manifest.config.tasks_named(self.tasks), self.tasks)
        refs = tuple(
            ComponentRef(name=name, version=number, digest=by_name[name], size=len(data))
            for name, data in blobs.items()
        )
        claimed = {name: examples.get(name, 1) * factor for name in blobs}
        await self.send(socket, self.session.send(Update(round=number, examples=claimed, components=refs)))
        content = {by_name[name]: data for name, data in blobs.items()}
        sent = 0
        while isinstance(event := await self.hear(socket), Want):
            if event.digest in withheld:
                continue
            for piece in self.session.send_blob(event.digest, content[event.digest], event.offset):
                await self.send(socket, piece)
                sent += len(piece)
                if most is not None and sent >= most:
                    return "abandoned"
        return name_of(event)

    async def answer(self, socket: ClientConnection) -> str:
        """What comes back for something unheard-of."""
        while True:
            data = await socket.recv()
            with contextlib.suppress(ProtocolError):
                for event in self.session.receive(data):
                    if not isinstance(event, Train):
                        return name_of(event)


class Over(Exception):
    """The act came to an end, and how."""


def member_name(act: str, members: dict[str, str]) -> str:
    return f"{act.replace('_', '-')}-{sorted(members).index(act)}"


def address_of(act: str) -> str:
    """Each act comes from an address of its own, so that limits by address can tell it from the honest ones."""
    return f"127.0.2.{1 + derive_seed(act) % 250}"


def name_of(event: Any) -> str:
    code = getattr(event, "code", "")
    return f"{getattr(event, 'type', type(event).__name__)} {code}".strip()


def random_digest() -> str:
    return secrets.token_hex(32)


# the acts of members: each takes a member, does its worst once, and returns what came of it


async def never_hello(member: Member) -> str:
    """Many connections with a valid token on which nothing is ever said."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(member.open())
        await asyncio.sleep(member.campaign.hold)
    return "held"


async def silent(member: Member) -> str:
    """A member that never reads nor answers anything."""
    async with member.welcomed():
        await asyncio.sleep(member.campaign.hold)
    return "held"


async def slow_reader(member: Member) -> str:
    """Asks for everything and does not read it."""
    async with member.asked() as (socket, train):
        offsets = [member.session.expect(ref.digest, ref.size) for ref in train.components]
        digests = tuple(ref.digest for ref in train.components)
        await member.send(socket, member.session.send(Fetch(digests=digests, offsets=tuple(offsets))))
        await asyncio.sleep(member.campaign.hold)
    return "held"


def nonsense(chance: random.Random) -> Iterator[bytes | str]:
    """Messages that no device may send, some at any time and all before hello."""
    yield chance.randbytes(chance.randrange(1, 2000))
    yield "a text message"
    yield b""
    yield bytes(MAX_MESSAGE + 1)
    yield b"\x91" * 10_000
    yield msgpack.packb({"type": "heartbeat", "phase": "x", "step": -1, "steps": 2**64 - 1})
    yield msgpack.packb({"type": "hello", "tasks": {str(i): i for i in range(4000)}})
    yield encode(Bye(code="stop"))
    yield encode(Accepted(round=0))
    yield encode(Done())
    yield encode(Chunk(digest=random_digest(), offset=0, data=bytes(100_000)))
    yield encode(Fetch(digests=(random_digest(),), offsets=(5,)))
    digest = random_digest()
    refs = tuple(ComponentRef(name=f"c{i}", version=9, digest=digest, size=9) for i in range(2000))
    yield encode(Update(round=9, examples={ref.name: MAX_COUNT for ref in refs}, components=refs))
    data = bytearray(encode(Heartbeat(phase="phase", step=1, steps=2)))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    yield bytes(data)


async def garbage_first(member: Member) -> str:
    """Something else than a hello as the first message."""
    async with member.open() as socket:
        await socket.send(member.random.choice(list(nonsense(member.random))))
        return await member.answer(socket)


async def garbage_later(member: Member) -> str:
    """Messages that the state does not allow, after a proper hello."""
    async with member.welcomed() as socket:
        await asyncio.sleep(member.random.uniform(0, 0.5))
        for message in member.random.choices(list(nonsense(member.random)), k=3):
            await socket.send(message)
        return await member.answer(socket)


async def bad_update(member: Member) -> str:
    """A whole update, every byte of it delivered, that may not be accepted for what it holds or claims."""
    async with member.asked() as (socket, train):
        good = await member.values(socket, train)
        name = member.random.choice(sorted(good))
        kind = member.random.choice(("shapes", "nan", "header", "examples", "missing", "digest", "empty"))
        changed, factor, announced = dict(good), 1, None
        values = values_of(good[name])
        match kind:
            case "shapes":
                changed[name] = encode_tensors(ComponentTensors(name, {"t0": values[: len(values) // 2]}))
            case "nan":
                start = len(good[name]) - values.nbytes
                changed[name] = good[name][:start] + np.full_like(values, np.nan).tobytes()
            case "header":
                changed[name] = good[name][:9] + bytes([good[name][9] ^ 0x20]) + good[name][10:]
            case "examples":
                factor = 1000
            case "missing":
                del changed[name]
            case "digest":
                changed = {key: trained("nobody", train.round, key, data) for key, data in good.items()}
                announced = {key: digest_of(data) for key, data in changed.items()} | {name: random_digest()}
            case "empty":
                changed[name] = b"\0"
        try:
            return f"{kind}: {await member.offer(socket, train.round, changed, announced=announced, factor=factor)}"
        except (ConnectionClosed, Over) as error:
            return f"{kind}: {end_of(error)}"


async def huge(member: Member) -> str:
    """Every value as large as can be, or much too large: finite numbers that would wipe out everybody's work."""
    async with member.asked() as (socket, train):
        good = await member.values(socket, train)
        size = member.random.choice((1.0, 1e6, 3e38))
        blobs = {}
        for name, data in good.items():
            values = values_of(data)
            blobs[name] = data[: len(data) - values.nbytes] + np.full_like(values, size).tobytes()
        return f"{size:g}: {await member.offer(socket, train.round, blobs)}"


async def abandon(member: Member) -> str:
    """An update that is begun and never ends, and the next time another one."""
    async with member.asked() as (socket, train):
        blobs = {ref.name: member.random.randbytes(ref.size) for ref in train.components}
        most = member.random.randrange(sum(map(len, blobs.values())))
        return await member.offer(socket, train.round, blobs, most=most)


async def thief(member: Member) -> str:
    """Computes what an honest device will send, announces and delivers it first, and takes it back before it counts.

    The largest of the stolen blobs is left to the honest device, which is still sending it when the others disappear.
    The rest of the update is as it should be, so that it is stored on arrival; but one component of it is nowhere, so
    none of it may count.
    """
    campaign = member.campaign
    tasks = member.manifest.config.tasks_named(campaign.victim_tasks)
    theirs = set(examples_per_component(tasks, campaign.victim_tasks))
    async with member.asked() as (socket, train):
        good = await member.values(socket, train)
        stolen = {
            name: trained(campaign.victim if name in theirs else member.name, train.round, name, data)
            for name, data in good.items()
        }
        announced = {name: digest_of(data) for name, data in stolen.items()}
        nowhere, largest = max(set(stolen) - theirs), max(theirs, key=lambda name: len(stolen[name]))
        announced[nowhere] = random_digest()
        withheld = {announced[nowhere], announced[largest]}
        offer = member.offer(socket, train.round, stolen, announced=announced, withheld=withheld)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(offer, member.random.uniform(0.1, 0.3) * campaign.hold)
    async with member.asked() as (socket, train):
        blobs = {ref.name: member.random.randbytes(ref.size) for ref in train.components}
        await member.offer(socket, train.round, blobs, most=1)
    return "stolen and dropped"


async def claims(member: Member) -> str:
    """A hello that claims what is not so."""
    hello, kind = member.hello(), ""
    async with member.open() as socket:
        changes: dict[str, dict[str, Any]] = {
            "unknown task": {"tasks": {"everything": 5}},
            "absurd count": {"tasks": {task: MAX_COUNT for task in member.tasks}},
            "another device": {"device": member.campaign.victim},
            "another federation": {"federation": "elsewhere"},
            "another foundation": {"foundation": random_digest()},
            "another schema": {"schema_version": 77},
            "many examples": {"tasks": {task: 10**12 for task in member.tasks}},
        }
        kind = member.random.choice(sorted(changes))
        hello = hello.model_copy(update=changes[kind])
        await member.send(socket, member.session.send(hello))
        return f"{kind}: {name_of(await member.hear(socket))}"


async def reconnects(member: Member) -> str:
    """A hundred connections, each said hello on and dropped at once."""
    refused: Counter[str] = Counter()
    for _ in range(100):
        try:
            async with member.welcomed():
                refused["welcome"] += 1
        except ERRORS as error:
            refused[end_of(error)] += 1
    return ", ".join(f"{count} x {what}" for what, count in refused.most_common(1))


async def heartbeats(member: Member) -> str:
    """Twenty thousand heartbeats as fast as they go."""
    async with member.welcomed() as socket:
        for step in range(20_000):
            await socket.send(encode(Heartbeat(phase=f"beat {step}", step=step, steps=0)))
    return "all sent"


# the acts of those without a token


@dataclass
class Outsider:
    """Somebody who knows the address and nothing else."""

    campaign: Campaign
    act: str
    random: random.Random

    @property
    def source(self) -> tuple[str, int]:
        return f"127.0.3.{self.random.randrange(1, 9)}", 0

    async def socket(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.campaign.host, self.campaign.port, local_addr=self.source)


async def wrong_tokens(outsider: Outsider) -> str:
    """A token that was never given out."""
    url = f"ws://{outsider.campaign.host}:{outsider.campaign.port}"
    header = outsider.random.choice((f"Bearer tap_{secrets.token_urlsafe(32)}", "Bearer ", "Basic eDp5", "x" * 5000))
    await asyncio.sleep(0.02)  # fifty a second: a flood that leaves something of the machine to the others
    async with connect(url, additional_headers={"Authorization": header}, local_addr=outsider.source):
        return "LET IN"


async def bare(outsider: Outsider) -> str:
    """Hundreds of connections on which nothing is ever said."""
    writers = []
    try:
        for _ in range(outsider.campaign.bare):
            with contextlib.suppress(OSError):
                writers.append((await outsider.socket())[1])
        await asyncio.sleep(outsider.campaign.hold)
        return "held"
    finally:
        for writer in writers:
            cut(writer.transport)


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"


async def half_handshake(outsider: Outsider) -> str:
    """A request of which the end never comes, a byte at a time; or one that never ends."""
    reader, writer = await outsider.socket()
    try:
        if outsider.random.random() < 0.5:
            for byte in REQUEST:
                writer.write(bytes([byte]))
                await asyncio.sleep(outsider.campaign.hold / len(REQUEST))
        else:
            writer.write(REQUEST + b"X: " + b"x" * 200_000)
        await writer.drain()
        reply = await asyncio.wait_for(reader.read(100), outsider.campaign.hold)
        return reply[:12].decode("latin-1") or "closed"
    finally:
        cut(writer.transport)


async def no_http(outsider: Outsider) -> str:
    """Bytes that are not HTTP at all."""
    reader, writer = await outsider.socket()
    try:
        writer.write(b"\x16\x03\x01\x02\x00" + outsider.random.randbytes(500) + b"\r\n\r\n")
        reply = await asyncio.wait_for(reader.read(100), outsider.campaign.hold)
        return reply[:12].decode("latin-1") or "closed"
    finally:
        cut(writer.transport)


MemberAct = Callable[[Member], Awaitable[str]]
OutsiderAct = Callable[[Outsider], Awaitable[str]]

MEMBER_ACTS: dict[str, MemberAct] = {
    act.__name__: act
    for act in (
        never_hello,
        silent,
        slow_reader,
        garbage_first,
        garbage_later,
        bad_update,
        huge,
        abandon,
        thief,
        claims,
        reconnects,
        heartbeats,
    )
}
OUTSIDER_ACTS: dict[str, OutsiderAct] = {act.__name__: act for act in (wrong_tokens, bare, half_handshake, no_http)}
OUTSIDERS_AT_ONCE = {"wrong_tokens": 2, "half_handshake": 20, "no_http": 2}

ERRORS = (OSError, EOFError, InvalidHandshake, ConnectionClosed, ProtocolError, Over, asyncio.TimeoutError)
"""How an act may end that does not end by itself. Anything else is a mistake of this program."""


def end_of(error: BaseException) -> str:
    match error:
        case InvalidStatus():
            return f"HTTP {error.response.status_code}"
        case ConnectionClosed():
            return f"closed {error.rcvd.code if error.rcvd else 'without a word'}"
        case Over():
            return str(error)
        case asyncio.TimeoutError():
            return "nothing came"
    return type(error).__name__


def values_of(data: bytes) -> Any:
    """The values of a component, all of its tensors one after the other."""
    return np.frombuffer(data, "<f4", offset=8 + int.from_bytes(data[:8], "little"))


class Outcomes:
    """How often each act came to each end; written to a file so that a kill loses a second at most."""

    def __init__(self, path: Path):
        self.path, self.counts = path, Counter[str]()

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(1)
            replace_private(self.path, json.dumps(self.counts).encode(), durable=False)


async def repeat(
    name: str, act: Callable[[], Awaitable[str]], outcomes: Outcomes, pause: Callable[[], float], patience: float
) -> None:
    """Do it again and again; after ``patience`` seconds without an end, anew."""
    while True:
        try:
            outcome = await asyncio.wait_for(act(), patience)
        except ERRORS as error:
            outcome = end_of(error)
        outcomes.counts[f"{name}: {outcome}"] += 1
        await asyncio.sleep(pause())


async def attack(campaign: Campaign, life: int) -> None:
    """All the acts at once, for ever."""
    outcomes = Outcomes(Path(campaign.folder) / f"outcomes-{life}.json")
    chance = random.Random(derive_seed(campaign.seed, "pauses", life))
    works = [outcomes.keep()]
    for name in campaign.outsiders:
        for place in range(OUTSIDERS_AT_ONCE.get(name, 1)):
            outsider = Outsider(campaign, name, random.Random(derive_seed(campaign.seed, name, place, life)))
            work = (lambda act, who: lambda: act(who))(OUTSIDER_ACTS[name], outsider)
            works.append(repeat(name, work, outcomes, lambda: 0.05, 4 * campaign.hold))
    works.append(in_bouts(campaign, outcomes, chance, life))
    await asyncio.gather(*works)


async def in_bouts(campaign: Campaign, outcomes: Outcomes, chance: random.Random, life: int) -> None:
    """The members attack together for a while, and are gone for a while."""
    members = [Member(campaign, name, life) for name in sorted(campaign.members)]

    def pause() -> float:
        return chance.uniform(0.2, campaign.hold / 3)

    while members:
        works = []
        for member in members:
            work = (lambda act, who: lambda: act(who))(MEMBER_ACTS[member.act], member)
            works.append(repeat(member.act, work, outcomes, pause, 4 * campaign.hold))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*works), campaign.attack)
        await asyncio.sleep(campaign.lull)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    values = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(attack(Campaign(**{**values, "outsiders": tuple(values["outsiders"])}), int(sys.argv[2])))
