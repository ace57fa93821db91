"""Restoring: the destination side of migration, for a machine started with ``-incoming defer``.

As in QEMU the image is loaded in the main loop, so that QMP does not answer in the meantime. What
went wrong first is on stderr; ``error-desc`` has the errno's text, and in 11.1 causes after it.

Sources: QEMU's ``migration/migration.c`` and ``migration/savevm.c`` of 10.0, observed.
"""

import errno
import os

from mapsave.emulator import faults, stream
from mapsave.emulator.address import Address
from mapsave.emulator.faults import LoadError, QmpError
from mapsave.emulator.machine import Machine, RunState
from mapsave.emulator.ram_load import RamLoad
from mapsave.emulator.stream_reader import StreamReader
from mapsave.image import global_state
from mapsave.image import stream_format as fmt

_SUSPENDED = b"\x01\x01"  # has_vm_was_suspended, vm_was_suspended


class Incoming:
    """The destination side. It gets one try, as in QEMU."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._version = machine.version
        self.status = "none"
        self.error: str | None = None
        self._started = False
        self._exit_on_error = True
        self._fds: list[int] = []
        self._stored_state: str = RunState.RUNNING
        self._was_suspended = False

    def check_possible(self) -> None:
        """Raise QmpError if ``migrate-incoming`` has no place here."""
        if self._started:
            raise QmpError("The incoming migration has already been started")
        if self._machine.run_state is not RunState.INMIGRATE:
            raise QmpError("'-incoming' was not specified on the command line")

    def start(self, address: Address, *, exit_on_error: bool) -> None:
        """Open the file; it is loaded once the reply is sent. Raises QmpError.

        After an error the status stays ``setup``, and another try is refused, as in QEMU.
        """
        if self.status != "none":
            raise QmpError(f"Illegal migration incoming state: {self.status}")
        self._exit_on_error = exit_on_error
        self._enter("setup")
        try:
            self._open(address)
        except QmpError:
            self._close()
            raise
        self._started = True
        self._machine.monitor.defer(self._load)

    def query(self) -> dict[str, object]:
        if self.status == "none":
            return {}
        result: dict[str, object] = {"status": self.status}
        if self.status == "failed" and self.error is not None:
            result["error-desc"] = self.error
        return result

    def _open(self, address: Address) -> None:
        machine = self._machine
        self._fds.append(machine.fdsets.open_file(address.filename, os.O_RDONLY))
        os.lseek(self._fds[0], min(address.offset, (1 << 63) - 1), os.SEEK_SET)
        if machine.capabilities["multifd"]:
            flags = os.O_RDONLY | (os.O_DIRECT if machine.uses_direct_io else 0)
            for _ in range(machine.parameters["multifd-channels"]):
                self._fds.append(machine.fdsets.open_file(address.filename, flags))

    def _load(self) -> None:
        on = self._machine.capabilities
        self._enter("active")
        reader = StreamReader(self._fds[0])
        ram = RamLoad(
            self._machine.memory,
            reader,
            self._version,
            mapped=on["mapped-ram"],
            ignore_shared=on["x-ignore-shared"],
        )
        if on["multifd"]:
            ram.use_channels(self._fds[1:])
        try:
            self._load_stream(reader, ram)
        except (LoadError, OSError) as error:
            self._fail(error if isinstance(error, LoadError) else LoadError(errno.EIO))
        else:
            self._finish()
        finally:
            ram.close()
            self._close()

    def _close(self) -> None:
        for fd in self._fds:
            self._machine.fdsets.close(fd)
        self._fds = []

    def _load_stream(self, reader: StreamReader, ram: RamLoad) -> None:
        try:
            magic, version = reader.u32(), reader.u32()
        except OSError:  # a directory
            magic = version = 0
        if magic != fmt.MAGIC:
            raise self._version.load_error("magic", found=magic)
        if version != fmt.VERSION:
            raise self._version.load_error("version", found=version)
        ram.foreign = self._configuration(reader) != stream.MACHINE
        while not self._section(reader, ram):
            pass

    def _configuration(self, reader: StreamReader) -> str:
        if (found := reader.u8()) != fmt.CONFIGURATION:
            raise self._version.load_error("no-configuration", found=found)
        size = reader.u32()
        reader.require(self._version.load_error("configuration-ended", field="len"))
        machine = reader.read(min(size, 4096)).decode("utf-8", "replace")
        reader.require(self._version.load_error("configuration-ended", field="name"))
        received: set[str] = set()
        while reader.peek_type(fmt.SUBSECTION):
            reader.u8()
            received |= self._subsection(reader)
        for name in (fmt.CAPABILITY_IGNORE_SHARED, fmt.CAPABILITY_MAPPED_RAM):
            here, there = self._machine.capabilities[name], name in received
            if here != there:
                state, other = ("on", "off") if here else ("off", "on")
                raise self._version.load_error(
                    "capabilities-differ", name=name, here=state, there=other
                )
        return machine

    def _subsection(self, reader: StreamReader) -> set[str]:
        name = reader.counted()
        reader.u32()  # version
        if name == fmt.SUBSECTION_CAPABILITIES:
            return self._received_capabilities(reader)
        if name == fmt.SUBSECTION_UUID:
            reader.read(16)
        elif name == fmt.SUBSECTION_PAGE_BITS:
            reader.u32()
        else:
            raise self._version.load_error("unknown-subsection", name=name)
        return set()

    def _received_capabilities(self, reader: StreamReader) -> set[str]:
        names: set[str] = set()
        known = self._version.capabilities
        count = reader.u32()
        reader.require(self._version.load_error("capabilities-ended"))
        for _ in range(min(count, len(known))):
            size = reader.u8()
            name = reader.read(size)[: reader.last_read].decode("utf-8", "replace")
            if name not in known:
                raise self._version.load_error("unknown-capability", name=name)
            names.add(name)
        return names

    def _section(self, reader: StreamReader, ram: RamLoad) -> bool:
        """Load one section; return True if it was the last that matters. Raises StreamError."""
        kind = reader.u8()
        reader.require(self._version.load_error("section-ended"))
        if kind == fmt.EOF:
            return True
        if kind in (fmt.SECTION_START, fmt.SECTION_FULL):
            return self._new_section(reader, ram, kind)
        if kind in (fmt.SECTION_PART, fmt.SECTION_END):
            section_id = reader.u32()
            reader.require(self._version.load_error("part-ended"))
            if section_id != self._ram_id:
                raise self._version.load_error("unknown-part", id=section_id)
            ram.section("ram-part", section_id)
            self._footer(reader, "ram", section_id)
        elif kind == fmt.COMMAND:
            reader.u32()
            reader.require(self._version.load_error("command-ended"))
        else:
            raise self._version.load_error("unknown-type", kind=kind)
        return False

    _ram_id = -1

    def _new_section(self, reader: StreamReader, ram: RamLoad, kind: int) -> bool:
        section_id, name = reader.u32(), reader.counted()
        instance, version = reader.u32(), reader.u32()
        reader.require(self._version.load_error("head-ended"))
        if name == fmt.RAM_SECTION:
            self._ram_id = section_id
            ram.section("ram", section_id)
            self._footer(reader, name, section_id)
            return False
        if ram.foreign:
            # Devices of another machine type are skipped; only the run state is of interest.
            rest = stream.section(kind, section_id, name, version) + reader.rest()
            if (state := global_state.parse(rest)) is not None:
                self._stored_state, self._was_suspended = state.run_state, state.was_suspended
            return True
        self._device(reader, name, instance)
        self._footer(reader, name, section_id)
        return False

    def _device(self, reader: StreamReader, name: str, instance: int) -> None:
        if name == "timer":
            reader.read(24)
            field = "cpu_ticks_offset"
        elif name == "globalstate":
            reader.u32()
            self._stored_state = reader.read(32).partition(b"\0")[0].decode("utf-8", "replace")
            self._was_suspended = reader.read(68)[:2] == _SUSPENDED
            field = "runstate"
        else:
            raise self._version.load_error("unknown-section", name=name, instance=instance)
        ended = self._version.load_error("device-ended", name=name, field=field, instance=instance)
        reader.require(ended)

    def _footer(self, reader: StreamReader, name: str, section_id: int) -> None:
        mark = reader.u8()
        if reader.failed:
            wrong = "check_section_footer: Read section footer failed: -5"
        elif mark != fmt.SECTION_FOOTER:
            wrong = f"Missing section footer for {name}"
        elif (found := reader.u32()) != section_id:
            ids = f"read 0x{found:x} expected 0x{section_id:x}"
            wrong = f"Mismatched section id in footer for {name} - {ids}"
        else:
            return
        inner = LoadError(errno.EINVAL, reports=[wrong])
        raise self._version.load_error("footer", inner, id=section_id)

    def _fail(self, error: LoadError) -> None:
        for line in error.reports:
            faults.report(line)
        self.error = f"load of migration failed: {error.desc}"
        self._enter("failed")
        if self._exit_on_error:
            faults.report(self.error)
            self._machine.monitor.shut_down(1)

    def _finish(self) -> None:
        """Set the run state: the stored one, or running if the machine may start by itself."""
        machine = self._machine
        machine.was_suspended = self._was_suspended
        if self._stored_state in (RunState.RUNNING, RunState.SUSPENDED):
            if machine.autostart:
                machine.start()
            else:
                machine.run_state = RunState.PAUSED
        else:
            is_known = self._stored_state in RunState.__members__.values()
            machine.run_state = RunState(self._stored_state) if is_known else RunState.PAUSED
        self._enter("completed")

    def _enter(self, status: str) -> None:
        self.status = status
        self._machine.migration_event(status)
