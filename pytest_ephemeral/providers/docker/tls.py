"""TLS for engines that listen on tcp: load our certificates, and describe errors."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import UnavailableError

#: Parts of OpenSSL's messages for an answer that is not TLS.
_NO_TLS: Final = ("wrong version", "http request", "unknown protocol", "record layer")


def context(folder: Path, *, verify: bool) -> ssl.SSLContext:
    """The TLS context for an engine.

    Args:
        folder: The folder with ca.pem, cert.pem and key.pem, as for the docker command.
        verify: Whether to verify the engine's certificate.

    Raises:
        UnavailableError: The files can't be used; the message has the reason.
    """
    authority, own, key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    try:
        if not folder.is_dir():
            raise FileNotFoundError(2, "no such folder")
        made = ssl.create_default_context(cafile=authority if authority.exists() else None)
        if own.exists():
            made.load_cert_chain(own, key)
    except OSError as error:
        reason = _reason(error) if isinstance(error, ssl.SSLError) else error.strerror
        raise UnavailableError(
            f"the certificates for it in {folder} can't be used, {reason}: "
            "DOCKER_CERT_PATH is the folder with ca.pem, cert.pem and the key.pem of that"
        ) from None
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def describe_failure(error: Exception, folder: str) -> str:
    """Why a TLS handshake with an engine failed, and advice.

    Args:
        error: The handshake's error.
        folder: The folder with our certificates.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"shows a certificate that can't be trusted, {error.verify_message.rstrip('.')}: "
            f"{folder}/ca.pem must be the authority that signed it, and the certificate "
            "must name that host"
        )
    if any(sign in _reason(error) for sign in _NO_TLS):
        return (
            f"does not speak TLS, {_reason(error)}: unset DOCKER_TLS_VERIFY, or give its TLS port"
        )
    return (
        f"does not accept our certificate, {_reason(error)}: "
        f"cert.pem and key.pem in {folder} must be signed by its authority"
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()
