"""A device gets its token by itself: from the operator's one-time code, or from the token that it has.

The new token is made here and is on the disk before the coordinator hears of it; what travels is its sha256. So
whatever is cut off, asking again with the same token ends it. It knows two HTTP requests to the device port and what
their answers mean; files are `token_file`'s matter.
"""

import hashlib
import http.client
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from edge_client.config import ClientConfig
from edge_client.tls import distrust, refusal_of_tls, tls_context
from edge_client.token_file import next_token, next_token_file, read_token, replacing, take_next_token
from tap_core.errors import TapError, UsageError

TIMEOUT = 20.0
"""Seconds for the connection, and for each part of the answer."""

MOST_BYTES = 64 * 1024
"""Of an answer that are read."""


def enroll(config: ClientConfig, code: str) -> float | None:
    """Exchange a code for a token, which is then in `token_file`; returns when it expires (seconds since 1970, None for
    never).

    Raises UsageError if the code cannot be used, TapError if the coordinator cannot be reached: ask again with the same
    code.
    """
    code = code.strip()
    if not code or not code.isascii() or not code.isprintable() or " " in code:
        raise UsageError("that is no code; give the line that tap-coordinator enroll --code printed")
    with replacing(config.token_file):
        answer = _ask(config, "enroll", code, next_token(config.token_file))
        if answer.status == 401:
            raise UsageError(f"the code was refused: {answer.text}")
        return _adopt(config, answer)


def rotate(config: ClientConfig) -> float | None:
    """Replace the token by a new one; returns when it expires, as `enroll` does.

    Raises UsageError if the token is not valid, TapError if the coordinator cannot be reached: run it again.
    """
    with replacing(config.token_file):
        current, new = read_token(config.token_file), next_token(config.token_file)
        answer = _ask(config, "rotate", current, new)
        if answer.status == 401:  # unless an answer was lost, and the new one is valid already
            answer = _ask(config, "rotate", new, new)
        if answer.status == 401:
            raise UsageError(f"the token was refused: {answer.text}")
        return _adopt(config, answer)


@dataclass(frozen=True)
class _Answer:
    status: int
    text: str


def _adopt(config: ClientConfig, answer: _Answer) -> float | None:
    """The new token is valid if the answer says so. Raises TapError if not."""
    if answer.status in (400, 409):
        raise UsageError(f"{config.coordinator} refuses: {answer.text}")
    if answer.status in (408, 425, 429) or answer.status >= 500:
        raise TapError(f"{config.coordinator}: {answer.text or f'HTTP {answer.status}'}; run the command again later")
    facts = _facts(answer)
    if facts is None:
        raise TapError(
            f"{config.coordinator} is no device port of a coordinator that exchanges tokens (HTTP {answer.status}); "
            "correct 'coordinator' (tap-coordinator serve prints its address)"
        )
    if facts.get("device") != config.device_id or facts.get("federation") != config.federation:
        raise UsageError(
            f"the token belongs to device {facts.get('device')!r} of federation {facts.get('federation')!r}; set "
            f"device_id and federation to that, then run the command again"
        )
    try:
        take_next_token(config.token_file)
    except OSError as error:
        where = next_token_file(config.token_file)
        raise TapError(f"the new token is in {where}: {error.strerror}; mend that and run the command again") from None
    expires = facts.get("expires_at")
    return float(expires) if isinstance(expires, (int, float)) else None


def _facts(answer: _Answer) -> dict[str, Any] | None:
    if answer.status != 200:
        return None
    try:
        facts = json.loads(answer.text)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and "device" in facts else None


def _ask(config: ClientConfig, page: str, secret: str, new_token: str) -> _Answer:
    """GET /enroll or /rotate on the device port. Raises TapError if there is no answer."""
    parts = urlsplit(config.coordinator)
    scheme = {"ws": "http", "wss": "https"}[parts.scheme]
    address = urlunsplit((scheme, parts.netloc, f"{parts.path.rstrip('/')}/{page}", "", ""))
    headers = {
        "Authorization": f"Bearer {secret}",
        "Tap-Token-Sha256": hashlib.sha256(new_token.encode()).hexdigest(),
        "Tap-Device": config.device_id,
    }
    opener = urllib.request.build_opener(_StayHere, urllib.request.HTTPSHandler(context=_tls(config)))
    try:
        try:
            reply = opener.open(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            return _Answer(reply.status, " ".join(reply.read(MOST_BYTES).decode("utf-8", "replace").split()))
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise TapError(distrust(config.coordinator, cause)) from None
        if refused := refusal_of_tls(config.coordinator, [cause] if isinstance(cause, Exception) else []):
            raise TapError(refused) from None
        why = getattr(cause, "strerror", None) or str(cause)
        raise TapError(f"cannot reach {config.coordinator} ({why}); run the command again, nothing is lost") from None


def _tls(config: ClientConfig) -> ssl.SSLContext:
    return tls_context(config.tls_ca, config.tls_cert, config.tls_key) or ssl.create_default_context()


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A secret goes to the address in the settings and nowhere else."""

    def redirect_request(self, *arguments: Any) -> None:
        return None
