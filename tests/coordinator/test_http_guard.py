"""What holds for every request to the HTTP plane: Host, token and role, size, headers, and errors of one line."""

import asyncio
import json
import secrets

import pytest

from coordinator.database import connect
from coordinator.http_guard import MOST_BYTES, Guard, host_name
from coordinator.identity import token_digest
from coordinator.limits import Failures
from coordinator.operator_access import OperatorAccess
from coordinator.operator_registry import OperatorRegistry
from coordinator.schema import metadata

READ, WRITE, OLD = "tapop_read", "tapop_write", "tapop_old"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:8711", "localhost"),
        ("127.0.0.1:8711", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::1]:8711", "::1"),
        ("[0:0:0:0:0:0:0:1]:8711", "::1"),
        ("[2001:DB8::7]:1", "2001:db8::7"),
        ("tap.example.:80", "tap.example."),
        *[
            (bad, "")
            for bad in ("", ":80", "[::1", "[::1]x", "[::1]:x", "[localhost]", "::1", "a:b", "a:123456", "a:٣")
        ],
    ],
)
def test_the_name_of_a_host_header(header, name):
    assert host_name(header) == name


class Page:
    """An application that tells what reached it."""

    def __init__(self, error=None):
        self.seen, self.error = [], error

    async def __call__(self, scope, receive, send):
        message = await receive()
        self.seen.append((scope["path"], scope.get("state", {}).get("actor"), message["body"]))
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Client:
    directory = None

    def __init__(self, page=None, hosts=(), looks=None, **options):
        self.page = page or Page()
        engine = connect(f"sqlite:///{self.directory / secrets.token_hex(4)}")
        self.registry = OperatorRegistry(engine, "f")
        for name, token, role in (("reader", READ, "read"), ("writer", WRITE, "write")):
            self.registry.add(name, token_digest(token), role, 1.0, actor="test")
        self.registry.add("old", token_digest(OLD), "write", 1.0, expires_at=2.0, actor="test")
        if looks is not None:
            every = self.registry.all
            self.registry.all = lambda: looks.append(1) or every()
        self.guard = Guard(self.page, OperatorAccess(self.registry, token_digest("tapop_local"), **options), hosts)

    async def ask(self, method="GET", path="/status", token=READ, host="localhost", body=(b"",), headers=()):
        sent, parts = [], list(body)

        async def receive():
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message):
            sent.append(message)

        headers = list(headers) + ([] if host is None else [(b"host", host.encode())])
        headers += [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        await self.guard(
            {"type": "http", "method": method, "path": path, "headers": headers, "client": ("192.0.2.1", 5)},
            receive,
            send,
        )
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent[1:]).decode()


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch):
    monkeypatch.setattr(Client, "directory", tmp_path)


def ask(*, client=None, **request):
    return asyncio.run((client or Client()).ask(**request))


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.0.0.1:8711", "[::1]:8711", "10.0.0.5", "tap.example:443"]
)
def test_a_host_that_this_service_answers_to(host):
    assert ask(client=Client(hosts=["10.0.0.5", "tap.example"]), host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "[::2]:8711", "127.0.0.2", "", None, "@localhost"]
)
@pytest.mark.parametrize("path", ["/status", "/healthz"])
def test_any_other_host_is_refused_before_anything_else(host, path):
    """A page on the web whose name was bound to this address has that name in its requests, and no way around it."""
    client = Client()
    status, _, body = ask(client=client, host=host, path=path)
    assert status == 421 and "--http-allowed-host" in json.loads(body)["detail"] and client.page.seen == []


def test_two_host_headers_are_none():
    assert ask(headers=[(b"host", b"localhost")])[0] == 421


def test_an_ipv6_address_to_listen_on_is_a_name_of_the_service():
    client = Client(hosts=["2001:db8:0::7", "::"])
    assert ask(client=client, host="[2001:db8::7]:8711")[0] == 200


@pytest.mark.parametrize(
    ("token", "method", "status"),
    [
        (READ, "GET", 200),
        (WRITE, "GET", 200),
        (WRITE, "POST", 200),
        (READ, "POST", 403),
        (READ, "DELETE", 403),
        ("tapop_local", "GET", 200),
        ("tapop_local", "POST", 403),
        (OLD, "GET", 401),
        ("tapop_wrong", "GET", 401),
        ("", "GET", 401),
        (None, "GET", 401),
        (None, "POST", 401),
    ],
)
def test_what_a_token_may_do(token, method, status):
    client = Client()
    got, headers, body = ask(client=client, token=token, method=method)
    assert got == status and len(client.page.seen) == (status == 200)
    assert (headers.get(b"www-authenticate") == b"Bearer") == (status == 401)
    if status != 200:
        assert json.loads(body).keys() == {"detail"} and "\n" not in json.loads(body)["detail"]


def test_who_acts_is_told_to_the_page():
    client = Client()
    ask(client=client, token=WRITE, method="POST")
    assert client.page.seen[0][1] == "operator writer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_two_pages_are_for_anybody(path):
    assert ask(path=path, token=None)[0] == 200
    assert ask(path=f"{path}/", token=None)[0] == 401


def test_a_doubled_token_is_none():
    assert ask(headers=[(b"authorization", f"Bearer {READ}".encode())])[0] == 401


@pytest.mark.parametrize("status", [200, 401, 403, 413, 421, 500])
def test_every_answer_says_that_it_is_not_to_be_kept(status):
    requests = {
        200: {},
        401: {"token": None},
        403: {"method": "POST"},
        413: {"body": (b"x" * MOST_BYTES, b"x")},
        421: {"host": "x"},
        500: {"client": Client(Page(ValueError("secret\ndetails")))},
    }
    got, headers, body = ask(**requests[status])
    assert (
        got == status and headers[b"cache-control"] == b"no-store" and headers[b"x-content-type-options"] == b"nosniff"
    )
    assert "secret" not in body and "Traceback" not in body


def test_a_body_is_bounded_and_reaches_the_page_whole():
    client = Client()
    assert ask(client=client, token=WRITE, method="POST", body=(b"a" * (MOST_BYTES - 1), b"b"))[0] == 200
    assert client.page.seen[0][2] == b"a" * (MOST_BYTES - 1) + b"b"


def test_a_body_that_never_ends_is_refused_at_the_limit():
    class Endless(list):
        taken = 0

        def pop(self, _):
            self.taken += 1
            return b"x" * 1024

    async def main():
        client, parts = Client(), Endless([b""])
        sent = []

        async def receive():
            return {"type": "http.request", "body": parts.pop(0), "more_body": True}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {WRITE}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/pause", "headers": headers, "client": ("192.0.2.1", 5)}
        await client.guard(scope, receive, send)
        assert sent[0]["status"] == 413 and parts.taken == 65

    asyncio.run(main())


def test_a_flood_of_wrong_tokens_costs_no_look_into_the_database_each_and_keeps_nobody_with_a_valid_one_out():
    looks = []

    async def main():
        client = Client(looks=looks, failures=Failures(a_minute=5))
        answers = await asyncio.gather(*(client.ask(token=f"tapop_{number}") for number in range(500)))
        assert len(looks) <= 3
        statuses = [status for status, _, _ in answers]
        assert statuses.count(401) == 5 and statuses.count(429) == 495
        waits = {int(headers[b"retry-after"]) for status, headers, _ in answers if status == 429}
        assert waits and all(0 < wait <= 60 for wait in waits)
        assert (await client.ask(token=READ))[0] == 200 and (await client.ask(token=None))[0] == 401

    asyncio.run(main())


def test_a_new_operator_is_let_in_at_once_and_a_revoked_one_is_out_within_a_look():
    async def main():
        client = Client()
        assert (await client.ask())[0] == 200
        client.registry.add("new", token_digest("tapop_new"), "read", 1.0, actor="test")
        assert (await client.ask(token="tapop_new"))[0] == 200
        client.registry.revoke("new", 2.0, actor="test")
        await asyncio.sleep(0.3)
        assert (await client.ask(token="tapop_new"))[0] == 401

    asyncio.run(main())


def test_a_database_that_does_not_answer_is_503_for_those_with_a_token():
    async def main():
        client = Client()
        metadata.drop_all(client.registry._engine)
        status, headers, body = await client.ask()
        assert (status, headers[b"retry-after"]) == (503, b"1") and "the database does not answer" in body
        assert (await client.ask(token=None))[0] == 401

    asyncio.run(main())
