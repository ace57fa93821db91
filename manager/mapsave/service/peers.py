"""Who asks, and what they may do: by the kernel's word on a unix socket, by certificate on TCP."""

import contextlib
import ctypes
import dataclasses
import enum
import errno
import grp
import os
import pwd
import socket
import struct
import time
from collections.abc import Mapping, Sequence

from mapsave import errors
from mapsave.client.exchange import ROLE_HEADER
from mapsave.service_settings import Listen, Service

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python's socket module does not have it
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_FEW_GROUPS = 64
_NAME_AGE = 300.0  # seconds that a user's name is known before it is looked up again
_libc = ctypes.CDLL(None, use_errno=True)


class Role(enum.IntEnum):
    """What a peer may do; each may do what those before it may."""

    NOTHING = 0
    READER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """The role as people read it."""
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class Lists:
    """The groups of users that have a role; with ``is_remote`` certificates count instead."""

    readers: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    is_remote: bool = False
    is_lowered: bool = False  # the client itself has asked to be no more

    def hint(self, role: Role) -> str:
        """Return how to get ``role``."""
        if self.is_lowered:
            return f"the request lowered its own role with the header {ROLE_HEADER}"
        if role is Role.ADMIN:
            return "only root and the user that the service runs as may"
        names, key = self.operators, "'operators'"
        if role is Role.READER:
            names, key = (*self.readers, *names), f"'readers' or {key}"
        if self.is_remote:
            return f"ask root to list the common name in {key} of 'service.listen'"
        if not names:
            return f"ask root to list a group of yours in {key} of 'service'"
        groups = " or ".join(map(repr, dict.fromkeys(names)))
        return f"members of the group {groups} may: ask root to add you"


@dataclasses.dataclass(frozen=True)
class Peer:
    """Who is at the other end: a user of this host, or the holder of a certificate."""

    name: str
    role: Role
    lists: Lists = Lists()

    def lowered(self, role: Role) -> "Peer":
        """Return the peer with ``role``, or as it is where that would be more than it has."""
        if role >= self.role:
            return self
        return Peer(self.name, role, dataclasses.replace(self.lists, is_lowered=True))

    def require(self, role: Role, what: str) -> None:
        """Raise RoleMissing unless the peer may do ``what``, for which ``role`` is needed."""
        if self.role >= role:
            return
        hint = self.lists.hint(role)
        raise errors.RoleMissing(
            f"{self.name} may not {what}: the role {role.word!r} is needed, not {self.role.word!r}",
            hint=hint,
            role=self.role.word,
            needed=role.word,
        )


class Roles:
    """Which groups and certificates have which role."""

    def __init__(self, service: Service) -> None:
        """Look up the groups. Raises ConfigError where one does not exist."""
        self._operators = {_group(name, "operators") for name in service.operators}
        self._readers = {_group(name, "readers") for name in service.readers}
        self._listen = service.listen
        self._names: dict[int, tuple[float, str]] = {}
        self._groups = Lists(service.readers, service.operators)

    def of_user(self, uid: int, groups: Sequence[int]) -> Role:
        """Return the role of a user of this host."""
        if uid in (0, os.geteuid()):
            return Role.ADMIN
        if self._operators.intersection(groups):
            return Role.OPERATOR
        return Role.READER if self._readers.intersection(groups) else Role.NOTHING

    def of_socket(self, sock: socket.socket) -> Peer:
        """Return who is connected to a unix socket. Raises OSError."""
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, gid = _CREDENTIALS.unpack(raw)
        return Peer(self._name(uid), self.of_user(uid, [gid, *_groups(sock)]), self._groups)

    def _name(self, uid: int) -> str:
        """Return a user's name, which a directory service may take long to return."""
        now = time.monotonic()
        when, name = self._names.get(uid, (0.0, ""))
        if not name or now - when >= _NAME_AGE:
            name = _user(uid)
            self._names[uid] = (now, name)
        return name

    def of_certificate(
        self, certificate: Mapping[str, Sequence[Sequence[tuple[str, str]]]] | None
    ) -> Peer:
        """Return who holds a certificate that the CA of the clients has signed."""
        names = [
            value
            for part in (certificate or {}).get("subject", ())
            for key, value in part
            if key == "commonName"
        ]
        listen: Listen | None = self._listen
        lists = Lists(is_remote=True)
        if len(names) != 1 or listen is None:
            return Peer("a client without one common name", Role.NOTHING, lists)
        role = Role.NOTHING
        if names[0] in listen.operators:
            role = Role.OPERATOR
        elif names[0] in listen.readers:
            role = Role.READER
        return Peer(f"certificate {names[0]!r}", role, lists)


def _groups(sock: socket.socket) -> list[int]:
    """Return the supplementary groups that the peer had when it connected (Linux 4.13)."""
    # Not by the method of the socket, which takes at most 1024 bytes: 256 groups.
    length = ctypes.c_uint32(_FEW_GROUPS * 4)
    while True:
        raw = ctypes.create_string_buffer(length.value)
        if _libc.getsockopt(
            sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, raw, ctypes.byref(length)
        ):
            number = ctypes.get_errno()
            if number == errno.ERANGE:  # the kernel has put into it how many bytes they take
                continue
            if number == errno.ENOPROTOOPT:
                return []
            raise OSError(number, os.strerror(number))
        return [found for (found,) in struct.iter_unpack("I", raw.raw[: length.value])]


def _group(name: str, key: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise errors.ConfigError(
            f"service.{key}: this host has no group {name!r}",
            hint=f"create it: groupadd --system {name}",
        ) from None


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return f"user {pwd.getpwuid(uid).pw_name!r}"
    return f"user {uid}"
