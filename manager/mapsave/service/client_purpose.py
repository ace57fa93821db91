"""Whether a certificate was issued for clients: its extended key usage, which Python does not show.

OpenSSL refuses a certificate that names other purposes only, but takes one that names none; of a CA
that serves many, that may be anyone's. Only the few parts of DER are read that lead there (X.690,
RFC 5280 section 4.2.1.12); OpenSSL has verified the certificate before.
"""

from collections.abc import Iterator

_SEQUENCE, _OID, _OCTETS, _EXTENSIONS = 0x30, 0x06, 0x04, 0xA3
_EXTENDED_KEY_USAGE = bytes.fromhex("551d25")  # 2.5.29.37
_CLIENT_AUTH = bytes.fromhex("2b06010505070302")  # 1.3.6.1.5.5.7.3.2


def is_for_clients(certificate: bytes) -> bool:
    """Return whether a certificate in DER has the purpose clientAuth."""
    try:
        return _CLIENT_AUTH in _purposes(certificate)
    except (IndexError, ValueError):
        return False


def _purposes(certificate: bytes) -> list[bytes]:
    (whole,) = _children(certificate, _SEQUENCE)
    signed = _children(whole, _SEQUENCE)[0]
    for extensions in _children(signed, _EXTENSIONS):
        for extension in _children(_children(extensions, _SEQUENCE)[0], _SEQUENCE):
            if _children(extension, _OID) == [_EXTENDED_KEY_USAGE]:
                (value,) = _children(extension, _OCTETS)
                return _children(_children(value, _SEQUENCE)[0], _OID)
    return []


def _children(data: bytes, kind: int) -> list[bytes]:
    """Return the contents of the elements of ``data`` that have the tag ``kind``."""
    return [content for tag, content in _elements(data) if tag == kind]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + length > len(data):
            raise ValueError("an element extends beyond its container")
        yield tag, data[at : at + length]
        at += length
