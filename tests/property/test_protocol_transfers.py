"""Properties of two sessions piped together: cuts anywhere lose nothing, and correct peers never accuse each other."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    Accepted,
    Bye,
    ComponentRef,
    Decline,
    Done,
    Fetch,
    Finish,
    Heartbeat,
    Hello,
    Refuse,
    Rejected,
    Train,
    Update,
    Want,
    Welcome,
)
from protocol.session import BlobReceived, Session
from protocol.tensors import digest_of
from protocol.transfer import Incoming

HELLO = Hello(device="d", federation="f", tasks={"x": 5}, foundation="0" * 64, schema_version=1)
NAMES = ("decoder/x", "encoder/text", "mote/attention/text")


def refs(blobs, version):
    pairs = zip(NAMES, blobs, strict=False)
    return tuple(ComponentRef(name=n, version=version, digest=digest_of(b), size=len(b)) for n, b in pairs)


@dataclass
class Peer:
    """What survives a connection: blobs, partial transfers, and what has been done."""

    partial: dict[str, Incoming] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    offered: Train | Finish | Update | None = None
    update: Update | None = None
    finished: bool = False

    def ask(self, session, components):
        """The offset to ask from for each blob that is lacking."""
        lacking = {c.digest: c.size for c in components if c.digest not in self.blobs}
        return {digest: session.expect(digest, size) for digest, size in lacking.items()}


def device_answers(peer, session, event, new_blobs):
    """The messages with which a device answers an event."""
    match event:
        case Train() | Finish():
            peer.offered = event
            offsets = peer.ask(session, event.components)
            if offsets:
                yield session.send(Fetch(digests=tuple(offsets), offsets=tuple(offsets.values())))
                return
        case Want():
            yield from session.send_blob(event.digest, peer.blobs[event.digest], event.offset)
            return
        case Accepted():
            peer.update = None
            return
        case BlobReceived():
            peer.blobs[event.digest] = event.data
            if session.awaited:
                return
        case _:
            return
    if isinstance(peer.offered, Train):
        yield session.send(Heartbeat(phase="training", step=1, steps=1))
        for blob in new_blobs:
            peer.blobs[digest_of(blob)] = blob
        number = peer.offered.round
        components = refs(new_blobs, number)
        peer.update = Update(round=number, examples={c.name: 5 for c in components}, components=components)
        yield session.send(peer.update)
    else:
        yield session.send(Done())


def coordinator_answers(peer, session, event, old_blobs):
    """The messages with which a coordinator answers an event."""
    match event:
        case Hello():
            yield session.send(Welcome(session="s", settings="{}", owned=NAMES))
            yield session.send(
                Train(round=3, deadline=1.0, components=refs(old_blobs, 3)) if not peer.update else FINAL
            )
        case Fetch():
            for digest, offset in zip(event.digests, event.offsets, strict=True):
                yield from session.send_blob(digest, peer.blobs[digest], offset)
        case Update() | BlobReceived():
            if isinstance(event, BlobReceived):
                peer.blobs[event.digest] = event.data
            else:
                peer.offered = event
                for digest, offset in peer.ask(session, event.components).items():
                    yield session.send(Want(digest=digest, offset=offset))
            if not session.awaited:
                peer.update = peer.offered
                yield session.send(Accepted(round=3))
                yield session.send(FINAL)
        case Done():
            peer.finished = True
            yield session.send(Bye(code="complete"))


FINAL = Finish(components=())


@dataclass
class Federation:
    """A device with one round to take part in, a coordinator, and a network that may be cut."""

    old_blobs: tuple[bytes, ...]
    new_blobs: tuple[bytes, ...]
    chunk_size: int
    device: Peer = field(default_factory=Peer)
    coordinator: Peer = field(default_factory=Peer)
    chunk_bytes: int = 0
    """Bytes of chunk messages that arrived."""

    def __post_init__(self):
        self.coordinator.blobs.update({digest_of(blob): blob for blob in self.old_blobs})

    def connect(self, cut=None):
        """One connection, to the end or until `cut` bytes have arrived; returns the number of bytes that arrived.

        What is on its way at the cut is lost, and of the message that is cut in two the receiver sees the first part,
        which it must refuse.
        """
        device = Session("device", partial=self.device.partial, chunk_size=self.chunk_size)
        coordinator = Session("coordinator", partial=self.coordinator.partial, chunk_size=self.chunk_size)
        up, down, arrived = deque([device.send(HELLO)]), deque(), 0
        while up or down:
            for queue, session, answers in (
                (
                    up,
                    coordinator,
                    lambda event: coordinator_answers(self.coordinator, coordinator, event, self.old_blobs),
                ),
                (down, device, lambda event: device_answers(self.device, device, event, self.new_blobs)),
            ):
                if not queue:
                    continue
                data = queue.popleft()
                if cut is not None and arrived + len(data) > cut:
                    if cut > arrived:
                        with pytest.raises(RemoteProtocolError):
                            session.receive(data[: cut - arrived])
                    device.connection_lost()
                    coordinator.connection_lost()
                    return cut
                arrived += len(data)
                self.chunk_bytes += data.startswith(b"\x84\xa4type\xa5chunk") and len(data)
                for event in session.receive(data):
                    (down if queue is up else up).extend(answers(event))
        return arrived

    def check(self):
        """All blobs have arrived on both sides, nothing is left over, and the federation has ended."""
        assert self.coordinator.finished and not self.device.partial and not self.coordinator.partial
        for peer in (self.device, self.coordinator):
            for blob in self.old_blobs + self.new_blobs:
                assert peer.blobs[digest_of(blob)] == blob


OLD, NEW = (bytes(range(40)), b"o" * 7), (bytes(range(60, 110)), b"n" * 23)


def test_a_connection_cut_at_every_byte_delivers_the_same():
    whole = Federation(OLD, NEW, chunk_size=9)
    total = whole.connect()
    whole.check()
    assert total > 2500
    for cut in range(total):
        federation = Federation(OLD, NEW, chunk_size=9)
        federation.connect(cut)
        federation.connect()
        federation.check()
        assert federation.chunk_bytes == whole.chunk_bytes, "no chunk that arrived is sent again"


blobs = st.lists(st.binary(min_size=1, max_size=120), min_size=1, max_size=3, unique=True).map(tuple)


@settings(max_examples=150)
@given(
    old_blobs=blobs,
    new_blobs=blobs,
    chunk_size=st.integers(1, 150),
    cuts=st.lists(st.integers(0, 4000), max_size=5),
)
def test_any_blobs_survive_any_cuts(old_blobs, new_blobs, chunk_size, cuts):
    federation = Federation(old_blobs, new_blobs, chunk_size)
    for cut in cuts:
        federation.connect(cut)
    federation.connect()
    federation.check()


class Walk:
    """Two sessions that say whatever their own side allows, over a network that delivers whenever it likes."""

    def __init__(self):
        self.sessions = {"device": Session("device", chunk_size=5), "coordinator": Session("coordinator", chunk_size=5)}
        self.inbox = {"device": deque(), "coordinator": deque()}
        self.offer = {"device": (), "coordinator": ()}  # what the peer of each has offered
        self.streams = {"device": [], "coordinator": []}
        self.sent = set()

    def say(self, role, make):
        """Send `make(session)` if the session allows it."""
        session = self.sessions[role]
        try:
            data = make(session)
        except LocalProtocolError:
            return
        if data is not None:
            self.inbox["coordinator" if role == "device" else "device"].append(data)
            self.sent.add((role, make.__name__))

    def deliver(self, role):
        if not self.inbox[role]:
            return
        for event in self.sessions[role].receive(self.inbox[role].popleft()):
            match event:
                case Train() | Finish() | Update():
                    self.offer[role] = event.components
                case Fetch():
                    for digest, offset in zip(event.digests, event.offsets, strict=True):
                        self.stream(role, digest, offset)
                case Want():
                    self.stream(role, event.digest, event.offset)

    def stream(self, role, digest, offset):
        self.streams[role].append(self.sessions[role].send_blob(digest, BLOBS[digest], offset))

    def next_chunk(self, role):
        def chunk(session):
            return next(self.streams[role][0], None) if self.streams[role] else None

        self.say(role, chunk)
        if self.streams[role]:
            self.streams[role].append(self.streams[role].pop(0))

    def ask(self, role):
        if not self.offer[role]:
            return
        asked = self.offer[role][0]

        def ask(session):
            offset = session.expect(asked.digest, asked.size)
            if role == "device":
                return session.send(Fetch(digests=(asked.digest,), offsets=(offset,)))
            return session.send(Want(digest=asked.digest, offset=offset))

        self.say(role, ask)

    def tell(self, role, *messages):
        for message in messages:

            def send(session, message=message):
                return session.send(message)

            send.__name__ = message.type
            self.say(role, send)


BLOBS = {digest_of(blob): blob for blob in (*OLD, *NEW)}
OFFERS = [refs(OLD, 3), refs(NEW, 3), refs((OLD[1],), 3)]
UPDATES = [Update(round=3, examples={c.name: 1 for c in offer}, components=offer) for offer in OFFERS]
ACTIONS = {
    "device receives": lambda walk: walk.deliver("device"),
    "coordinator receives": lambda walk: walk.deliver("coordinator"),
    "greet": lambda walk: walk.tell("device", HELLO),
    "beat": lambda walk: walk.tell("device", Heartbeat(phase="x", step=0, steps=0)),
    "fetch": lambda walk: walk.ask("device"),
    "device sends a chunk": lambda walk: walk.next_chunk("device"),
    "update": lambda walk: walk.tell("device", UPDATES[1]),
    "another update": lambda walk: walk.tell("device", UPDATES[0]),
    "decline": lambda walk: walk.tell("device", Decline(round=3, code="diverged", why="no")),
    "done": lambda walk: walk.tell("device", Done()),
    "welcome": lambda walk: walk.tell("coordinator", Welcome(session="s", settings="{}", owned=NAMES)),
    "train": lambda walk: walk.tell("coordinator", Train(round=3, deadline=1.0, components=OFFERS[0])),
    "train again": lambda walk: walk.tell("coordinator", Train(round=3, deadline=1.0, components=OFFERS[2])),
    "coordinator sends a chunk": lambda walk: walk.next_chunk("coordinator"),
    "want": lambda walk: walk.ask("coordinator"),
    "accept": lambda walk: walk.tell("coordinator", Accepted(round=3)),
    "reject": lambda walk: walk.tell("coordinator", Rejected(round=3, code="late", why="late")),
    "finish": lambda walk: walk.tell("coordinator", Finish(components=OFFERS[1])),
    "say bye": lambda walk: walk.tell("coordinator", Bye(code="stop")),
    "refuse": lambda walk: walk.tell("coordinator", Refuse(code="no", why="no", fix="no")),
}
RARE = {"say bye", "refuse"}
SCRIPT = (
    """greet/coordinator receives/welcome/device receives/train/device receives/update/coordinator receives/want
device receives/device sends a chunk/reject/train again/coordinator receives/device receives/device receives/fetch
coordinator receives/another update/coordinator sends a chunk/coordinator sends a chunk/device receives/device receives
another update/coordinator receives/accept/train/device receives/device receives/decline/coordinator receives
finish/device receives/done/coordinator receives/beat/say bye
""".replace("\n", "/")
    .strip("/")
    .split("/")
)
"""A walk through every state and message, with a rejection that crosses a chunk; random walks start along it."""

actions = st.sampled_from(sorted(set(ACTIONS) - RARE)) | st.sampled_from(sorted(ACTIONS))


@settings(max_examples=250)
@given(start=st.integers(0, len(SCRIPT)), steps=st.lists(actions, max_size=120))
def test_two_correct_peers_never_accuse_each_other_however_messages_cross(start, steps):
    walk = Walk()
    for step in (*SCRIPT[:start], *steps):
        ACTIONS[step](walk)
    while any(walk.inbox.values()):
        walk.deliver("device")
        walk.deliver("coordinator")


def test_the_walk_gets_everywhere():
    """The walk above proves something only if it can send every message, crossings included."""
    walk = Walk()
    for step in SCRIPT:
        ACTIONS[step](walk)
    assert {name for _, name in walk.sent} == {
        "hello", "welcome", "train", "update", "ask", "chunk", "rejected", "accepted", "finish", "done", "heartbeat",
        "decline", "bye",
    }  # fmt: skip
    assert {session.state for session in walk.sessions.values()} == {"done", "closed"}
