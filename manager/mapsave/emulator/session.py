"""One QMP client: negotiation, requests in order, replies, the pending descriptor.

Source: QEMU's ``docs/interop/qmp-spec.rst``, ``monitor/qmp.c`` and ``qapi/qmp-dispatch.c`` of
10.0; every text observed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mapsave.emulator import commands, migration_commands, schema
from mapsave.emulator.faults import COMMAND_NOT_FOUND, QmpError
from mapsave.emulator.json_stream import JsonError, JsonStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mapsave.emulator.commands import Emulated

GREETING = {"QMP": {"version": commands.VERSION, "capabilities": ["oob"]}}
NEGOTIATE = "qmp_capabilities"
_NEGOTIATION = schema.struct(enable_=schema.array(schema.enum("oob")))
_MEMBERS = ("execute", "exec-oob", "arguments", "id")

migration_commands.register()
commands.TABLE[NEGOTIATE] = commands.Command(_NEGOTIATION, lambda _: {})


class Session:
    """The state of one connection; :meth:`receive` yields what to do, :meth:`answer` does it."""

    def __init__(self, emulated: Emulated) -> None:
        self._emulated = emulated
        self._json = JsonStream()
        self._fd: int | None = None
        self.negotiated = False
        self.oob = False

    def close(self) -> None:
        """The client is gone; a descriptor that was not used is closed."""
        self._replace_fd(None)

    def receive(self, data: bytes, fds: list[int]) -> Iterator[Any]:
        """Yield the requests that ``data`` completes.

        Of ``fds`` the first becomes the pending one, in place of an older; the rest are closed.
        """
        for extra in fds[1:]:
            os.close(extra)
        if fds:
            os.set_blocking(fds[0], True)
            self._replace_fd(fds[0])
        yield from self._json.feed(data)

    def answer(self, request: Any) -> dict[str, Any]:
        """Execute ``request`` and return the reply."""
        identifier: dict[str, Any] = {}
        if isinstance(request, dict) and "id" in request:
            identifier = {"id": request["id"]}
        try:
            if isinstance(request, JsonError):
                raise QmpError(str(request))
            return {"return": self._execute(_check_shape(request, oob=self.oob)), **identifier}
        except QmpError as error:
            problem = {"class": error.error_class, "desc": error.desc}
            return {**identifier, "error": problem}

    def _execute(self, request: dict[str, Any]) -> Any:
        out_of_band = "exec-oob" in request
        name = request["exec-oob" if out_of_band else "execute"]
        if not self.negotiated and (name != NEGOTIATE or name not in commands.TABLE):
            raise QmpError(
                f"Expecting capabilities negotiation with '{NEGOTIATE}'", COMMAND_NOT_FOUND
            )
        if self.negotiated and name == NEGOTIATE:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND
            )
        entry = commands.find(name)
        if out_of_band and not entry.oob:
            raise QmpError(f"The command {name} does not support OOB")
        arguments = entry.arguments(request.get("arguments", {}), "", "")
        if name == NEGOTIATE:
            self.negotiated, self.oob = True, "oob" in arguments.get("enable", [])
            return {}
        emulated = self._emulated
        with emulated.machine.lock:
            return entry.handler(
                commands.Request(
                    machine=emulated.machine,
                    outgoing=emulated.outgoing,
                    incoming=emulated.incoming,
                    arguments=arguments,
                    take_fd=self._take_fd,
                )
            )

    def _take_fd(self) -> int | None:
        fd, self._fd = self._fd, None
        return fd

    def _replace_fd(self, fd: int | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd


def _check_shape(request: Any, *, oob: bool) -> dict[str, Any]:
    """Return ``request`` if it has the members that a request has. Raises QmpError."""
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
    return request
