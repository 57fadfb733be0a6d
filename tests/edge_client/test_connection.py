import asyncio
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.server import serve

from edge_client import connection
from edge_client.connection import Traffic, open_connection
from edge_client.greeting import parse_settings
from edge_client.outages import Disconnected
from edge_client.token_file import read_token
from protocol.codec import encode
from protocol.messages import (
    CHUNK,
    MAX_MESSAGE,
    SUBPROTOCOL,
    Accepted,
    ComponentRef,
    Hello,
    Train,
    Update,
    Want,
    Welcome,
)
from protocol.session import Session
from protocol.tensors import digest_of
from tap_core.errors import TapError, UsageError

HELLO = Hello(device="kitchen", federation="demo", tasks={"topic": 1}, foundation="f" * 64, schema_version=1)


def converse(handler, talk, **options):
    """Run ``talk(connection, traffic)`` against a server; returns what it returns and the server's close code."""

    async def main():
        codes: list[int | None] = []

        async def handle(socket):
            await handler(socket)
            await socket.wait_closed()
            codes.append(socket.close_code)

        options.setdefault("subprotocols", [SUBPROTOCOL])
        traffic = Traffic()
        async with serve(handle, "127.0.0.1", 0, compression=None, **options) as server:
            address = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            async with open_connection(
                address, "secret", token_file=Path("token"), partial={}, traffic=traffic
            ) as opened:
                result = await talk(opened, traffic)
        await asyncio.sleep(0)
        return result, codes

    return asyncio.run(main())


def test_the_token_goes_in_the_handshake_and_bytes_are_counted():
    seen = {}
    welcome = encode(Welcome(session="s", settings="{}", owned=()))

    async def handler(socket):
        seen["token"] = socket.request.headers["Authorization"]
        seen["extensions"] = socket.request.headers.get("Sec-WebSocket-Extensions")
        seen["hello"] = await socket.recv()
        await socket.send(welcome)

    async def talk(opened, traffic):
        await opened.send(HELLO)
        events = await opened.receive()
        return events, (traffic.sent, traffic.received)

    (events, counted), _ = converse(handler, talk)
    assert seen == {"token": "Bearer secret", "extensions": None, "hello": encode(HELLO)}
    assert events[0].type == "welcome" and counted == (len(encode(HELLO)), len(welcome))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xc1 no message", 1007),
        (encode(Train(round=0, deadline=1.0, components=())), 1002),
        ("a text message", 1003),
    ],
)
def test_a_coordinator_that_breaks_the_protocol_is_left_with_the_right_code(message, code):
    async def handler(socket):
        await socket.recv()
        await socket.send(message)

    async def talk(opened, traffic):
        await opened.send(HELLO)
        with pytest.raises(Disconnected, match="the coordinator broke the protocol") as caught:
            await opened.receive()
        return caught.value

    error, codes = converse(handler, talk)
    assert error.reached and codes == [code]


def test_a_message_that_is_too_big_is_not_taken():
    async def handler(socket):
        await socket.send(b"x" * (MAX_MESSAGE + 1))

    async def talk(opened, traffic):
        with pytest.raises(Disconnected):
            await opened.receive()
        return traffic.received

    received, codes = converse(handler, talk)
    assert received == 0 and codes == [1009]


@pytest.mark.parametrize(("code", "farewell"), [(1000, True), (1001, False), (1011, False)])
def test_how_the_coordinator_closed_is_told(code, farewell):
    async def handler(socket):
        await socket.close(code, "why")

    async def talk(opened, traffic):
        with pytest.raises(Disconnected, match=f"connection closed \\({code} why\\)") as caught:
            await opened.receive()
        return caught.value

    error, _ = converse(handler, talk)
    assert error.reached and error.farewell is farewell


def test_another_protocol_is_no_reason_to_wait():
    async def nothing(socket):
        """Say nothing."""

    async def talk(opened, traffic):
        raise AssertionError("the connection must not open")

    with pytest.raises(TapError, match=r"does not speak tap\.v1; use the same version"):
        converse(nothing, talk, subprotocols=["tap.v9"], select_subprotocol=lambda *_: None)


def answering(reply: bytes):
    """Connect to a server that answers every request with ``reply``."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            async with open_connection(address, "t", token_file=Path("token"), partial={}, traffic=Traffic()):
                pass
        finally:
            server.close()

    asyncio.run(main())


@pytest.mark.parametrize("reply", [b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"", b"SSH-2.0-x\r\n"])
def test_what_may_pass_is_waited_for(reply):
    with pytest.raises(Disconnected) as caught:
        answering(reply)
    assert not caught.value.reached and "\n" not in caught.value.reason


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "have the operator run 'tap-coordinator enroll'"), (404, "is no device port"), (200, "is no device port")],
)
def test_what_will_not_pass_says_what_to_do(status, message):
    with pytest.raises(TapError, match=message):
        answering(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode())


def test_an_untrusted_certificate_is_no_reason_to_wait(monkeypatch):
    async def refuse(*_, **__):
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_message = "self-signed certificate"
        raise error

    monkeypatch.setattr(connection, "connect", refuse)
    with pytest.raises(TapError, match=r"certificate of ws://.* is not trusted \(self-signed certificate\)"):
        answering(b"")


def test_no_name_or_no_answer_is_said_in_words(monkeypatch):
    def reason(address: str) -> str:
        async def main():
            async with open_connection(address, "t", token_file=Path("token"), partial={}, traffic=Traffic()):
                pass

        with pytest.raises(Disconnected) as caught:
            asyncio.run(main())
        return caught.value.reason

    assert "refused" in reason("ws://127.0.0.1:9").lower() or "connect" in reason("ws://127.0.0.1:9").lower()

    async def slow(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(connection, "connect", slow)
    assert reason("ws://127.0.0.1:9") == "no answer within 20 s"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two words", b"\xff\xfe", b"one\ntwo", "schlüssel".encode()])
def test_a_token_file_without_a_token(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="tap-coordinator enroll printed"):
        read_token(path)
    path.write_text("  abc-DEF_123\n")
    assert read_token(path) == "abc-DEF_123"


def test_a_long_upload_keeps_nothing_from_being_received():
    """The coordinator takes no byte of the first blob until the device has heard that it wants the second, too."""
    blobs = {digest_of(data): data for data in (b"x" * (16 * CHUNK), b"y" * CHUNK)}
    named = dict(zip(("decoder/topic", "encoder/text"), blobs, strict=True))
    refs = tuple(ComponentRef(name=n, version=0, digest=d, size=len(blobs[d])) for n, d in named.items())
    heard, taken = asyncio.Event(), {}

    async def handler(socket):
        session = Session("coordinator")

        async def hear():
            while not (events := session.receive(await socket.recv())):
                pass
            return events[0]

        await hear()
        await socket.send(session.send(Welcome(session="s", settings="{}", owned=tuple(named))))
        await socket.send(session.send(Train(round=0, deadline=9.0, components=())))
        await hear()
        for digest, data in blobs.items():
            await socket.send(session.send(Want(digest=digest, offset=session.expect(digest, len(data)))))
        await asyncio.wait_for(heard.wait(), 20)
        for _ in blobs:
            blob = await hear()
            taken[blob.digest] = blob.data
        await socket.send(session.send(Accepted(round=0)))

    async def talk(opened, traffic):
        await opened.send(HELLO)
        wanted = []
        while True:
            for event in await opened.receive():
                if event.type == "train":
                    await opened.send(Update(round=0, examples=dict.fromkeys(named, 1), components=refs))
                elif event.type == "want":
                    wanted.append(event.digest)
                    opened.send_blob(event.digest, blobs[event.digest], event.offset)
                elif event.type == "accepted":
                    return wanted
            if len(wanted) == 2:
                heard.set()

    wanted, _ = converse(handler, talk, max_size=MAX_MESSAGE)
    assert wanted == list(blobs) and taken == blobs


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_settings_that_nest_without_end_are_one_line(text):
    with pytest.raises(TapError, match="are not JSON") as error:
        parse_settings(text)
    assert "\n" not in str(error.value)
