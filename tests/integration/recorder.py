"""A TCP proxy that keeps every byte, and a reader that turns the bytes back into the wire's messages."""

import socket
import struct
import threading
from dataclasses import dataclass, field

from protocol.codec import decode
from protocol.messages import Chunk, Message


@dataclass
class Connection:
    """What passed over one connection, each way, from the first byte of the handshake on."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


class Recorder:
    """Listens on a port, passes everything to another port, and records it."""

    def __init__(self, port: int, upstream: int) -> None:
        self.connections: list[Connection] = []
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            try:
                service = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                device.close()
                continue
            record = Connection()
            self.connections.append(record)
            threading.Thread(target=_pump, args=(device, service, record.sent), daemon=True).start()
            threading.Thread(target=_pump, args=(service, device, record.received), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    try:
        while data := source.recv(1 << 16):
            record += data
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()


def payloads(stream: bytes) -> list[bytes]:
    """The payloads of the binary WebSocket messages after the HTTP handshake, unmasked (RFC 6455, section 5.2)."""
    at = stream.index(b"\r\n\r\n") + 4
    found: list[bytes] = []
    while at < len(stream):
        first, second = stream[at], stream[at + 1]
        opcode, final, masked, length = first & 15, first >> 7, second >> 7, second & 127
        at += 2
        if length > 125:
            size = 2 if length == 126 else 8
            (length,) = struct.unpack(">H" if size == 2 else ">Q", stream[at : at + size])
            at += size
        mask = stream[at : at + 4] if masked else b""
        at += len(mask)
        data = bytearray(stream[at : at + length])
        if masked:
            for index in range(length):
                data[index] ^= mask[index % 4]
        at += length
        if opcode == 2:
            found.append(bytes(data))
        elif opcode == 0:
            found[-1] += bytes(data)
        assert opcode in (0, 2, 8, 9, 10) and (final or opcode in (0, 2))
    return found


def messages(stream: bytes) -> list[Message]:
    return [decode(payload) for payload in payloads(stream)]


def blobs(found: list[Message]) -> dict[str, bytes]:
    """The transfers among the messages, put together from their chunks, by digest."""
    parts: dict[str, dict[int, bytes]] = {}
    for message in found:
        if isinstance(message, Chunk):
            parts.setdefault(message.digest, {})[message.offset] = bytes(message.data)
    return {digest: b"".join(data for _, data in sorted(chunks.items())) for digest, chunks in parts.items()}
