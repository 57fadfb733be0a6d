"""TLS of a device: a private authority, what is wrong with a certificate in one line, and tokens in the clear."""

import asyncio
import contextlib
import datetime
import itertools
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner
from websockets.asyncio.server import serve

from edge_client.cli import app
from edge_client.config import ClientConfig, load_client_config
from edge_client.connection import Traffic, open_connection
from edge_client.doctor import findings
from edge_client.outages import Disconnected
from edge_client.tls import tls_context
from protocol.messages import SUBPROTOCOL
from tap_core.errors import TapError, UsageError

MORE_THAN_A_DAY = datetime.timedelta(days=2)


@pytest.fixture
def authority(tmp_path):
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made


@contextlib.asynccontextmanager
async def server(certificate=None, devices=None):
    """A WebSocket server that says nothing: yields its port."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        if devices is not None:
            devices.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED

    async def wait(connection):
        await connection.wait_closed()

    async with serve(wait, "127.0.0.1", 0, ssl=context, subprotocols=[SUBPROTOCOL]) as running:
        yield next(iter(running.sockets)).getsockname()[1]


async def reach(address, tls):
    token_file = Path("token")
    async with open_connection(address, "t", token_file=token_file, partial={}, traffic=Traffic(), tls=tls):
        return True


def told(certificate, tls, *, host="127.0.0.1", devices=None):
    """What the user is told; empty if the connection is made."""

    async def main():
        async with server(certificate, devices) as port:
            try:
                await reach(f"wss://{host}:{port}", tls)
            except Disconnected as error:
                return f"disconnected: {error.reason}"
            return ""

    try:
        return asyncio.run(main())
    except TapError as error:
        return str(error).replace("\n", "MORE THAN ONE LINE")


def test_a_private_authority_is_trusted_when_it_is_named(authority, tmp_path):
    certificate = authority.issue_cert("127.0.0.1")
    assert told(certificate, tls_context(tmp_path / "ca.pem", None, None)) == ""
    assert "set tls_ca" in told(certificate, None)
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    assert "set tls_ca" in told(certificate, tls_context(tmp_path / "other.pem", None, None))


def test_what_is_wrong_with_a_certificate_is_said(authority, tmp_path):
    tls = tls_context(tmp_path / "ca.pem", None, None)
    past = datetime.datetime.now(datetime.timezone.utc) - MORE_THAN_A_DAY
    expired = authority.issue_cert("127.0.0.1", not_before=past - MORE_THAN_A_DAY, not_after=past)
    assert "has expired" in told(expired, tls)
    assert "another host name" in told(authority.issue_cert("other.example"), tls)
    assert "another host name" in told(authority.issue_cert("other.example"), tls, host="localhost")
    assert told(None, tls).startswith("disconnected")  # a port without TLS hangs up


def test_a_device_shows_its_certificate_or_is_told_that_it_needs_one(authority, tmp_path):
    devices, certificate = trustme.CA(), authority.issue_cert("127.0.0.1")
    own = devices.issue_cert("kitchen@devices")
    own.cert_chain_pems[0].write_to_path(tmp_path / "own.pem")
    own.private_key_pem.write_to_path(tmp_path / "own.key")
    with_it = tls_context(tmp_path / "ca.pem", tmp_path / "own.pem", tmp_path / "own.key")
    assert told(certificate, with_it, devices=devices) == ""
    without = tls_context(tmp_path / "ca.pem", None, None)
    assert "set tls_cert and tls_key" in told(certificate, without, devices=devices)
    assert "set tls_cert and tls_key" in told(certificate, with_it, devices=trustme.CA())


def test_a_server_that_says_why_it_hangs_up_is_believed(authority, tmp_path):
    devices = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    devices.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    def answer(listener):
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            beside = connection.dup()
            with contextlib.suppress(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)
            while beside.recv(4096):  # closed with something unread, it would take its last words back
                pass
            beside.close()

    async def main(tls):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            answering = asyncio.ensure_future(asyncio.to_thread(answer, listener))
            with pytest.raises(TapError) as error:
                await reach(f"wss://127.0.0.1:{listener.getsockname()[1]}", tls)
            await answering
            return str(error.value)

    tls = tls_context(tmp_path / "ca.pem", None, None)
    assert "asks for a certificate of this device" in asyncio.run(main(tls))
    trustme.CA().issue_cert("kitchen@strangers").configure_cert(tls)
    assert "does not accept this device's certificate" in asyncio.run(main(tls))


def test_files_that_cannot_be_used_are_one_line(authority, tmp_path):
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for ca, certificate, key in [
        (tmp_path / "absent.pem", None, None),
        (tmp_path / "nonsense.pem", None, None),
        (tmp_path / "ca.pem", tmp_path / "ca.pem", tmp_path / "ca.pem"),
        (None, tmp_path / "absent.pem", tmp_path / "ca.pem"),
    ]:
        with pytest.raises(UsageError) as error:
            tls_context(ca, certificate, key)
        assert "\n" not in str(error.value)
    assert tls_context(None, None, None) is None


SETTINGS = {
    "federation": "f",
    "device_id": "d",
    "token_file": "token",
    "state_dir": "state",
    "foundation": "x/y",
    "tasks": {"t": {"train": "t.csv"}},
}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ws://127.0.0.1:8710", False),
        ("ws://127.8.8.8:8710", False),
        ("ws://[::1]:8710", False),
        ("ws://localhost:8710", False),
        ("wss://coordinator.example", False),
        ("ws://coordinator.example:8710", True),
        ("ws://10.0.0.5:8710", True),
        ("ws://localhost.example:8710", True),
    ],
)
def test_a_token_in_the_clear_is_noticed(address, expected):
    config = ClientConfig.model_validate({**SETTINGS, "coordinator": address})
    assert config.sends_token_in_the_clear is expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('coordinator = "wss://h"\ntls_cert = "a"', "belong together"),
        ('coordinator = "ws://h"\ntls_ca = "a"', "need a coordinator at wss://"),
    ],
)
def test_settings_of_tls_that_make_no_sense(tmp_path, lines, message):
    path = tmp_path / "client.toml"
    rest = 'federation = "f"\ndevice_id = "d"\ntoken_file = "t"\nstate_dir = "s"\nfoundation = "x/y"\n'
    path.write_text(f'{lines}\n{rest}[tasks.t]\ntrain = "t.csv"\n')
    with pytest.raises(UsageError, match=message):
        load_client_config(path, {})


def test_paths_of_tls_are_relative_to_the_file(tmp_path):
    path = tmp_path / "client.toml"
    rest = 'federation = "f"\ndevice_id = "d"\ntoken_file = "t"\nstate_dir = "s"\nfoundation = "x/y"\n'
    path.write_text(f'coordinator = "wss://h"\ntls_ca = "ca.pem"\n{rest}[tasks.t]\ntrain = "t.csv"\n')
    assert load_client_config(path, {}).tls_ca == tmp_path / "ca.pem"
    assert load_client_config(path, {"TAP_TLS_CA": "/x/y.pem"}).tls_ca == Path("/x/y.pem")


@pytest.mark.parametrize(("address", "warned"), [("ws://coordinator.invalid:1", True), ("ws://127.0.0.1:1", False)])
def test_doctor_and_join_warn_of_a_token_in_the_clear(tmp_path, address, warned):
    (tmp_path / "t.csv").write_text("text,target\n")
    path = tmp_path / "client.toml"
    rest = 'federation = "f"\ndevice_id = "d"\ntoken_file = "absent"\nstate_dir = "s"\nfoundation = "./absent"\n'
    path.write_text(f'coordinator = "{address}"\n{rest}[tasks.t]\ntrain = "t.csv"\n')
    first = list(itertools.islice(findings(load_client_config(path, {})), 3))
    assert [(finding.ok, finding.warns) for finding in first if finding.what == "encryption"] == [(True, True)] * warned
    joined = CliRunner().invoke(app, ["join", str(path)])
    lines = joined.stderr.splitlines()
    assert joined.exit_code == 2 and lines[-1].startswith("error: token file")
    assert [line.startswith("warning: the token travels unencrypted") for line in lines[:-1]] == [True] * warned
