"""The QMP commands: name, argument schema, handler.

Source of names, argument types and replies: QEMU's ``qapi/*.json`` of 10.0, observed; where 11.1
differs is in ``versions``.
"""

import dataclasses
import os
from collections.abc import Callable

from mapsave.emulator import schema
from mapsave.emulator.faults import DEVICE_NOT_FOUND, QmpError
from mapsave.emulator.incoming import Incoming
from mapsave.emulator.machine import Machine
from mapsave.emulator.memory import GuestMemory
from mapsave.emulator.outgoing import Outgoing
from mapsave.emulator.versions import Version

_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclasses.dataclass(frozen=True)
class Emulated:
    machine: Machine
    outgoing: Outgoing
    incoming: Incoming


@dataclasses.dataclass(frozen=True)
class Request(Emulated):
    """What a handler gets: the machine, and how to take the pending descriptor."""

    take_fd: Callable[[], int]


# Gets the request and, by name, the arguments that were given, ``a_b`` being ``a-b``; they are as
# the schema says. Returns the reply; None is an empty one.
Handler = Callable[..., object]
Arguments = schema.Checked[dict[str, object]]  # of an object
NO_ARGUMENTS = schema.struct()
NO_PROPERTIES: dict[str, object] = {}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: ``arguments`` returns a version's schema; ``oob``: may be executed out of band."""

    arguments: Callable[[Version], Arguments]
    handler: Handler
    oob: bool = False


TABLE: dict[str, Command] = {}


def command(
    name: str,
    arguments: Arguments = NO_ARGUMENTS,
    *,
    by_version: Callable[[Version], Arguments] | None = None,
    oob: bool = False,
) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        TABLE[name] = Command(by_version or (lambda _: arguments), handler, oob)
        return handler

    return register


def refusing(desc: str) -> Handler:
    """Return a handler that always answers with an error."""

    def handler(request: Request, **_: object) -> object:
        raise QmpError(desc)

    return handler


command("query-version")(lambda request: request.machine.version.reply)
command("query-kvm")(lambda _: {"enabled": True, "present": True})
command("query-replay")(lambda _: {"mode": "none", "icount": 0})
command("query-target")(lambda _: {"arch": "x86_64"})
command("query-current-machine")(lambda _: {"wakeup-suspend-support": False})
for _name in (
    *("query-memory-devices", "query-block", "query-blockstats", "query-cpus-fast"),
    *("query-iothreads", "query-pci"),
    *("query-block-jobs", "query-block-exports", "query-jobs"),
):
    command(_name)(lambda _: [])
command("query-named-block-nodes", schema.struct(flat_=schema.boolean))(lambda _, **__: [])
command("query-commands")(lambda _: [{"name": name} for name in reversed(TABLE)])
command("query-uuid")(lambda request: {"UUID": request.machine.options.uuid or _NO_UUID})
command("query-fdsets")(lambda request: request.machine.fdsets.listing())
command("query-memory-size-summary")(
    lambda request: {"base-memory": request.machine.memory.size, "plugged-memory": 0}
)
command("query-status")(
    lambda request: {"status": request.machine.run_state, "running": request.machine.running}
)
command("stop")(lambda request: request.machine.command_stop())
command("cont")(lambda request: request.machine.command_cont())
# What a machine of type none lacks: a guest that wakes up, or acts on the power button.
command("system_wakeup")(refusing("wake-up from suspend is not supported by this guest"))
command("system_powerdown")(lambda request: request.machine.monitor.emit("POWERDOWN"))


@command("query-name")
def _query_name(request: Request) -> object:
    name = request.machine.options.name
    return {} if name is None else {"name": name}


@command("query-chardev")
def _query_chardev(request: Request) -> object:
    filename = f"unix:{request.machine.options.qmp},server=on"
    return [{"frontend-open": True, "filename": filename, "label": "compat_monitor0"}]


@command("query-memdev")
def _query_memdev(request: Request) -> object:
    return [
        {
            "share": request.machine.memory.is_shared,
            "reserve": True,
            "prealloc": False,
            "host-nodes": [],
            "size": request.machine.memory.size,
            "merge": True,
            "dump": True,
            "policy": "default",
            "id": request.machine.memory.block,
        }
    ]


@command("x-query-ramblock")
def _query_ramblock(request: Request) -> object:
    memory = request.machine.memory
    head = f"{'Block Name':>24} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18} "
    row = f"{memory.block:>24} {'4 KiB':>8}  0x{0:016x} 0x{memory.size:016x} 0x{memory.size:016x} "
    text = f"{head}{'HVA':>18}  RO\n{row}0x{memory.address:016x}  rw\n"
    return {"human-readable-text": text}


@command("qom-get", schema.struct(path=schema.string, property=schema.string))
def _qom_get(request: Request, path: str, property: str) -> object:
    memory = request.machine.memory
    if path in ("/machine", "machine"):
        kind, known = "none-machine", NO_PROPERTIES
    elif path == f"/objects/{memory.block}":
        kind, known = _backend(memory)
    else:
        raise QmpError(f"Device '{path}' not found", DEVICE_NOT_FOUND)
    known = {**known, "type": kind}
    if property not in known:
        raise QmpError(f"Property '{kind}.{property}' not found")
    return known[property]


def _backend(memory: GuestMemory) -> tuple[str, dict[str, object]]:
    """Return the type of the object that the RAM is of, and its properties."""
    found: dict[str, object] = {"size": memory.size, "share": memory.is_shared}
    found |= {"merge": True, "dump": True, "prealloc": False, "reserve": True}
    if memory.backend is None:
        return "memory-backend-ram", found
    own = memory.backend
    found |= {"mem-path": own.path, "offset": own.offset, "align": 0, "pmem": False}
    found |= {"discard-data": False, "readonly": not own.is_shared}
    return "memory-backend-file", {**found, "rom": "off"}


@command("quit")
def _quit(request: Request) -> None:
    request.machine.monitor.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    request.machine.monitor.shut_down(0)


@command("add-fd", schema.struct(fdset_id_=schema.integer, opaque_=schema.string))
def _add_fd(request: Request, fdset_id: int | None = None, opaque: str | None = None) -> object:
    return request.machine.fdsets.add(request.take_fd(), fdset_id, opaque)


@command("remove-fd", schema.struct(fdset_id=schema.integer, fd_=schema.integer))
def _remove_fd(request: Request, fdset_id: int, fd: int | None = None) -> None:
    request.machine.fdsets.remove(fdset_id, fd)


@command("getfd", schema.struct(fdname=schema.string))
def _getfd(request: Request, fdname: str) -> None:
    fd = request.take_fd()
    if fdname[:1].isdigit():
        os.close(fd)
        raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
    old = request.machine.named_fds.pop(fdname, None)
    if old is not None:
        os.close(old)
    request.machine.named_fds[fdname] = fd


@command("closefd", schema.struct(fdname=schema.string))
def _closefd(request: Request, fdname: str) -> None:
    fd = request.machine.named_fds.pop(fdname, None)
    if fd is None:
        raise QmpError(f"File descriptor named '{fdname}' not found")
    os.close(fd)


@command("pmemsave", schema.struct(val=schema.uint64, size=schema.uint64, filename=schema.string))
def _pmemsave(request: Request, val: int, size: int, filename: str) -> None:
    """Guest physical memory: RAM from address 0 on, and nothing, read as zero, after it."""
    memory = request.machine.memory
    try:
        with open(filename, "wb") as target:
            if val < memory.size:
                target.write(memory.view[val : min(val + size, memory.size)])
            target.truncate(size)
    except OSError as error:
        raise QmpError(f"Could not open '{filename}': {os.strerror(error.errno or 0)}") from None
    except OverflowError:
        raise QmpError("An IO error has occurred") from None
