"""One QMP client: negotiation, requests in order, replies, the pending descriptor.

Source: QEMU's ``docs/interop/qmp-spec.rst``, ``monitor/qmp.c`` and ``qapi/qmp-dispatch.c`` of
10.0; every text observed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from mapsave.emulator import (
    commands,
    migration_commands,  # noqa: F401 (registers its commands)
    schema,
)
from mapsave.emulator.commands import Emulated
from mapsave.emulator.faults import COMMAND_NOT_FOUND, QmpError
from mapsave.emulator.json_stream import JsonError, JsonStream

NEGOTIATE = "qmp_capabilities"
_NEGOTIATION = schema.struct(enable_=schema.array(schema.enum("oob")))

commands.TABLE[NEGOTIATE] = commands.Command(lambda _: _NEGOTIATION, lambda _: {})


class Session:
    """The state of one connection; :meth:`receive` yields what to do, :meth:`answer` does it."""

    def __init__(self, emulated: Emulated) -> None:
        self._emulated = emulated
        self._version = emulated.machine.version
        self._json = JsonStream(self._version.json)
        self._fd: int | None = None
        self.negotiated = False
        self.oob = False

    @property
    def greeting(self) -> dict[str, object]:
        """What the client is sent first."""
        return {"QMP": {"version": self._version.reply, "capabilities": ["oob"]}}

    def close(self) -> None:
        """The client is gone; a descriptor that was not used is closed."""
        self._replace_fd(None)

    def receive(self, data: bytes, fds: list[int]) -> Iterator[object]:
        """Yield the requests that ``data`` completes.

        Of ``fds`` the first becomes the pending one, in place of an older; the rest are closed.
        """
        for extra in fds[1:]:
            os.close(extra)
        if fds:
            os.set_blocking(fds[0], True)
            self._replace_fd(fds[0])
        yield from self._json.feed(data)

    def answer(self, request: object) -> dict[str, object]:
        members = request if isinstance(request, dict) else {}
        identifier = {"id": members["id"]} if "id" in members else {}
        try:
            if isinstance(request, JsonError):
                raise QmpError(str(request))
            return {"return": self._execute(_check_shape(request, oob=self.oob)), **identifier}
        except QmpError as error:
            return {**identifier, "error": {"class": error.error_class, "desc": error.desc}}

    def _execute(self, request: _Shape) -> object:
        name = request.name
        if not self.negotiated and (name != NEGOTIATE or name not in commands.TABLE):
            raise QmpError(
                f"Expecting capabilities negotiation with '{NEGOTIATE}'", COMMAND_NOT_FOUND
            )
        if self.negotiated and name == NEGOTIATE:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND
            )
        entry = commands.TABLE.get(name)
        if entry is None:
            raise QmpError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
        if request.out_of_band and not entry.oob:
            raise QmpError(f"The command {name} does not support OOB")
        arguments = entry.arguments(self._version)(request.arguments, "", "")
        if name == NEGOTIATE:
            self.negotiated, self.oob = True, bool(arguments.get("enable"))
            return {}
        named = {name.replace("-", "_"): value for name, value in arguments.items()}
        with self._emulated.machine.lock:
            asked = commands.Request(**vars(self._emulated), take_fd=self._take_fd)
            reply = entry.handler(asked, **named)
        return {} if reply is None else reply

    def _take_fd(self) -> int:
        fd, self._fd = self._fd, None
        if fd is None:
            raise QmpError("No file descriptor supplied via SCM_RIGHTS")
        return fd

    def _replace_fd(self, fd: int | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The members that a request has; the arguments are not looked at yet."""

    name: str
    out_of_band: bool
    arguments: object


def _check_shape(request: object, *, oob: bool) -> _Shape:
    """Return the members of ``request`` if it has those that it must have. Raises QmpError."""
    if not isinstance(request, dict):
        raise QmpError("QMP input must be a JSON object")
    verb = ""
    for member, value in request.items():
        if member == "execute" or (member == "exec-oob" and oob):
            if verb:
                raise QmpError("QMP input member 'execute' clashes with 'exec-oob'")
            if not isinstance(value, str):
                raise QmpError(f"QMP input member '{member}' must be a string")
            verb = member
        elif member == "arguments":
            if not isinstance(value, dict):
                raise QmpError("QMP input member 'arguments' must be an object")
        elif member != "id":
            raise QmpError(f"QMP input member '{member}' is unexpected")
    if not verb:
        raise QmpError("QMP input lacks member 'execute'")
    return _Shape(request[verb], verb == "exec-oob", request.get("arguments", {}))
