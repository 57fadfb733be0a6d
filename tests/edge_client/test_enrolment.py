"""Codes and tokens as the device replaces them: what travels, what is on the disk when, and every place of a cut."""

import hashlib
import http.server
import json
import os
import ssl
import stat
import threading

import pytest
import trustme
from typer.testing import CliRunner

from edge_client import enrolment, token_file
from edge_client.cli import app
from edge_client.config import load_client_config
from edge_client.token_file import next_token_file, read_token
from tap_core import files
from tap_core.errors import TapError, UsageError

CODE = "tapcode_" + "c" * 43


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


class Desk(http.server.ThreadingHTTPServer):
    """The coordinator's side: one code, one valid token. ``lose``: so many answers are recorded and never sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.code_used_for = None
        self.token = digest("good-token")
        self.lose = 0
        self.fixed = None
        self.seen = []
        self.device = "kitchen"

    def decide(self, page, secret, new):
        if page == "/enroll":
            if secret != CODE:
                return 401, "the code is not valid"
            if self.code_used_for not in (None, new):
                return 409, "the code was used already"
            self.code_used_for = self.token = new
        elif page == "/rotate":
            if digest(secret) != self.token:
                return 401, "the token is not valid"
            self.token = new
        else:
            return 404, "no such page"
        return 200, json.dumps({"device": self.device, "federation": "demo", "expires_at": 86400.0})


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        secret = self.headers["Authorization"].removeprefix("Bearer ")
        self.server.seen.append((self.path, secret, dict(self.headers)))
        status, text = self.server.fixed or self.server.decide(self.path, secret, self.headers["Tap-Token-Sha256"])
        if self.server.lose:
            self.server.lose -= 1
            self.connection.close()
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(text.encode() + b"\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def desk():
    server = Desk()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def config(desk, client_toml):
    return load_client_config(client_toml(f"ws://127.0.0.1:{desk.server_port}"), {})


def die(*_):
    raise KeyboardInterrupt


def test_the_token_is_made_here_and_only_its_digest_travels(desk, config):
    config.token_file.unlink()
    assert enrolment.enroll(config, f" {CODE}\n") == 86400.0
    token = read_token(config.token_file)
    assert token.startswith("tap_") and len(token) > 40 and desk.token == digest(token)
    assert stat.S_IMODE(config.token_file.stat().st_mode) == 0o600
    assert sorted(p.name for p in config.token_file.parent.iterdir() if "token" in p.name) == ["token"]
    ((page, secret, headers),) = desk.seen
    assert (page, secret, headers["Tap-Device"]) == ("/enroll", CODE, "kitchen") and token not in str(headers)


def test_an_enrolment_whose_answer_is_lost_ends_when_it_is_run_again(desk, config):
    config.token_file.unlink()
    desk.lose = 1
    with pytest.raises(TapError, match="run the command again, nothing is lost") as caught:
        enrolment.enroll(config, CODE)
    assert caught.value.exit_code == 1 and not config.token_file.exists()
    assert stat.S_IMODE(next_token_file(config.token_file).stat().st_mode) == 0o600
    enrolment.enroll(config, CODE)
    assert digest(read_token(config.token_file)) == desk.token and not next_token_file(config.token_file).exists()


@pytest.mark.parametrize("place", ["replace_private", "_ask", "take_next_token"])
def test_an_enrolment_that_is_killed_ends_when_it_is_run_again(desk, config, monkeypatch, place):
    config.token_file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(token_file if place == "replace_private" else enrolment, place, die)
        with pytest.raises(KeyboardInterrupt):
            enrolment.enroll(config, CODE)
    assert not config.token_file.exists()
    enrolment.enroll(config, CODE)
    assert digest(read_token(config.token_file)) == desk.token


@pytest.mark.parametrize("place", ["next_token", "_ask", "lost answer", "take_next_token"])
def test_a_rotation_that_is_cut_leaves_a_valid_token_and_ends_when_it_is_run_again(desk, config, monkeypatch, place):
    if place == "lost answer":
        desk.lose = 1
        with pytest.raises(TapError, match="run the command again"):
            enrolment.rotate(config)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(enrolment, place, die)
            with pytest.raises(KeyboardInterrupt):
                enrolment.rotate(config)
    kept = [path for path in (config.token_file, next_token_file(config.token_file)) if path.exists()]
    assert desk.token in {digest(read_token(path)) for path in kept}
    enrolment.rotate(config)
    token = read_token(config.token_file)
    assert digest(token) == desk.token and token != "good-token" and not next_token_file(config.token_file).exists()


def test_half_a_token_is_never_taken_for_one(config, monkeypatch):
    """The power is cut while the next token is written: nothing has its name."""
    written = files.write_private

    def cut(path, data, **options):
        written(path, data[:10], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_private", cut)
        with pytest.raises(KeyboardInterrupt):
            enrolment.rotate(config)
    assert not next_token_file(config.token_file).exists()
    enrolment.rotate(config)
    assert len(read_token(config.token_file)) > 40


def test_rotations_at_the_same_time_follow_one_another(desk, config):
    threads = [threading.Thread(target=enrolment.rotate, args=(config,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digest(read_token(config.token_file)) == desk.token and len(desk.seen) == 4


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((401, "the code was revoked"), UsageError, "the code was refused: the code was revoked"),
        ((409, "used\nalready"), UsageError, "refuses: used already"),
        ((400, "no"), UsageError, "refuses: no"),
        ((429, "wait"), TapError, "wait; run the command again later"),
        ((503, ""), TapError, "HTTP 503; run the command again later"),
        ((404, "x"), TapError, "is no device port of a coordinator that exchanges tokens (HTTP 404)"),
        ((302, ""), TapError, "(HTTP 302)"),
        ((200, "<html>"), TapError, "(HTTP 200)"),
        ((200, "[]"), TapError, "(HTTP 200)"),
        ((200, '{"device": "hall", "federation": "demo"}'), UsageError, "the token belongs to device 'hall'"),
    ],
)
def test_no_answer_but_a_yes_touches_the_token(desk, config, answer, kind, message):
    desk.fixed = answer
    with pytest.raises(TapError) as caught:
        enrolment.enroll(config, CODE)
    assert type(caught.value) is kind and message in str(caught.value) and "\n" not in str(caught.value)
    assert CODE not in str(caught.value) and read_token(config.token_file) == "good-token"


@pytest.mark.parametrize("code", ["", " ", "two words", "ü", "a\nb"])
def test_what_is_no_code_is_not_sent(desk, config, code):
    with pytest.raises(UsageError, match="that is no code"):
        enrolment.enroll(config, code)
    assert desk.seen == []


def test_a_refused_token_says_so_and_stays(desk, config):
    desk.token = digest("another")
    with pytest.raises(UsageError, match="the token was refused: the token is not valid"):
        enrolment.rotate(config)
    assert read_token(config.token_file) == "good-token"


def test_nobody_listens(config, desk):
    desk.server_close()
    with pytest.raises(TapError, match="cannot reach ws://127.0.0.1:.*Connection refused"):
        enrolment.rotate(config)


def test_a_secret_does_not_travel_to_a_server_that_cannot_be_trusted(desk, client_toml):
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    desk.socket = tls.wrap_socket(desk.socket, server_side=True)
    desk.handle_error = lambda *_: None
    config = load_client_config(client_toml(f"wss://localhost:{desk.server_port}"), {})
    with pytest.raises(TapError, match="certificate of wss://localhost:.* is not trusted"):
        enrolment.rotate(config)
    assert desk.seen == []


def test_a_token_file_that_cannot_be_written(config, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_private", full)
    with pytest.raises(UsageError, match="cannot write .*token.new: No space left on device"):
        enrolment.rotate(config)
    monkeypatch.setattr(token_file.os, "open", full)
    with pytest.raises(UsageError, match="No space left on device; correct token_file"):
        enrolment.rotate(config)


def test_the_commands(desk, config, client_toml):
    path = client_toml(f"ws://127.0.0.1:{desk.server_port}")
    os.unlink(path.with_name("token"))
    result = CliRunner().invoke(app, ["enroll", str(path), "--code", "-"], input=f"{CODE}\n", catch_exceptions=False)
    assert result.exit_code == 0 and "kitchen: enrolled until 1970-01-02 00:00 UTC, token in " in result.output
    before = read_token(path.with_name("token"))
    result = CliRunner().invoke(app, ["rotate", str(path)], catch_exceptions=False)
    assert "kitchen: token replaced until 1970-01-02 00:00 UTC, the new one is in " in result.output
    assert read_token(path.with_name("token")) != before
    result = CliRunner().invoke(app, ["enroll", str(path), "--code", "tapcode_wrong"], catch_exceptions=False)
    assert result.exit_code == 2 and result.stderr == "error: the code was refused: the code is not valid\n"
