"""A fuzz target for what a peer can send: `protocol.codec.decode` and `protocol.session.Session.receive` of both roles.

    python benchmarks/fuzz_protocol.py --seconds 300                    # needs pip install 'tap-edge[fuzz]'
    python benchmarks/fuzz_protocol.py --seconds 300 --corpus corpus    # goes on with what an earlier run has found
    python benchmarks/fuzz_protocol.py --replay crash-1a2b              # one input again; needs no fuzzer

The first byte of an input chooses what the rest is: the bytes of one message; a map that looks like a message, with
wrong values in places; or a course of events for a session of either role: valid messages that fit together, mutated
ones, garbage, what the session's own caller does, and lost connections. A crash is anything but RemoteProtocolError
from what a peer sent, or LocalProtocolError from what the caller did; and a broken promise: an error that is long or
not printable, a session that is open after an error, a message that does not survive encoding, or more bytes kept than
have arrived. libFuzzer (by atheris) watches the memory and writes the input that crashed.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgpack

try:
    import atheris
except ImportError:  # to replay an input, the target alone is enough
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["protocol"]):
        import protocol.session  # noqa: F401  the first import is the one that counts

from protocol.codec import decode, encode
from protocol.codes import CloseCode
from protocol.errors import (
    LocalProtocolError,
    RemoteProtocolError,
)
from protocol.messages import (
    MAX_BLOB,
    MAX_COUNT,
    MAX_ROUND,
    MESSAGE_CLASSES,
    Chunk,
    ComponentRef,
    Fetch,
    Finish,
    Train,
    Update,
    Want,
)
from protocol.session import BlobReceived, Session
from protocol.states import TABLE, Direction, Role
from protocol.tensors import digest_of
from protocol.transfer import Incoming

MOST_MEMORY = 600
"""Megabytes of the fuzzer's process, of which it takes 100 to 200 by itself."""

LONGEST_INPUT = 16_384
CLOSE_CODES = {CloseCode.PROTOCOL_VIOLATION, CloseCode.TEXT, CloseCode.INVALID_DATA, CloseCode.TOO_BIG}
ROLES: tuple[Role, ...] = get_args(Role)

BLOBS = tuple(bytes([place]) * (1 + 37 * place) for place in range(6))
"""What components are made of: few, so that offers, requests and chunks fit together by chance."""
DIGESTS = tuple(map(digest_of, BLOBS))
NAMES = tuple(f"decoder/c{place}" for place in range(len(BLOBS)))
OWNED = NAMES[:4]
CLASSES: dict[str, Any] = {message.model_fields["type"].default: message for message in MESSAGE_CLASSES}
TYPES = tuple(CLASSES)


class Choices:
    """Decisions taken from the bytes of an input, from the front; zeros when they are used up."""

    def __init__(self, data: bytes):
        self._data, self._place = data, 0

    @property
    def over(self) -> bool:
        return self._place >= len(self._data)

    def bytes(self, count: int) -> bytes:
        """So many bytes, or what is left."""
        taken = self._data[self._place : self._place + count]
        self._place += count
        return taken

    def below(self, limit: int) -> int:
        """0 to ``limit`` - 1, at most 255."""
        return int.from_bytes(self.bytes(1), "big") % limit

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]

    def number(self) -> int:
        """A number that is often at an edge."""
        edges = (0, 1, 2, 3, 37, MAX_ROUND, MAX_COUNT, MAX_BLOB, 2**63, 2**64 - 1)
        place = self.below(16)
        return edges[place] if place < len(edges) else int.from_bytes(self.bytes(place - len(edges) + 1), "big")


def test_one_input(data: bytes) -> None:
    """What the fuzzer calls."""
    choices = Choices(data)
    match choices.below(4):
        case 0:
            check_decode(data[1:])
        case 1:
            check_decode(msgpack.packb(almost_a_message(choices)))
        case 2 | 3 as which:
            Course(ROLES[which - 2], choices).run()


test_one_input.__test__ = False  # type: ignore[attr-defined]  # it is no test of pytest's


def check_decode(data: bytes) -> None:
    """Whatever it is, it is a message or a RemoteProtocolError; a message is equal to itself after another trip."""
    try:
        message = decode(data)
    except RemoteProtocolError as error:
        check_error(error)
        return
    assert decode(encode(message)) == message, "a message changes when it is encoded again"


def check_error(error: RemoteProtocolError) -> None:
    text = str(error)
    assert len(text) <= 300 and text.isprintable(), f"an error that is no short printable line: {text!r}"
    assert error.close_code in CLOSE_CODES, f"a close code that is none: {error.close_code}"


# what a peer may send


def almost_a_message(choices: Choices) -> Any:
    """The values of a valid message, with some of them replaced, added or left out."""
    values = valid_message(choices).model_dump()
    for _ in range(choices.below(4)):
        key = choices.one_of([*values, "type", "extra", 0])
        match choices.below(4):
            case 0:
                values.pop(key, None)
            case 1 if isinstance(values.get(key), (list, tuple, dict)):
                values[key] = [values[key]] * choices.below(3)
            case _:
                values[key] = odd_value(choices, 3)
    return values


def odd_value(choices: Choices, depth: int) -> Any:
    """A value that msgpack can carry and most fields cannot."""
    match choices.below(12):
        case 0:
            return choices.number()
        case 1:
            return -choices.number() // 2
        case 2:
            return choices.one_of((float("nan"), float("inf"), -0.0, 1e308, 0.5))
        case 3:
            return choices.one_of((None, True, False, "", b""))
        case 4:
            return choices.bytes(choices.below(64))
        case 5:
            return choices.bytes(choices.below(64)).decode("utf-8", "replace")
        case 6:
            return choices.bytes(choices.below(64)).decode("latin-1") * choices.one_of((1, 20, 500))
        case 7:
            return choices.one_of((*DIGESTS, *NAMES, "hello", "train", "chunk"))
        case 8 if depth:
            return [odd_value(choices, depth - 1) for _ in range(choices.below(5))]
        case 9 if depth:
            return {str(odd_value(choices, 0))[:80]: odd_value(choices, depth - 1) for _ in range(choices.below(5))}
        case 10:
            return [choices.below(256)] * choices.one_of((10, 3000))
        case _:
            return msgpack.ExtType(choices.below(128), choices.bytes(choices.below(16)))


def valid_message(choices: Choices, types: Sequence[str] = TYPES) -> Any:
    """A message of one of the types, of few names and blobs."""
    number = choices.below(8) % 5 % 2
    places = sorted({choices.below(32) % choices.one_of((2, 2, 2, 4, 6)) for _ in range(choices.below(5))})
    refs = tuple(
        ComponentRef(name=NAMES[place], version=number, digest=DIGESTS[place], size=len(BLOBS[place]))
        for place in places
    )
    place = places[0] if places else 0
    blob = BLOBS[place]
    offset = choices.below(len(blob)) if choices.below(2) else 0
    text = choices.bytes(choices.below(20)).decode("utf-8", "replace")
    values = {
        "device": "d",
        "federation": "f",
        "tasks": {"t": 1 + number},
        "foundation": "0" * 64,
        "schema_version": 1,
        "session": "s",
        "settings": text,
        "owned": OWNED[: 2 + 2 * number],
        "code": "no",
        "why": text,
        "fix": text,
        "round": number,
        "deadline": float(number),
        "components": refs,
        "home": tuple(ref.name for ref in refs[: choices.below(3)]),
        "digests": tuple(DIGESTS[place] for place in places or [0]),
        "offsets": (offset, *[0] * (len(places) - 1)),
        "digest": DIGESTS[place],
        "offset": offset,
        "data": blob[offset : offset + 1 + choices.below(len(blob))],
        "examples": {ref.name: 1 + number for ref in refs},
        "phase": text,
        "step": choices.below(256),
        "steps": number,
    }
    message = CLASSES[choices.one_of(types)]
    return message(**{field: values[field] for field in message.model_fields if field != "type"})


class Course:
    """A session and what happens to it."""

    def __init__(self, role: Role, choices: Choices):
        self.role, self.choices = role, choices
        self.partial: dict[str, Incoming] = {}
        self.arrived = 0
        self.offered: dict[str, int] = {}
        self.demanded: list[tuple[str, int]] = []
        self.connect()

    def connect(self) -> None:
        self.session = Session(self.role, partial=self.partial, chunk_size=1 + self.choices.below(64))

    def run(self) -> None:
        for _ in range(200):
            if self.choices.over:
                return
            self.step()
            kept = sum(incoming.offset for incoming in self.partial.values())
            assert kept <= self.arrived, f"{kept} bytes are kept and {self.arrived} have arrived"

    def step(self) -> None:
        if self.session.state == "closed" and self.choices.below(4):
            self.connect()
        match self.choices.below(32):
            case 0:
                self.hear(self.choices.bytes(self.choices.below(200)))
            case 1:
                self.hear(msgpack.packb(almost_a_message(self.choices)))
            case 2:
                self.hear(self.mutated(encode(valid_message(self.choices))))
            case 3:
                self.session.connection_lost()
                self.connect()
            case place if place < 16:
                self.act()
            case place if place < 20:
                self.continue_transfer()
            case 20:
                self.hear(encode(valid_message(self.choices)))
            case _ if (name := self.choices.one_of(self.allowed("receive"))) != "chunk":
                self.hear(encode(valid_message(self.choices, (name,))))
            case _:
                self.continue_transfer()

    def allowed(self, direction: Direction) -> tuple[str, ...]:
        """The messages that may be sent, or received, in this state; seldom those that end it. All if there is none."""
        table = TABLE[self.role][self.session.state]
        types = tuple(message for way, message in table if way == direction)
        lasting = tuple(message for message in types if message not in ("bye", "refuse"))
        return (types if self.choices.below(8) == 0 else lasting) or TYPES

    def continue_transfer(self) -> None:
        """The peer sends the next piece of a blob that is on its way, or of one that is not asked for any more."""
        if self.partial:
            incoming = self.choices.one_of(list(self.partial.values()))
            blob = BLOBS[DIGESTS.index(incoming.digest)] if incoming.digest in DIGESTS else bytes(incoming.size % 999)
            data = blob[incoming.offset : incoming.offset + 1 + self.choices.below(256)]
            self.hear(encode(Chunk(digest=incoming.digest, offset=incoming.offset, data=data or b"?")))

    def mutated(self, data: bytes) -> bytes:
        place, changed = self.choices.below(256) % len(data), bytearray(data)
        match self.choices.below(3):
            case 0:
                changed[place] ^= 1 << self.choices.below(8)
            case 1:
                del changed[place:]
            case _:
                changed[place:place] = self.choices.bytes(4)
        return bytes(changed)

    def hear(self, data: bytes) -> None:
        """The peer sends this."""
        self.arrived += len(data)
        try:
            events = self.session.receive(data)
        except RemoteProtocolError as error:
            check_error(error)
            assert self.session.state == "closed", f"{self.session.state} after a protocol error"
            return
        assert len(events) <= 1
        for event in events:
            match event:
                case BlobReceived(digest, blob):
                    assert digest_of(blob) == digest, "a blob that is not what its name says"
                case Train(components=refs) | Finish(components=refs) | Update(components=refs):
                    self.offered = {ref.digest: ref.size for ref in refs}
                case Fetch(digests=digests, offsets=offsets):
                    self.demanded += zip(digests, offsets, strict=True)
                case Want(digest=digest, offset=offset):
                    self.demanded.append((digest, offset))

    def act(self) -> None:
        """The session's caller does something, right or wrong; it may hear of its own mistakes only."""
        try:
            match self.choices.below(8):
                case place if place < 4:
                    self.session.send(valid_message(self.choices, self.allowed("send")))
                case 4 | 5 if self.offered:
                    self.ask()
                case 6 if self.demanded:
                    digest, offset = self.demanded.pop(0)
                    blob = BLOBS[DIGESTS.index(digest)] if digest in DIGESTS else b"?"
                    for _ in zip(
                        range(self.choices.below(8)), self.session.send_blob(digest, blob, offset), strict=False
                    ):
                        pass
                case _:
                    digest = self.choices.one_of(DIGESTS)
                    self.session.expect(digest, self.choices.number())
        except LocalProtocolError:
            return

    def ask(self) -> None:
        digest = self.choices.one_of(sorted(self.offered))
        offset = self.session.expect(digest, self.offered[digest])
        request = (
            Fetch(digests=(digest,), offsets=(offset,)) if self.role == "device" else Want(digest=digest, offset=offset)
        )
        self.session.send(request)


def seeds() -> list[bytes]:
    """Inputs to begin with: a valid message of every type, some of its likes, and courses of a whole round."""
    found = []
    for place, name in enumerate(TYPES):
        message = encode(valid_message(Choices(bytes([0, 3, 0, 2, 1, 2, 2, 2, 1, 5])), (name,)))
        found += [b"\0" + message, bytes([1, 0, 2, 0, 1, 1, 2, 0, 3, place, *range(40)])]
    for role in (2, 3):
        found += [bytes([role]) + bytes((7 * place + start) % 256 for place in range(400)) for start in range(16)]
    return found


def fuzz(seconds: int, corpus: Path, seed: int) -> None:
    """Fuzz; ends the process. The exit code is not 0 after a crash."""
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds():
        (corpus / digest_of(data)[:40]).write_bytes(data)
    options = {
        "max_total_time": seconds,
        "max_len": LONGEST_INPUT,
        "rss_limit_mb": MOST_MEMORY,
        "timeout": 10,
        "print_final_stats": 1,
        "seed": seed,
    }
    atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)], test_one_input)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the codec and the session of both roles.")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 2**31, help="[default: another each time]")
    parser.add_argument("--corpus", type=Path, help="inputs to go on with, and where new ones are kept")
    parser.add_argument("--replay", type=Path, help="run this input alone")
    given = parser.parse_args()
    if given.replay:
        test_one_input(given.replay.read_bytes())
        print("no crash")
        return 0
    if atheris is None:
        print("error: atheris is not installed; it needs Python 3.11 or newer: pip install 'tap-edge[fuzz]'")
        return 2
    fuzz(given.seconds, given.corpus or Path(tempfile.mkdtemp(prefix="fuzz-")), given.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
