"""A token or a code is shown once, to whom it is made for. It is nowhere else: no log, no row, no page, no error."""

import asyncio
import contextlib
import http.client
import json
import urllib.error
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from coordinator.identity import new_token, token_digest
from protocol.messages import SUBPROTOCOL


def test_no_secret_is_in_any_log_file_page_or_message(federation, served, command):
    directory, _ = federation()
    service = served(directory, "--log-level", "debug")
    local = service.addresses["http_token"]
    secrets, said = [local], []

    def made(*arguments):
        secrets.append(command(*arguments).stdout.strip())
        return secrets[-1]

    def exchange(page, secret, new):
        connection = http.client.HTTPConnection("127.0.0.1", service.addresses["port"], timeout=10)
        headers = {"Authorization": f"Bearer {secret}", "Tap-Token-Sha256": token_digest(new)}
        connection.request("GET", page, headers=headers)
        reply = connection.getresponse()
        said.append(reply.read().decode())
        connection.close()
        return reply.status

    def ask(page, token, body=None):
        try:
            data = None if body is None else json.dumps(body).encode()
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            address = f"http://127.0.0.1:{service.addresses['http_port']}{page}"
            with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=10) as reply:
                said.append(reply.read().decode())
        except urllib.error.HTTPError as error:
            said.append(error.read().decode())

    async def knock(token):
        headers = {"Authorization": f"Bearer {token}"}
        with contextlib.suppress(InvalidStatus):
            async with connect(service.url, additional_headers=headers, subprotocols=[SUBPROTOCOL]) as socket:
                await socket.send(b"\xc1 no message")
                await socket.wait_closed()

    token = made("enroll", "one", directory)
    code = made("enroll", "two", directory, "--code", "--expires", "1d")
    reader = made("operator", "add", "reader", directory, "--role", "read")
    writer = made("operator", "add", "writer", directory, "--role", "write")
    own, rotated, wrong = new_token(), new_token(), new_token()
    secrets += [own, rotated, wrong]
    statuses = [exchange("/enroll", code, own), exchange("/enroll", code, wrong), exchange("/rotate", own, rotated)]
    assert [*statuses, exchange("/rotate", own, rotated), exchange("/enroll", wrong, own)] == [200, 409, 200, 401, 401]
    for secret in (token, rotated, wrong, code, f"{token}%0a"):
        asyncio.run(knock(secret))
    for page in ("/status", "/metrics", "/devices", "/rounds", "/audit", "/openapi.json", "/nothing"):
        for secret in (local, reader, writer, wrong, token):
            ask(page, secret)
    for secret in (writer, reader, wrong):
        ask("/pause", secret, {"why": "a test"})
        ask("/devices/one/revoke", secret, {})
    ask("/pause", writer, {"wrong": writer})
    renewed = made("enroll", "one", directory, "--renew")
    assert renewed != token
    said += [command("enroll", "one", directory, check=False).stderr]
    said += [command("operator", "add", "reader", directory, "--role", "read", check=False).stderr]
    said += [command("operator", "revoke", "reader", directory).stdout]
    lists = (("devices",), ("audit",), ("operator", "list"), ("status",), ("rounds",))
    said += [command(*name, directory, *more).stdout for name in lists for more in ([], ["--json"])]
    assert json.loads(command("audit", directory, "--last", 1, "--json").stdout)[0]["act"] == "operator revoke"
    files = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert len(secrets) == len(set(secrets)) >= 9 and service.log in files
    for secret in secrets:
        assert not [text for text in said if secret in text]
        holders = [path.name for path, data in files.items() if secret.encode() in data]
        assert holders == (["serving.json"] if secret == local else []), secret[:8]
    log = service.log.read_text()
    assert "unauthorized" in log and "token issued" in log and "Traceback" not in log
