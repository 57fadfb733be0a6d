"""GET /enroll and GET /rotate on the device port, as any HTTP client sees them."""

import asyncio
import http.client
import json
import time

import pytest

from coordinator import credentials, enrolment
from coordinator.identity import new_code, new_token, token_digest

TOKEN = "tap_" + "t" * 43
DIGEST = token_digest(TOKEN)


def get(url, page, **headers):
    """Status, headers and body of one request; a list gives a header more than once."""
    host = url.removeprefix("ws://")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest("GET", page)
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply.status, reply.headers, body


def talk(federation, running, script):
    """Run ``script(service, ask)``, where ``ask(page, secret, digest, **headers)`` makes a request."""
    directory, manifest = federation(total=1, clients_per_round=1, min_devices=1)

    async def main():
        async with running(directory, manifest) as service:

            async def ask(page, secret, digest=DIGEST, **headers):
                headers = {"Authorization": f"Bearer {secret}", "Tap_Token_Sha256": digest, **headers}
                return await asyncio.to_thread(get, service.url, page, **headers)

            await script(service, ask)

    asyncio.run(main())


def invited(service, device="one", **options):
    code = new_code()
    service.store.registry.enroll(device, token_digest(code), time.time(), code_expires_at=time.time() + 60, **options)
    return code


def test_a_code_is_exchanged_and_the_device_can_take_part(federation, enroll, running):
    async def script(service, ask):
        code = invited(service)
        status, headers, body = await ask("/enroll", code)
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert json.loads(body) == {"device": "one", "expires_at": None, "federation": "small"}
        assert (await ask("/enroll", code))[0] == 200
        status, _, body = await ask("/enroll", code, token_digest("another"))
        assert status == 409 and "used already" in body and body.count("\n") == 1
        device = enroll(service.directory, service.manifest, "helper", {"kinds": 10})
        device.name, device.token = "one", TOKEN
        assert (await device.take_part(service.url)).code == "done"

    talk(federation, running, script)


def test_a_token_is_rotated_and_the_open_connection_ends(federation, enroll, running):
    async def script(service, ask):
        device = enroll(service.directory, service.manifest, "one", {"kinds": 10})
        assert (await device.connect(service.url)).type == "welcome"
        assert (await device.hear()).type == "train"
        status, headers, body = await ask("/rotate", device.token)
        assert (status, headers["Cache-Control"], json.loads(body)["device"]) == (200, "no-store", "one")
        assert (await device.hear()).code == "revoked"
        assert (await ask("/rotate", device.token))[0] == 401
        assert (await ask("/rotate", TOKEN))[0] == 200
        device.token = TOKEN
        assert (await device.take_part(service.url)).code == "done"
        assert service.store.attempts()[0].attempt == 0  # the round went on

    talk(federation, running, script)


def test_what_is_no_request_of_a_device_is_refused_in_one_line(federation, running):
    async def script(service, ask):
        code = invited(service)
        cases = [
            (401, ("/enroll", "tapcode_wrong"), {}),
            (401, ("/rotate", "tap_wrong"), {}),
            (401, ("/rotate", code), {}),  # a code is no token
            (401, ("/enroll", ""), {}),
            (401, ("/enroll", code), {"Authorization": [f"Bearer {code}", f"Bearer {code}"]}),
            (401, ("/enroll", code), {"Authorization": f"Basic {code}"}),
            (400, ("/enroll", code, "0" * 63), {}),
            (400, ("/enroll", code, "G" * 64), {}),
            (400, ("/enroll", code), {"Tap_Token_Sha256": ["0" * 64, "1" * 64]}),
            (409, ("/enroll", code), {"Tap_Device": "two"}),
        ]
        for expected, request, headers in cases:
            status, answered, body = await ask(*request, **headers)
            assert status == expected, (request, headers, body)
            assert body.count("\n") == 1 and code not in body and answered["Cache-Control"] == "no-store"
            assert (status == 401) == (answered["WWW-Authenticate"] == "Bearer")
        assert (await ask("/enroll?x=1", code))[0] == 200  # nothing of that has used it up
        token = new_token()
        service.store.registry.enroll("two", token_digest(token), time.time())
        assert (await ask("/enroll", token))[0] == 401  # and a token is no code
        assert (await ask("/rotate", token, DIGEST))[0] == 409  # the other device's

    talk(federation, running, script)


def test_a_flood_of_wrong_codes_costs_no_look_into_the_database_each(federation, running, monkeypatch):
    looks = []
    known = credentials.known
    monkeypatch.setattr(credentials, "known", lambda *where: looks.append(where) or known(*where))

    async def script(service, ask):
        code = invited(service)
        began = time.monotonic()
        desk = service.plane._desk
        authorizations = [f"Bearer tapcode_{number}" for number in range(500)]
        answers = await asyncio.gather(
            *(desk.answer("enroll", value, DIGEST, None, address="192.0.2.1") for value in authorizations)
        )
        seconds = time.monotonic() - began
        assert len(looks) <= 2 + seconds / 0.25
        assert {int(answer.status) for answer in answers} == {401, 429}
        assert [answer.retry_after > 0 for answer in answers] == [answer.status == 429 for answer in answers]
        assert (await ask("/enroll", code))[0] == 200  # a valid one is never made to wait for them
        assert (await desk.answer("enroll", f"Bearer {code}", DIGEST, None, address="192.0.2.1")).status == 200

    talk(federation, running, script)


def test_a_device_cannot_fill_the_audit_log_by_rotating(federation, running):
    async def script(service, ask):
        token = new_token()
        service.store.registry.enroll("one", token_digest(token), time.time())
        for number in range(enrolment.ROTATIONS_AN_HOUR):
            status, _, _ = await ask("/rotate", token, token_digest(f"tap_{number}"))
            assert status == 200
            token = f"tap_{number}"
        status, headers, _ = await ask("/rotate", token, token_digest("tap_more"))
        assert status == 429 and 0 < int(headers["Retry-After"]) <= 360
        assert (await ask("/rotate", token, token_digest(token)))[0] == 200  # nothing to record: a repeated question

    talk(federation, running, script)


def test_a_device_cannot_fill_the_log_by_asking_for_what_it_has(federation, running, monkeypatch, capsys):
    monkeypatch.setattr(enrolment, "REQUESTS_A_SECOND", 0.001)
    most = enrolment.REQUESTS_AT_ONCE

    async def script(service, ask):
        invited(service, "one")
        code = invited(service, "two")
        token = new_token()
        service.store.registry.enroll("three", token_digest(token), time.time())
        assert (await ask("/enroll", code))[0] == 200
        asked = {
            "again": [(await ask("/rotate", token, token_digest(token)))[0] for _ in range(most + 3)],
            "used": [(await ask("/enroll", code, "e" * 64))[0] for _ in range(most + 3)],
        }
        assert asked == {"again": [200] * most + [429] * 3, "used": [409] * (most - 1) + [429] * 4}

    talk(federation, running, script)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "token issued" in line or "refused" in line]) == 2 * most


def test_the_addresses_of_one_network_fail_together(federation, running):
    """One machine has 2^64 addresses of IPv6: a limit for each of them would be none."""

    async def script(service, ask):
        desk = enrolment.EnrolmentDesk(service.store)
        answers = [await desk.answer("enroll", "Bearer x", DIGEST, None, address=f"2001:db8::{n:x}") for n in range(31)]
        assert [answer.status for answer in answers] == [401] * 30 + [429]

    talk(federation, running, script)


def test_enroll_prints_a_code_once_and_stores_its_hash(federation, command, tmp_path):
    directory, _ = federation()
    code = command("enroll", "one", directory, "--code").stdout.strip()
    assert code.startswith("tapcode_") and len(code) > 48
    (row,) = json.loads(command("devices", directory, "--json").stdout)
    assert row["state"] == "invited" and abs(row["code_expires_at"] - time.time() - 3600) < 60
    stored = b"".join(path.read_bytes() for path in (directory / "state").glob("coordinator.db*"))
    assert code.encode() not in stored and token_digest(code).encode() in stored
    file = tmp_path / "code"
    command("enroll", "two", directory, "--code", "--code-expires", "10m", "--token-file", file)
    assert file.read_text().startswith("tapcode_") and file.stat().st_mode & 0o777 == 0o600
    assert json.loads(command("enroll", "three", directory, "--code", "--json").stdout)["code"].startswith("tapcode_")


@pytest.mark.parametrize("option", ["--expires", "--code-expires"])
def test_a_length_of_time_that_is_none_is_named_with_its_option(federation, command, option):
    directory, _ = federation()
    done = command("enroll", "one", directory, "--code", option, "1y", check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {option} '1y' is no length of time")
