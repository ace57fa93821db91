"""The QMP commands: name, argument schema, handler.

Source of names, argument types and replies: QEMU's ``qapi/*.json`` of 10.0, observed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mapsave.emulator import schema
from mapsave.emulator.faults import COMMAND_NOT_FOUND, DEVICE_NOT_FOUND, QmpError

if TYPE_CHECKING:
    from mapsave.emulator.incoming import Incoming
    from mapsave.emulator.machine import Machine
    from mapsave.emulator.outgoing import Outgoing

PACKAGE = "mapsave emulator"
VERSION = {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": PACKAGE}
_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclasses.dataclass(frozen=True)
class Emulated:
    """A machine and its two migrations."""

    machine: Machine
    outgoing: Outgoing
    incoming: Incoming


@dataclasses.dataclass(frozen=True)
class Request(Emulated):
    """What a handler gets: the machine, checked arguments, and how to take the pending fd."""

    arguments: dict[str, Any]
    take_fd: Callable[[], int | None]


Handler = Callable[[Request], Any]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: ``arguments`` is an object schema; ``oob`` ones may be executed out of band."""

    arguments: schema.Type
    handler: Handler
    oob: bool = False


TABLE: dict[str, Command] = {}


def command(
    name: str, arguments: schema.Type | None = None, *, oob: bool = False
) -> Callable[[Handler], Handler]:
    """Register the decorated handler as the command ``name``."""

    def register(handler: Handler) -> Handler:
        TABLE[name] = Command(arguments or schema.struct(), handler, oob)
        return handler

    return register


def find(name: str) -> Command:
    """Return the command ``name``. Raises QmpError if there is none."""
    if name not in TABLE:
        raise QmpError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
    return TABLE[name]


def constant(name: str, reply: Any) -> None:
    """Register a command without arguments that always answers ``reply``."""
    TABLE[name] = Command(schema.struct(), lambda _: reply)


constant("query-version", VERSION)
constant("query-kvm", {"enabled": True, "present": True})
constant("query-replay", {"mode": "none", "icount": 0})
constant("query-target", {"arch": "x86_64"})
constant("query-current-machine", {"wakeup-suspend-support": False})
for _name in ("query-memory-devices", "query-block", "query-blockstats", "query-cpus-fast"):
    constant(_name, [])
for _name in ("query-named-block-nodes", "query-iothreads", "query-pci"):
    constant(_name, [])
for _name in ("query-block-jobs", "query-block-exports", "query-jobs"):
    constant(_name, [])


@command("query-commands")
def _query_commands(request: Request) -> Any:
    return [{"name": name} for name in reversed(TABLE)]


@command("query-name")
def _query_name(request: Request) -> Any:
    name = request.machine.options.name
    return {} if name is None else {"name": name}


@command("query-uuid")
def _query_uuid(request: Request) -> Any:
    return {"UUID": request.machine.options.uuid or _NO_UUID}


@command("query-status")
def _query_status(request: Request) -> Any:
    machine = request.machine
    return {"status": machine.run_state.value, "running": machine.running}


@command("query-chardev")
def _query_chardev(request: Request) -> Any:
    filename = f"unix:{request.machine.options.qmp},server=on"
    return [{"frontend-open": True, "filename": filename, "label": "compat_monitor0"}]


@command("query-memory-size-summary")
def _query_memory_size(request: Request) -> Any:
    return {"base-memory": request.machine.memory.size, "plugged-memory": 0}


@command("query-memdev")
def _query_memdev(request: Request) -> Any:
    return [
        {
            "share": False,
            "reserve": True,
            "prealloc": False,
            "host-nodes": [],
            "size": request.machine.memory.size,
            "merge": True,
            "dump": True,
            "policy": "default",
            "id": "ram",
        }
    ]


@command("x-query-ramblock")
def _query_ramblock(request: Request) -> Any:
    memory = request.machine.memory
    head = f"{'Block Name':>24} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18} "
    row = f"{'ram':>24} {'4 KiB':>8}  0x{0:016x} 0x{memory.size:016x} 0x{memory.size:016x} "
    text = f"{head}{'HVA':>18}  RO\n{row}0x{memory.address:016x}  rw\n"
    return {"human-readable-text": text}


@command("qom-get", schema.struct(path=schema.string, property=schema.string))
def _qom_get(request: Request) -> Any:
    path, name = request.arguments["path"], request.arguments["property"]
    if path not in ("/machine", "machine"):
        raise QmpError(f"Device '{path}' not found", DEVICE_NOT_FOUND)
    if name != "type":
        raise QmpError(f"Property 'none-machine.{name}' not found")
    return "none-machine"


@command("stop")
def _stop(request: Request) -> Any:
    request.machine.command_stop()
    return {}


@command("cont")
def _cont(request: Request) -> Any:
    request.machine.command_cont()
    return {}


@command("quit")
def _quit(request: Request) -> Any:
    request.machine.monitor.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    request.machine.monitor.shut_down(0)
    return {}


@command("system_wakeup")
def _wakeup(request: Request) -> Any:
    raise QmpError("wake-up from suspend is not supported by this guest")  # of -machine none


@command("system_powerdown")
def _powerdown(request: Request) -> Any:
    request.machine.monitor.emit("POWERDOWN")  # -machine none has nothing that would act on it
    return {}


def _taken(request: Request) -> int:
    fd = request.take_fd()
    if fd is None:
        raise QmpError("No file descriptor supplied via SCM_RIGHTS")
    return fd


@command("add-fd", schema.struct(fdset_id_=schema.integer, opaque_=schema.string))
def _add_fd(request: Request) -> Any:
    fd = _taken(request)
    arguments = request.arguments
    return request.machine.fdsets.add(fd, arguments.get("fdset-id"), arguments.get("opaque"))


@command("remove-fd", schema.struct(fdset_id=schema.integer, fd_=schema.integer))
def _remove_fd(request: Request) -> Any:
    request.machine.fdsets.remove(request.arguments["fdset-id"], request.arguments.get("fd"))
    return {}


@command("query-fdsets")
def _query_fdsets(request: Request) -> Any:
    return request.machine.fdsets.listing()


@command("getfd", schema.struct(fdname=schema.string))
def _getfd(request: Request) -> Any:
    fd = _taken(request)
    name = request.arguments["fdname"]
    if name[:1].isdigit():
        os.close(fd)
        raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
    old = request.machine.named_fds.pop(name, None)
    if old is not None:
        os.close(old)
    request.machine.named_fds[name] = fd
    return {}


@command("closefd", schema.struct(fdname=schema.string))
def _closefd(request: Request) -> Any:
    name = request.arguments["fdname"]
    fd = request.machine.named_fds.pop(name, None)
    if fd is None:
        raise QmpError(f"File descriptor named '{name}' not found")
    os.close(fd)
    return {}


@command("pmemsave", schema.struct(val=schema.uint64, size=schema.uint64, filename=schema.string))
def _pmemsave(request: Request) -> Any:
    """Guest physical memory: RAM from address 0 on, and nothing, read as zero, after it."""
    address, size, filename = (request.arguments[name] for name in ("val", "size", "filename"))
    memory = request.machine.memory
    try:
        with open(filename, "wb") as target:
            if address < memory.size:
                target.write(memory.view[address : min(address + size, memory.size)])
            target.truncate(size)
    except OSError as error:
        raise QmpError(f"Could not open '{filename}': {os.strerror(error.errno or 0)}") from None
    except OverflowError:
        raise QmpError("An IO error has occurred") from None
    return {}
