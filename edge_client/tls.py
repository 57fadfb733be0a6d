"""TLS of a device: whom it trusts, what it shows, and what is wrong in one line that says what to mend.

It knows files, contexts and errors of the standard library; it opens no connection.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path

from tap_core.errors import UsageError

CERTIFICATE_HINT = "if it asks devices for a certificate, set tls_cert and tls_key to one that it accepts"

EXPIRED, NOT_YET_VALID, WRONG_NAME, WRONG_ADDRESS = 10, 9, 62, 64
"""OpenSSL's codes of what is wrong with a certificate."""


def tls_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What a connection trusts and shows: ``ca`` instead of the system's authorities, ``certificate`` if it is asked
    for one. None if none of them is given. Raises UsageError for a file that cannot be used.
    """
    if ca is None and certificate is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise UsageError(f"tls_ca {ca}: {_reason(error)}; give the authority's certificates in PEM") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ValueError) as error:
            why = _reason(error)
            raise UsageError(f"tls_cert {certificate}, tls_key {key}: {why}; give both in PEM, no password") from None
    return context


def distrust(address: str, error: ssl.SSLCertVerificationError) -> str:
    """Why the coordinator's certificate is not believed, and what to mend."""
    code = getattr(error, "verify_code", 0)
    if code in (EXPIRED, NOT_YET_VALID):
        what = "has expired" if code == EXPIRED else "is not valid yet"
        return f"the certificate of {address} {what}; have the operator renew it, or correct this machine's clock"
    if code in (WRONG_NAME, WRONG_ADDRESS):
        return (
            f"the certificate of {address} was made for another host name; correct 'coordinator', or have the operator "
            "add this name"
        )
    why = getattr(error, "verify_message", "") or "its authority is unknown"
    return (
        f"the certificate of {address} is not trusted ({why}); set tls_ca to the certificate of the "
        "authority that signed it"
    )


def refusal_of_tls(address: str, errors: Sequence[BaseException]) -> str | None:
    """What to mend if the two sides of TLS cannot agree; None if that is not what went wrong."""
    for error in errors:
        reason = (error.reason or "").upper() if isinstance(error, ssl.SSLError) else ""
        if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
            return f"{address} asks for a certificate of this device; set tls_cert and tls_key"
        if "ALERT" in reason and ("UNKNOWN_CA" in reason or "CERTIFICATE" in reason):
            return (
                f"{address} does not accept this device's certificate; ask the operator for one of the right authority"
            )
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return f"{address} does not speak TLS on this port; correct 'coordinator' (ws:// or another port)"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
