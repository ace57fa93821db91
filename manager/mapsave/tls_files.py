"""The files of mutual TLS, read the same for the service's side of a connection and a client's."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

from mapsave import errors
from mapsave.service_settings import Listen, Remote


def load(context: ssl.SSLContext, settings: Listen | Remote, *, section: str, ca: str) -> None:
    """Load certificate, key, CAs and revocation lists, and refuse what is older than TLS 1.2.

    ``section`` is where the settings are in the configuration, ``ca`` the key for the CAs. Raises
    ConfigError, NotPermitted, which name the key and the file.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    with _named(f"{section}.certificate", settings.certificate):
        context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
    authorities: Path = getattr(settings, ca)
    with _named(f"{section}.{ca}", authorities):
        context.load_verify_locations(authorities)
    if settings.crl is not None:
        with _named(f"{section}.crl", settings.crl):
            _load_revoked(context, settings.crl)


def _no_password() -> str:
    raise ValueError("the key is protected by a password")


def _load_revoked(context: ssl.SSLContext, path: Path) -> None:
    """Load revocation lists: from then on each CA of a chain needs one that is current."""
    text = path.read_text(encoding="utf-8", errors="replace")
    # Python would take a certificate in the file as one more CA.
    if "-----BEGIN X509 CRL-----" not in text or "-----BEGIN CERT" in text:
        raise OSError("it must contain revocation lists (PEM) and nothing else")
    context.load_verify_locations(path)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


@contextlib.contextmanager
def _named(key: str, path: Path) -> Iterator[None]:
    """Name the file in the error that says that it cannot be used; ssl.SSLError is an OSError."""
    try:
        yield
    except PermissionError as error:
        raise errors.denied(
            f"{key}: {str(path)!r} cannot be read: {error.strerror}", path
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.ConfigError(f"{key}: {str(path)!r} cannot be used: {reason}") from None
