"""For whom an archive is encrypted, and who can read it: recipients and identities of age.

Both as the command ``age`` takes them: ``age1…`` and ``AGE-SECRET-KEY-1…`` of age-keygen, and SSH
keys (ed25519, RSA). See https://age-encryption.org.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from mapsave import errors
from mapsave.archive import libraries

Recipient = Any  # of pyrage, which has no types
Identity = Any
_MOST = 1 << 20  # bytes of a file of keys
_SSH_KEY = b"-----BEGIN "


def recipient(text: str) -> Recipient:
    """Return the recipient of a public key. Raises ValueError, Unsupported."""
    age = libraries.age()
    kind = age.ssh if text.startswith("ssh-") else age.x25519
    try:
        return kind.Recipient.from_str(text)
    except age.RecipientError:
        raise ValueError(
            f"{text!r} is not a recipient that mapsave knows: age1…, ssh-ed25519 … or ssh-rsa …"
        ) from None


def recipients(words: tuple[str, ...], files: tuple[str, ...]) -> tuple[Recipient, ...]:
    """Return the recipients of ``words``, and of files with one a line.

    Raises UsageError, NotPermitted, Unsupported.
    """
    found = []
    for word in words:
        try:
            found.append(recipient(word))
        except ValueError as error:
            raise errors.UsageError(str(error)) from None
    for path in files:
        before = len(found)
        for number, line in _lines(path, _contents(path)):
            try:
                found.append(recipient(line))
            except ValueError as error:
                raise errors.UsageError(f"{path}:{number}: {error}") from None
        if len(found) == before:
            raise errors.UsageError(f"{path!r} has no recipient")
    return tuple(found)


def identities(files: tuple[str, ...]) -> tuple[Identity, ...]:
    """Return the identities of files: of age-keygen, or private SSH keys without a passphrase.

    Raises UsageError, NotPermitted, Unsupported.
    """
    return tuple(each for path in files for each in _identities(path))


def _identities(path: str) -> list[Identity]:
    age = libraries.age()
    raw = _contents(path)
    found: list[Identity] = []
    with contextlib.suppress(age.IdentityError):
        if raw.startswith(_SSH_KEY):
            return [age.ssh.Identity.from_buffer(raw)]
        found = [age.x25519.Identity.from_str(line) for _, line in _lines(path, raw)]
    if found:
        return found
    # Not what it says: that may be a secret with a typing error.
    raise errors.UsageError(
        f"{path!r} is not a file of identities that mapsave knows",
        hint="AGE-SECRET-KEY-1… of age-keygen, or a private SSH key without a passphrase; for any "
        "other use the command: 'age -d -i FILE | mapsave import -'",
    )


def _contents(path: str) -> bytes:
    """Return what is in a file of keys. Raises UsageError, NotPermitted."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_MOST + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise errors.denied(f"cannot read {path!r}: {error.strerror}", path) from None
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.UsageError(f"cannot read {path!r}: {reason}") from None
    if len(raw) > _MOST:
        raise errors.UsageError(f"{path!r} is too large for a file of keys")
    return raw


def _lines(path: str, raw: bytes) -> Iterator[tuple[int, str]]:
    """Yield the lines that are neither empty nor comments, with their numbers."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise errors.UsageError(f"{path!r} is not a text file") from None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped
