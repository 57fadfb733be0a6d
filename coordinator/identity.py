"""Tokens and codes: made once, shown once, and known to the coordinator by their sha256 only.

Each is 256 random bits, so a plain hash is enough (there is no dictionary to try) and a lookup by hash tells an
attacker nothing. It knows strings; it does not know where they are stored or how they travel.
"""

import hashlib
import hmac
import secrets

DEVICE, CODE, OPERATOR = "tap_", "tapcode_", "tapop_"
"""Prefixes, so that secret scanners and people recognise what it is."""


def new_token(prefix: str = DEVICE) -> str:
    """A fresh token: safe in a header, a file and a URL."""
    return prefix + secrets.token_urlsafe(32)


def new_code() -> str:
    """A fresh one-time enrolment code."""
    return new_token(CODE)


def token_digest(token: str) -> str:
    """What the coordinator stores of a token: sha256, 64 hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def same_digest(one: str, other: str) -> bool:
    """Compare two digests in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def bearer_token(header: str | None) -> str | None:
    """The token of an ``Authorization: Bearer TOKEN`` header; None if there is none."""
    scheme, _, token = (header or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
