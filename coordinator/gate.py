"""How many connections there may be: counted where sockets are accepted, before anything is read from them.

A connection that has shown no valid token is *unadmitted*. Those are few, in all and for one address; when there is no
room the oldest of them is shut down, so that an honest handshake, which takes milliseconds, gets through while idle
connections age out. An admitted one counts against the total alone: all devices may come from one address, their
proxy's. `Gate` is bookkeeping with `now` as argument; `Door` holds the sockets. Neither knows what a connection says.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

MOST_DESCRIPTORS = 65536
"""Open files that the service asks for at most."""

RESERVED = 128
"""Open files that are kept for blobs, database, logs and connections that are about to be closed."""

HTTP_CONNECTIONS = 64
"""Connections to the operator plane; none of them is admitted for good."""

HANDSHAKE_SECONDS = 10.0
"""How long a connection to the device plane may take until it has shown a valid token."""

ACCEPTED_AT_ONCE = 8
"""Connections taken before those accepted already are served again. A handshake takes several such turns, so a crowd
that comes through one proxy stays below the cap of one address."""

KERNEL_QUEUE = 1024
"""Connections that wait in the kernel meanwhile."""

REPORT_SECONDS = 60.0

log = structlog.get_logger("coordinator.gate")


@dataclass(frozen=True)
class Caps:
    """Most connections in all, unadmitted ones in all, and unadmitted ones from one address."""

    total: int
    unadmitted: int
    per_address: int


def caps_within(total: int) -> Caps:
    """The caps of a plane that may hold ``total`` connections."""
    unadmitted = max(1, min(256, total // 2))
    return Caps(total, unadmitted, max(1, min(64, unadmitted // 2)))


def raise_descriptor_limit(most: int = MOST_DESCRIPTORS) -> int:
    """Let this process open as many files as its hard limit allows, ``most`` at most; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    wanted = most if hard == infinite else min(most, hard)
    if soft != infinite and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then the limit stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == infinite else soft


def room_for_connections(descriptors: int) -> tuple[int, int]:
    """Connections that the device plane and the operator plane may hold with so many open files."""
    http = max(4, min(HTTP_CONNECTIONS, descriptors // 8))
    return max(8, descriptors // 4, descriptors - RESERVED - http), http


def network_of(address: str) -> str:
    """Whom an address belongs to: itself, or the /64 of an IPv6 address, of which one machine has many."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.ip_network((known, 64), strict=False))
    return str(known)


class Gate:
    """Which connections are open, and which of them must go. A key names a connection while it is open."""

    def __init__(self, caps: Caps, patience: float = HANDSHAKE_SECONDS):
        """``patience``: seconds that a connection may stay unadmitted."""
        self.caps, self._patience = caps, patience
        self._unadmitted: dict[int, tuple[str, float]] = {}  # key -> network, since when; the oldest first
        self._admitted: set[int] = set()

    def __len__(self) -> int:
        return len(self._unadmitted) + len(self._admitted)

    def enter(self, key: int, address: str, now: float) -> int | None:
        """Count a new connection; returns one to shut down to make room, which may be ``key`` itself, or None."""
        network = network_of(address)
        self._unadmitted[key] = (network, now)
        same = [other for other, (known, _) in self._unadmitted.items() if known == network]
        victim = None
        if len(same) > self.caps.per_address:
            victim = same[0]
        elif len(self._unadmitted) > self.caps.unadmitted or len(self) > self.caps.total:
            victim = next(iter(self._unadmitted))
        if victim is not None:
            del self._unadmitted[victim]
        return victim

    def admit(self, key: int) -> None:
        """The connection has shown a valid token. One that has left meanwhile is not counted again."""
        if self._unadmitted.pop(key, None) is not None:
            self._admitted.add(key)

    def leave(self, key: int) -> None:
        """The connection is closed."""
        self._unadmitted.pop(key, None)
        self._admitted.discard(key)

    def oldest(self) -> int | None:
        """The unadmitted connection that has been open the longest, taken off the books; None if there is none."""
        key = next(iter(self._unadmitted), None)
        if key is not None:
            del self._unadmitted[key]
        return key

    def overdue(self, now: float) -> list[int]:
        """The connections that stayed unadmitted for too long, taken off the books: shut them down."""
        late = [key for key, (_, since) in self._unadmitted.items() if now - since >= self._patience]
        for key in late:
            del self._unadmitted[key]
        return late


class Door:
    """Listening sockets that tell a gate of every connection they accept, and close those it turns out."""

    def __init__(
        self,
        gate: Gate,
        turned_out: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """``turned_out`` is called for each connection that had to go."""
        self.gate, self._turned_out, self._clock = gate, turned_out, clock
        self._open: dict[int, _Accepted] = {}
        self._spare = os.open(os.devnull, os.O_RDONLY)  # given up for a moment to turn a connection away
        self._unreported, self._reported = 0, -REPORT_SECONDS
        self._sweeping: asyncio.TimerHandle | None = None

    def listen(self, host: str, port: int) -> list[socket.socket]:
        """Sockets that listen on every address of ``host``, all on one port; 0 picks it. Raises OSError."""
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listeners: list[_Listener] = []
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                listener = _Listener(family, kind, protocol)
                listeners.append(listener)
                listener.door = self
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address[0], listeners[0].getsockname()[1] or port, *address[2:]))
                listener.setblocking(False)
        except OSError:
            for listener in listeners:
                listener.close()
            raise
        self._sweep()
        return list(listeners)

    def admit(self, connection: Any) -> None:
        """``connection``: the socket of one that has shown a valid token."""
        self.gate.admit(connection.fileno())

    def close(self) -> None:
        """Stop looking for connections that take too long; the sockets are closed by whoever serves them."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _sweep(self) -> None:
        for key in self.gate.overdue(self._clock()):
            self._shut(key)
        self._sweeping = asyncio.get_running_loop().call_later(1.0, self._sweep)

    def take(self, listener: "_Listener") -> tuple[socket.socket, Any]:
        """Accept a connection. Raises ConnectionAbortedError if it was turned away at once, as accept() may."""
        try:
            plain, address = socket.socket.accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._turn_away(listener)
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many open files") from None
        connection = _Accepted(plain.family, plain.type, plain.proto, fileno=plain.detach())
        connection.door = self
        key = connection.fileno()
        victim = self.gate.enter(key, str(address[0]) if address else "", self._clock())
        if victim == key:
            connection.close()
            self._report()
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many connections")
        self._open[key] = connection
        if victim is not None:
            self._shut(victim)
        return connection, address

    def _turn_away(self, listener: "_Listener") -> None:
        """No descriptor is left: close the connection that waits, or the event loop would be told of it for ever."""
        if (key := self.gate.oldest()) is not None:
            self._shut(key)
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with contextlib.suppress(OSError):
            socket.socket.accept(listener)[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)
        self._report()

    def _shut(self, key: int) -> None:
        """End a connection from below: its owner finds it closed by the other side, and closes it."""
        connection = self._open.pop(key, None)
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            self._report()

    def closed(self, key: int) -> None:
        self._open.pop(key, None)
        self.gate.leave(key)

    def _report(self) -> None:
        self._turned_out()
        self._unreported += 1
        now = self._clock()
        if now - self._reported >= REPORT_SECONDS:
            log.warning("connections without a token turned out", count=self._unreported, open=len(self.gate))
            self._unreported, self._reported = 0, now


class _Listener(socket.socket):
    door: Door

    def listen(self, backlog: int = KERNEL_QUEUE) -> None:
        """The event loop takes its ``backlog`` also for how many connections it accepts before it does other work;
        the kernel may hold more."""
        super().listen(max(backlog, KERNEL_QUEUE))

    def accept(self) -> tuple[socket.socket, Any]:
        return self.door.take(self)


class _Accepted(socket.socket):
    door: Door

    def close(self) -> None:
        key = self.fileno()
        super().close()
        if key >= 0:
            self.door.closed(key)
