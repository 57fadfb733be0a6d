"""The session: the whole flow between two ends, and every rule about contents on the side that breaks it."""

import pytest

from protocol.codec import encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    CHUNK,
    Accepted,
    Bye,
    Chunk,
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

OLD, NEW = b"global component" * 4, b"trained component" * 4
OWNED = "decoder/x"
HELLO = Hello(device="d", federation="f", tasks={"x": 5}, foundation="0" * 64, schema_version=1)
WELCOME = Welcome(session="s", settings="{}", owned=(OWNED, "encoder/text"))
BEAT = Heartbeat(phase="training", step=1, steps=2)


def ref(blob, version=0, name=OWNED):
    return ComponentRef(name=name, version=version, digest=digest_of(blob), size=len(blob))


DECLINE = Decline(round=3, code="diverged", why="the loss is not finite")
TRAIN = Train(round=3, deadline=60.0, components=(ref(OLD, 3),))
UPDATE = Update(round=3, examples={OWNED: 5}, components=(ref(NEW, 3),))


class Pair:
    """Two ends without a network: what one sends the other receives at once."""

    def __init__(self, device_partial=None, coordinator_partial=None, chunk_size=16):
        self.device = Session("device", partial=device_partial, chunk_size=chunk_size)
        self.coordinator = Session("coordinator", partial=coordinator_partial, chunk_size=chunk_size)

    def up(self, message):
        return self.coordinator.receive(self.device.send(message))

    def down(self, message):
        return self.device.receive(self.coordinator.send(message))

    @property
    def states(self):
        return self.device.state, self.coordinator.state

    def idle(self):
        self.up(HELLO)
        self.down(WELCOME)
        return self

    def training(self):
        self.idle().down(TRAIN)
        return self

    def keeping(self):
        kept = ref(OLD, 3, "encoder/text")
        self.idle().down(Train(round=3, deadline=60.0, components=(ref(OLD, 3), kept), home=("encoder/text",)))
        return self

    def fetching(self):
        self.training()
        offset = self.device.expect(digest_of(OLD), len(OLD))
        self.up(Fetch(digests=(digest_of(OLD),), offsets=(offset,)))
        return self

    def reporting(self):
        self.training().up(UPDATE)
        return self

    def wanting(self):
        self.reporting()
        offset = self.coordinator.expect(digest_of(NEW), len(NEW))
        self.down(Want(digest=digest_of(NEW), offset=offset))
        return self

    def finishing(self):
        self.idle().down(Finish(components=(ref(OLD, 9),)))
        return self


def test_a_whole_federation_of_one_round():
    pair = Pair()
    assert pair.states == ("opening", "opening")
    assert pair.up(HELLO) == [HELLO] and pair.states == ("greeting", "greeting")
    assert pair.down(WELCOME) == [WELCOME] and pair.states == ("idle", "idle")
    assert pair.up(BEAT) == [BEAT]
    assert pair.down(TRAIN) == [TRAIN] and pair.states == ("training", "training")
    assert pair.device.expect(digest_of(OLD), len(OLD)) == 0
    assert pair.device.awaited == {digest_of(OLD)}
    fetch = Fetch(digests=(digest_of(OLD),), offsets=(0,))
    assert pair.up(fetch) == [fetch]
    events = [e for data in pair.coordinator.send_blob(digest_of(OLD), OLD) for e in pair.device.receive(data)]
    assert events == [BlobReceived(digest_of(OLD), OLD)] and not pair.device.awaited
    assert pair.up(BEAT) == [BEAT]
    assert pair.up(UPDATE) == [UPDATE] and pair.states == ("reporting", "reporting")
    assert pair.coordinator.expect(digest_of(NEW), len(NEW)) == 0
    want = Want(digest=digest_of(NEW), offset=0)
    assert pair.down(want) == [want]
    events = [e for data in pair.device.send_blob(digest_of(NEW), NEW) for e in pair.coordinator.receive(data)]
    assert events == [BlobReceived(digest_of(NEW), NEW)]
    assert pair.down(Accepted(round=3)) == [Accepted(round=3)] and pair.states == ("idle", "idle")
    pair.down(Finish(components=(ref(OLD, 4),)))
    assert pair.states == ("finishing", "finishing")
    assert pair.up(Done()) == [Done()] and pair.states == ("done", "done")
    assert pair.down(Bye(code="complete")) == [Bye(code="complete")] and pair.states == ("closed", "closed")


def test_a_device_that_declines_is_idle_and_may_be_asked_again_at_once():
    pair = Pair().fetching()
    for data in pair.coordinator.send_blob(digest_of(OLD), OLD):
        pair.device.receive(data)
    assert pair.up(DECLINE) == [DECLINE] and pair.states == ("idle", "idle")
    assert pair.down(TRAIN) == [TRAIN] and pair.up(UPDATE) == [UPDATE] and pair.states == ("reporting", "reporting")


def test_a_refusal_ends_the_connection():
    pair = Pair()
    pair.up(HELLO)
    pair.down(Refuse(code="schema", why="old", fix="update"))
    assert pair.states == ("closed", "closed")


@pytest.mark.parametrize("side", ["device", "coordinator"])
def test_a_blob_cut_in_the_middle_goes_on_in_the_next_session(side):
    partial = {}
    first = Pair(partial if side == "device" else None, partial if side == "coordinator" else None)
    first = first.fetching() if side == "device" else first.wanting()
    blob, sender, receiver = (
        (OLD, first.coordinator, first.device) if side == "device" else (NEW, first.device, first.coordinator)
    )
    stream = sender.send_blob(digest_of(blob), blob)
    for _ in range(2):
        receiver.receive(next(stream))
    receiver.connection_lost()
    sender.connection_lost()
    assert list(stream) == [] and partial[digest_of(blob)].offset == 32
    second = Pair(partial if side == "device" else None, partial if side == "coordinator" else None)
    second = second.fetching() if side == "device" else second.wanting()
    sender, receiver = (second.coordinator, second.device) if side == "device" else (second.device, second.coordinator)
    chunks = list(sender.send_blob(digest_of(blob), blob, 32))
    assert len(chunks) == -(-(len(blob) - 32) // 16), "only the rest travels"
    assert [e for data in chunks for e in receiver.receive(data)] == [BlobReceived(digest_of(blob), blob)]
    assert partial == {}


def test_partial_transfers_of_what_is_no_longer_offered_are_dropped():
    partial = {}
    pair = Pair(partial).fetching()
    pair.device.receive(next(pair.coordinator.send_blob(digest_of(OLD), OLD)))
    assert partial.keys() == {digest_of(OLD)}
    again = Pair(partial).idle()
    again.down(Train(round=4, deadline=1.0, components=(ref(NEW, 4),)))
    assert partial == {}


def test_a_blob_with_another_digest_is_refused_and_forgotten():
    partial = {}
    pair = Pair(partial).fetching()
    wrong = bytes(len(OLD))
    *chunks, last = pair.coordinator.send_blob(digest_of(OLD), wrong)
    assert [pair.device.receive(data) for data in chunks] == [[]] * len(chunks)
    with pytest.raises(RemoteProtocolError, match="sha256") as caught:
        pair.device.receive(last)
    assert caught.value.close_code == 1007 and pair.device.state == "closed"
    assert partial == {}, "resuming wrong bytes could never succeed"


def test_large_blobs_travel_in_chunks_of_one_mebibyte():
    blob = bytes(2 * CHUNK + 1)
    pair = Pair(chunk_size=CHUNK).idle()
    pair.down(Train(round=0, deadline=1.0, components=(ref(blob),)))
    pair.device.expect(digest_of(blob), len(blob))
    pair.up(Fetch(digests=(digest_of(blob),), offsets=(0,)))
    chunks = list(pair.coordinator.send_blob(digest_of(blob), memoryview(blob)))
    assert len(chunks) == 3 and max(map(len, chunks)) < CHUNK + 200
    assert [e.data for data in chunks for e in pair.device.receive(data)] == [blob]


def test_transfers_may_be_mixed():
    pair = Pair().idle()
    pair.down(Train(round=0, deadline=1.0, components=(ref(OLD), ref(NEW, name="encoder/text"))))
    for blob in (OLD, NEW):
        pair.device.expect(digest_of(blob), len(blob))
    pair.up(Fetch(digests=(digest_of(OLD), digest_of(NEW)), offsets=(0, 0)))
    streams = [pair.coordinator.send_blob(digest_of(blob), blob) for blob in (OLD, NEW)]
    received = {}
    while streams:
        stream = streams.pop(0)
        data = next(stream, None)
        if data is not None:
            received.update({event.digest: event.data for event in pair.device.receive(data)})
            streams.append(stream)
    assert received == {digest_of(OLD): OLD, digest_of(NEW): NEW}


def test_a_chunk_may_also_be_sent_as_a_message():
    pair = Pair().fetching()
    assert pair.down(Chunk(digest=digest_of(OLD), offset=0, data=OLD[:60])) == []
    assert pair.down(Chunk(digest=digest_of(OLD), offset=60, data=OLD[60:])) == [BlobReceived(digest_of(OLD), OLD)]


# What each side may not send. The state stays, nothing is sent, and the session works on.

X = "f" * 64
LOCAL = {
    "a message of the other side": ("idle", "device", TRAIN),
    "hello twice": ("idle", "device", HELLO),
    "update while idle": ("idle", "device", UPDATE),
    "done while training": ("training", "device", Done()),
    "train while training": ("training", "coordinator", TRAIN),
    "finish while reporting": ("reporting", "coordinator", Finish(components=())),
    "a component that the device does not own": (
        "idle",
        "coordinator",
        Train(round=0, deadline=1.0, components=(ref(OLD, name="decoder/other"),)),
    ),
    "final components that it does not own": (
        "idle",
        "coordinator",
        Finish(components=(ref(OLD, name="decoder/other"),)),
    ),
    "an update with a component that it does not own": (
        "training",
        "device",
        Update(round=3, examples={"encoder/image": 1}, components=(ref(NEW, 3, "encoder/image"),)),
    ),
    "an update with a component that stays at home": (
        "keeping",
        "device",
        Update(round=3, examples={"encoder/text": 1}, components=(ref(NEW, 3, "encoder/text"),)),
    ),
    "an update of another round": (
        "training",
        "device",
        Update(round=4, examples={OWNED: 5}, components=(ref(NEW, 4),)),
    ),
    "fetch of what was not offered": ("training", "device", Fetch(digests=(X,), offsets=(0,))),
    "fetch past the end": ("training", "device", Fetch(digests=(digest_of(OLD),), offsets=(len(OLD),))),
    "fetch without expect": ("training", "device", Fetch(digests=(digest_of(OLD),), offsets=(0,))),
    "fetch from another offset": ("fetching", "device", Fetch(digests=(digest_of(OLD),), offsets=(5,))),
    "fetch twice": ("fetching", "device", Fetch(digests=(digest_of(OLD),), offsets=(0,))),
    "update while fetching": ("fetching", "device", UPDATE),
    "decline while idle": ("idle", "device", DECLINE),
    "decline while fetching": ("fetching", "device", DECLINE),
    "decline of another round": ("training", "device", Decline(round=2, code="diverged", why="no")),
    "decline of an update that was sent": ("reporting", "device", DECLINE),
    "want of what was not offered": ("reporting", "coordinator", Want(digest=X, offset=0)),
    "want of the old component": ("reporting", "coordinator", Want(digest=digest_of(OLD), offset=0)),
    "want without expect": ("reporting", "coordinator", Want(digest=digest_of(NEW), offset=0)),
    "want twice": ("wanting", "coordinator", Want(digest=digest_of(NEW), offset=0)),
    "accepted before the blobs are there": ("wanting", "coordinator", Accepted(round=3)),
    "accepted of another round": ("reporting", "coordinator", Accepted(round=2)),
    "rejected of another round": ("reporting", "coordinator", Rejected(round=2, code="late", why="late")),
    "a chunk that was not asked for": ("reporting", "device", Chunk(digest=digest_of(NEW), offset=0, data=NEW)),
    "a chunk from another offset": ("wanting", "device", Chunk(digest=digest_of(NEW), offset=1, data=NEW[1:])),
    "a chunk past the end": ("wanting", "device", Chunk(digest=digest_of(NEW), offset=0, data=NEW + b"x")),
}


@pytest.mark.parametrize(("state", "side", "message"), LOCAL.values(), ids=LOCAL.keys())
def test_what_may_not_be_sent(state, side, message):
    pair = getattr(Pair(), state)()
    session, before = getattr(pair, side), pair.states
    with pytest.raises(LocalProtocolError):
        session.send(message)
    assert pair.states == before
    pair.down(Bye(code="still-works"))


# The same on the wire: a peer without our checks sends it, and the receiver accuses it.

REMOTE = (
    {
        name: case
        for name, case in LOCAL.items()
        if name not in ("fetch without expect", "want without expect")  # expect() is the asking side's own affair
    }
    | {
        "accepted while sending": ("wanting", "coordinator", Accepted(round=3)),
        "a chunk out of order": ("fetching", "coordinator", Chunk(digest=digest_of(OLD), offset=1, data=OLD[1:])),
        "a chunk longer than the blob": (
            "fetching",
            "coordinator",
            Chunk(digest=digest_of(OLD), offset=0, data=OLD + b"x"),
        ),
        "a chunk of an unasked blob": ("fetching", "coordinator", Chunk(digest=X, offset=0, data=b"x")),
        "a late chunk without a rejection": ("idle", "device", Chunk(digest=digest_of(NEW), offset=0, data=b"x")),
    }
)


@pytest.mark.parametrize(("state", "side", "message"), REMOTE.values(), ids=REMOTE.keys())
def test_what_may_not_be_received(state, side, message):
    pair = getattr(Pair(), state)()
    receiver = pair.coordinator if side == "device" else pair.device
    with pytest.raises(RemoteProtocolError):
        receiver.receive(encode(message))
    assert receiver.state == "closed"
    with pytest.raises(LocalProtocolError):
        receiver.send(BEAT)


def test_what_stays_at_home_is_said_anew_in_each_train():
    pair = Pair().keeping()
    assert pair.up(UPDATE) == [UPDATE]
    pair.down(Rejected(round=3, code="late", why="the round is over"))
    pair.down(Train(round=4, deadline=60.0, components=(ref(OLD, 3, "encoder/text"),)))
    update = Update(round=4, examples={"encoder/text": 1}, components=(ref(NEW, 4, "encoder/text"),))
    assert pair.up(update) == [update]


def test_a_device_all_of_whose_components_stay_at_home_reports_an_empty_update():
    pair = Pair().idle()
    pair.down(Train(round=3, deadline=60.0, components=(ref(OLD, 3),), home=(OWNED,)))
    empty = Update(round=3, examples={}, components=())
    assert pair.up(empty) == [empty] and pair.down(Accepted(round=3)) == [Accepted(round=3)]
    assert pair.states == ("idle", "idle")


def test_bytes_that_are_no_message_close_the_session():
    pair = Pair().idle()
    with pytest.raises(RemoteProtocolError) as caught:
        pair.device.receive(b"\xc1")
    assert caught.value.close_code == 1007 and pair.device.state == "closed"


def test_after_bye_what_the_device_had_sent_before_is_dropped():
    pair = Pair().training()
    late = pair.device.send(UPDATE)
    goodbye = pair.coordinator.send(Bye(code="stop"))
    assert pair.coordinator.receive(late) == [] and pair.coordinator.state == "closed"
    assert pair.device.receive(goodbye) == [Bye(code="stop")]
    with pytest.raises(RemoteProtocolError):
        pair.device.receive(encode(Bye(code="stop")))


def test_chunks_that_cross_a_rejection_are_dropped():
    pair = Pair().wanting()
    stream = pair.device.send_blob(digest_of(NEW), NEW)
    pair.coordinator.receive(next(stream))
    late = next(stream)
    rejection = pair.coordinator.send(Rejected(round=3, code="late", why="the round is over"))
    train = pair.coordinator.send(TRAIN)
    assert pair.coordinator.receive(late) == []
    assert len(pair.device.receive(rejection)) == len(pair.device.receive(train)) == 1
    assert list(stream) == [], "the transfer was called off"
    assert pair.states == ("training", "training")
    pair.up(UPDATE)
    assert pair.coordinator.expect(digest_of(NEW), len(NEW)) == 0, "what had arrived was given up"
    with pytest.raises(RemoteProtocolError):
        pair.coordinator.receive(late)


def test_a_want_that_is_answered_after_the_rejection_sends_nothing():
    pair = Pair().wanting()
    pair.down(Rejected(round=3, code="late", why="the round is over"))
    assert list(pair.device.send_blob(digest_of(NEW), NEW)) == []


def test_late_chunks_are_not_an_open_door():
    pair = Pair().wanting()
    pair.coordinator.send(Rejected(round=3, code="late", why="the round is over"))
    whole = encode(Chunk(digest=digest_of(NEW), offset=0, data=NEW))
    assert pair.coordinator.receive(whole) == []
    with pytest.raises(RemoteProtocolError, match="nobody asked"):
        pair.coordinator.receive(whole)


def test_expect_wants_an_offer_and_may_be_repeated():
    pair = Pair().training()
    for digest, size in ((X, 5), (digest_of(OLD), len(OLD) + 1), (digest_of(OLD), 0)):
        with pytest.raises(LocalProtocolError):
            pair.device.expect(digest, size)
    with pytest.raises(LocalProtocolError):
        pair.coordinator.expect(digest_of(OLD), len(OLD))
    assert pair.device.expect(digest_of(OLD), len(OLD)) == pair.device.expect(digest_of(OLD), len(OLD)) == 0


def test_send_blob_wants_a_request_and_the_whole_blob():
    pair = Pair().training()
    with pytest.raises(LocalProtocolError):
        pair.coordinator.send_blob(digest_of(OLD), OLD)
    pair = Pair().fetching()
    for data, offset in ((OLD, 1), (OLD[:-1], 0), (OLD + b"x", 0), (b"", 0)):
        with pytest.raises(LocalProtocolError):
            pair.coordinator.send_blob(digest_of(OLD), data, offset)
    assert len(list(pair.coordinator.send_blob(digest_of(OLD), OLD))) == 4


@pytest.mark.parametrize("size", [0, CHUNK + 1])
def test_the_chunk_size_is_bounded(size):
    with pytest.raises(LocalProtocolError):
        Session("device", chunk_size=size)
