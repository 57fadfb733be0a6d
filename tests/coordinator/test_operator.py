"""The operator plane of a served federation, over HTTP, and the tokens that open it."""

import json
import stat
import time
import urllib.error
import urllib.request

import pytest

from coordinator.identity import token_digest
from coordinator.operator_models import StatusFacts

PAGES = ["/status", "/metrics", "/devices", "/rounds", "/audit", "/openapi.json"]


def ask(service, page, token=None, body=None, method=None, **headers):
    """Status, headers and body of an answer, also of an error."""
    address = f"http://127.0.0.1:{service.addresses['http_port']}{page}"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def until(condition):
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture
def service(federation, served, command):
    """A served federation with a token for each role: service.read and service.write."""
    directory, _ = federation()
    made = served(directory)
    for name, role in (("reader", "read"), ("writer", "write")):
        token = command("operator", "add", name, directory, "--role", role).stdout.strip()
        assert token.startswith("tapop_") and len(token) > 45
        setattr(made, role, token)
    return made


def test_without_a_token_only_life_and_readiness_are_told(service):
    assert ask(service, "/healthz")[::2] == (200, '{"status":"ok"}')
    assert ask(service, "/readyz")[::2] == (200, '{"ready":true}')
    for page in [*PAGES, "/", "/nothing", "/docs", "/healthz/", "//healthz", "/status?x=/healthz"]:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
            status, headers, body = ask(service, page, method=method)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), (page, method)
            assert json.loads(body).keys() == {"detail"} and "small" not in body
    assert ask(service, "/status", "tapop_wrong")[0] == 401


def test_a_read_token_sees_everything_and_acts_on_nothing(service):
    for page in PAGES:
        status, headers, body = ask(service, page, service.read)
        assert (status, headers["Cache-Control"], headers["X-Content-Type-Options"]) == (200, "no-store", "nosniff")
        assert service.read not in body and "sha256" not in body.replace("tap_token_sha256", "")
    assert json.loads(ask(service, "/status", service.read)[2])["phase"] == "waiting"
    for page in ("/pause", "/resume", "/stop", "/devices/one/revoke", "/nothing"):
        status, _, body = ask(service, page, service.read, body={"why": "x"})
        assert status == 403 and "may only read" in json.loads(body)["detail"]
    assert service.status()["paused"] is None
    assert ask(service, "/nothing", service.read)[0] == 404


def test_a_write_token_pauses_resumes_revokes_and_stops_and_the_audit_log_names_its_holder(service, command):
    directory = service.directory
    command("enroll", "one", directory)
    assert ask(service, "/pause", service.write, body={"why": "new disks"})[::2] == (200, '{"paused":"new disks"}')
    until(lambda: service.status()["paused"] == "new disks")
    assert ask(service, "/resume", service.write, body={})[::2] == (200, '{"paused":null}')
    until(lambda: service.status()["paused"] is None)
    assert ask(service, "/devices/one/revoke", service.write, method="POST")[0] == 200
    status, _, body = ask(service, "/devices/one/revoke", service.write, method="POST")
    assert status == 404 and "is revoked already" in body
    (device,) = json.loads(ask(service, "/devices", service.read)[2])
    assert (device["device"], device["state"]) == ("one", "revoked")
    assert ask(service, "/stop", service.write, method="POST")[::2] == (202, '{"stopping":true}')
    assert service.process.wait(10) == 0
    acts = json.loads(command("audit", directory, "--json").stdout)
    done = [(row["act"], row["subject"], row["detail"]) for row in acts if row["actor"] == "operator writer"]
    assert done == [("pause", "", "new disks"), ("resume", "", ""), ("revoke", "one", ""), ("stop", "", "")]
    assert [row["act"] for row in acts][:3] == ["begin", "operator add", "operator add"]


@pytest.mark.parametrize(
    ("page", "body", "status"),
    [
        ("/pause", {"why": ""}, 422),
        ("/pause", {"why": "x" * 501}, 422),
        ("/pause", {"why": "two\nlines"}, 422),
        ("/pause", {"why": 5}, 422),
        ("/pause", {"whi": "x"}, 422),
        ("/pause", ["x"], 422),
        ("/pause", {"why": "x" * 70_000}, 413),
        ("/devices/Bad%20Name/revoke", {}, 422),
        ("/devices/none/revoke", {}, 404),
        ("/devices/a%2Fb/revoke", {}, 404),
    ],
)
def test_a_bad_request_is_one_line(service, page, body, status):
    got, _, text = ask(service, page, service.write, body=body)
    assert got == status and list(json.loads(text)) == ["detail"] and "\n" not in json.loads(text)["detail"]
    assert "Traceback" not in text and "Traceback" not in service.log.read_text()
    assert (
        ask(service, "/rounds?last=0", service.read)[0] == 422 and ask(service, "/audit?last=x", service.read)[0] == 422
    )


def test_a_token_that_expires_or_is_revoked_opens_nothing_any_more(service, command):
    directory = service.directory
    command("operator", "revoke", "reader", directory)
    until(lambda: ask(service, "/status", service.read)[0] == 401)
    short = command("operator", "add", "short", directory, "--role", "read", "--expires", "1s").stdout.strip()
    until(lambda: ask(service, "/status", short)[0] == 401)
    facts = {row["operator"]: row for row in json.loads(command("operator", "list", directory, "--json").stdout)}
    assert {name: row["state"] for name, row in facts.items()} == {
        "reader": "revoked", "short": "expired", "writer": "valid",
    }  # fmt: skip
    assert not any("sha256" in key for row in facts.values() for key in row)
    again = command("operator", "add", "reader", directory, "--role", "write").stdout.strip()
    assert again != service.read and ask(service, "/resume", again, method="POST")[0] == 200
    assert "reader                   write  valid    added 2" in command("operator", "list", directory).stdout


def test_the_host_header_must_name_this_service(federation, served, command):
    directory, _ = federation()
    service = served(directory, "--http-allowed-host", "tap.example", "--http-allowed-host", "10.1.2.3")
    port = service.addresses["http_port"]
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]:8711", "tap.example", "TAP.example:443", "10.1.2.3"):
        assert ask(service, "/healthz", Host=host)[0] == 200, host
    for host in ("rebound.example", f"rebound.example:{port}", "10.1.2.4", "[::2]"):
        status, _, body = ask(service, "/healthz", Host=host)
        assert status == 421 and "--http-allowed-host" in json.loads(body)["detail"]
    done = command("serve", directory, "--http-allowed-host", "http://x/", check=False)
    assert done.returncode == 2 and "http_allowed_hosts" in done.stderr and done.stderr.count("\n") == 1


def test_it_listens_on_ipv6_and_status_finds_it(federation, served, command):
    directory, _ = federation()
    service = served(directory, "--http-host", "::1")
    address = f"http://[::1]:{service.addresses['http_port']}/healthz"
    with urllib.request.urlopen(address, timeout=5) as reply:
        assert reply.status == 200
    assert json.loads(command("status", directory, "--json").stdout)["serving"] is True


def test_status_of_the_command_asks_with_the_token_of_the_state_directory(service, command):
    file = service.directory / "state" / "serving.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = json.loads(file.read_text())["http_token"]
    assert token not in service.log.read_text()
    assert ask(service, "/stop", token, method="POST")[0] == 403
    shown = json.loads(command("status", service.directory, "--json").stdout)
    assert shown["serving"] is True and shown.keys() - {"serving"} == StatusFacts.model_fields.keys()
    service.terminate()
    shown = json.loads(command("status", service.directory, "--json").stdout)
    assert shown["serving"] is False and shown.keys() - {"serving"} == StatusFacts.model_fields.keys()


def test_an_operators_token_is_stored_as_its_hash_and_written_privately(federation, command, tmp_path):
    directory, _ = federation()
    file = tmp_path / "prometheus.token"
    said = command("operator", "add", "prometheus", directory, "--role", "read", "--token-file", file).stdout
    token = file.read_text().strip()
    assert token not in said and stat.S_IMODE(file.stat().st_mode) == 0o600
    stored = b"".join(path.read_bytes() for path in (directory / "state").glob("coordinator.db*"))
    assert token.encode() not in stored and token_digest(token).encode() in stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "Bad Name", "{dir}", "--role", "read"), "is no operator name"),
        (("add", "x", "{dir}", "--role", "root"), "neither 'read' nor 'write'"),
        (("add", "x", "{dir}", "--role", "read", "--expires", "x"), "is no length of time"),
        (("add", "x", "{dir}", "--role", "read", "--token-file", "{dir}/manifest.json"), "may hold another token"),
        (("add", "there", "{dir}", "--role", "read"), "revoke it first"),
        (("revoke", "nobody", "{dir}"), "there is no operator 'nobody'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(federation, command, arguments, message):
    directory, _ = federation()
    command("operator", "add", "there", directory, "--role", "read")
    done = command("operator", *(part.format(dir=directory) for part in arguments), check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["add", "list", "revoke"])
def test_every_command_has_help_with_an_example(command, name):
    assert f"Example: tap-coordinator operator {name}" in " ".join(command("operator", name, "--help").stdout.split())
