"""Saving: QEMU's migration thread, its states and its events.

Source: QEMU's ``migration/migration.c`` and ``migration/file.c`` of 10.0, observed; where 11.1
differs is in ``versions``.
"""

import os
import signal
import threading
import time
import uuid

from mapsave.emulator import faults, rate, stream
from mapsave.emulator.address import Address
from mapsave.emulator.faults import ChannelError, QmpError, StreamError
from mapsave.emulator.machine import LIVE, Machine, RunState
from mapsave.emulator.ram_save import MappedRamSave, PlainRamSave, RamSave, Throttle
from mapsave.image import sections
from mapsave.image import stream_format as fmt

IN_PROGRESS = ("setup", "active", "pre-switchover", "device", "cancelling", "failing")
_CANCELLABLE = ("setup", "active", "pre-switchover", "device")
_SLICE = 0.05  # seconds that one iteration sends before it looks around


class Outgoing:
    """The source side of migration. One save at a time; the last result stays readable."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._version = machine.version
        self._status_lock = threading.Lock()
        self.status = "none"
        self.error: str | None = None
        self.is_registered = False  # for `yank`: from `migrate` until all is cleaned up
        self._proceed = threading.Event()
        self._fds: list[int] = []
        self._channel_fds: list[int] = []
        self._left_fds: list[int] = []  # of channels that were never cleaned up
        self._ram: RamSave | None = None
        self._writer: stream.StreamWriter | None = None
        self._pace = rate.Pace(0)
        self._throttle = Throttle(0)
        self._old_state: RunState | None = None
        self._thread: threading.Thread | None = None

    @property
    def in_progress(self) -> bool:
        """True from ``migrate`` until the outcome is known."""
        return self.status in IN_PROGRESS

    def start(self, address: Address) -> None:
        """Open the file and start saving. Raises QmpError; then the status is ``failed`` too."""
        if self.is_registered:
            raise QmpError("duplicate yank instance")
        self.error = None
        self._old_state = None
        self._ram = None
        self._proceed.clear()
        self._enter("setup")
        try:
            fd = self._open_main(address)
        except QmpError as error:
            self.error = error.desc
            self._enter_failed()
            raise
        self.is_registered = True
        self._fds = [fd]
        self._pace = rate.Pace(self._machine.parameters["max-bandwidth"])
        self._throttle = Throttle(self._machine.options.throttle)
        self._thread = threading.Thread(
            target=self._run, args=(address,), name="live_migration", daemon=True
        )
        self._thread.start()

    def cancel(self) -> None:
        if self.status not in _CANCELLABLE:
            return
        wanted = len(self._channel_fds)
        if wanted and wanted != self._machine.parameters["multifd-channels"]:
            faults.die("multifd-channels was changed during a save that is now cancelled")
        # The migration thread may take it a step further meanwhile.
        while (before := self.status) in _CANCELLABLE and not self._change(before, "cancelling"):
            pass
        if before not in _CANCELLABLE:
            return  # it came to its end
        if before == "pre-switchover":
            self.error = self._version.interrupted
            faults.report(self.error)
        self._throttle.lifted.set()
        self._pace.hurry()
        self._proceed.set()

    def proceed(self, state: str) -> None:
        """The command ``migrate-continue``. Raises QmpError if the save is not in ``state``."""
        if state != self.status:
            raise QmpError(f"Migration not in expected state: {self.status}")
        if state == "pre-switchover":
            self._proceed.set()

    def query(self) -> dict[str, object]:
        if self.status == "none":
            return {}
        result: dict[str, object] = {"status": self.status}
        ram, writer, done = self._ram, self._writer, self.status == "completed"
        if ram and writer and self.status not in ("setup", "failing", "failed", "cancelled"):
            result |= self._pace.report(self._machine.parameters["downtime-limit"], done=done)
            if self._version.reports_remaining and not done:
                result["remaining"] = ram.bytes_left
            result["ram"] = self._pace.ram(ram, writer.written, ram.total_bytes, done=done)
        if self.error is not None:
            result["error-desc"] = self.error
        return result

    # Everything below runs in the migration thread.

    def _run(self, address: Address) -> None:
        try:
            self._setup(address)
            if self._change("setup", "active"):
                if self._machine.capabilities["background-snapshot"]:
                    self._snapshot()
                else:
                    self._iterate()
        except StreamError as error:
            self._fail(error)
        with self._machine.lock:
            self._put_guest_back()
            self._change("failing", "failed")
            self._clean_up()

    def _clean_up(self) -> None:
        """Close what was opened, by the capabilities that are in force now, as QEMU does.

        With multifd switched off since, its channels stay as they are, and open; switched on since,
        those that there never were are cleaned up as well.
        """
        has_multifd = self._machine.capabilities["multifd"]
        if has_multifd and not self._channel_fds:
            faults.die("multifd was switched on before a migration without it was cleaned up")
        if self._ram is not None:
            self._ram.close()
        if not has_multifd:
            self._left_fds, self._channel_fds = self._channel_fds, []
        for fd in self._fds:
            if fd not in self._left_fds:
                self._machine.fdsets.close(fd)
        self._fds, self._channel_fds = [], []
        self._change("cancelling", "cancelled")
        self.is_registered = False

    def _setup(self, address: Address) -> None:
        on = self._machine.capabilities
        if on["multifd"]:
            self._open_channels(address)
        writer = self._writer = stream.StreamWriter(self._fds[0])
        writer.write(stream.header(self._recorded(), self._uuid()))
        writer.write(
            stream.section(fmt.SECTION_START, stream.RAM_SECTION, fmt.RAM_SECTION, fmt.RAM_VERSION)
        )
        machine = self._machine
        ram: RamSave
        if not on["mapped-ram"]:
            ram = PlainRamSave(
                machine.memory, writer, self._throttle, ignore_shared=on["x-ignore-shared"]
            )
        else:
            ram = MappedRamSave(
                machine.memory,
                writer,
                self._throttle,
                channels=self._channel_fds,
                detection=machine.parameters.zero_page_detection,
                ignore_shared=on["x-ignore-shared"],
                marks_left_out=self._version.knows_left_out,
            )
        if self._version.tells_first_pass and not on["background-snapshot"]:
            self._sync(ram)
        elif not self._version.tells_first_pass:
            ram.sync()
        try:
            ram.setup()
            writer.write(stream.END_OF_RAM)
            writer.flush()
        except StreamError:
            raise StreamError("ram_save_setup failed: Input/output error") from None
        finally:
            self._ram = ram
        if on["return-path"]:
            self.error = "Unable to read from file: Bad file descriptor"
        self._pace.begin()

    def _iterate(self) -> None:
        ram, pace_, on = self._ram, self._pace, self._machine.capabilities
        assert ram is not None and self._writer is not None
        while self.status == "active":
            ram.check()
            if self._may_complete(ram):
                ram.settle()  # what a throttle holds back must not keep the monitor waiting
                if self.status != "active":
                    return
                if not (on["switchover-ack"] and self._version.waits_for_acknowledgement):
                    self._complete(ram)
                    return
                # The destination must agree, and a file never will: the save goes on forever.
                pace_.idle()
            self._writer.write(stream.section(fmt.SECTION_PART, stream.RAM_SECTION))
            self._send_slice(ram)
            self._writer.write(stream.END_OF_RAM)
            self._writer.flush()
            pace_.rest(self._sent(ram), self._machine.parameters)

    def _may_complete(self, ram: RamSave) -> bool:
        """Return whether what is left can be sent while the guest is stopped."""
        pace_ = self._pace
        if not self._version.syncs_before_stop:
            if pace_.threshold > ram.bytes_left:
                self._sync(ram)
        elif ram.bytes_left <= pace_.threshold:
            self._sync(ram)
            pace_.foresee(ram.bytes_left)
        return ram.bytes_left == 0 or ram.bytes_left < pace_.threshold

    def _send_slice(self, ram: RamSave) -> None:
        until = time.monotonic() + _SLICE
        while self.status == "active" and time.monotonic() < until:
            if self._pace.exhausted(self._sent(ram)):
                return
            if not (pages := ram.take()):
                return
            ram.send(pages)
            if self._pace.limit:
                ram.settle()  # what is under way must count, or the limit would not hold
            ram.check()

    def _complete(self, ram: RamSave) -> None:
        """Stop the guest and send the rest, devices last."""
        machine, writer = self._machine, self._writer
        assert writer is not None
        with machine.lock:
            state = self._old_state = machine.run_state
            self._pace.stopped()
            machine.stop(RunState.FINISH_MIGRATE, force=True)
        if not self._switch_over():
            return
        with machine.lock:
            writer.write(sections.SWITCHOVER)
            if self._version.syncs_before_stop:
                ram.sync(counted=False)
            else:
                self._sync(ram)
            writer.write(stream.section(fmt.SECTION_END, stream.RAM_SECTION))
            while pages := ram.take():
                ram.send(pages)
                ram.check()
            ram.finish()
            writer.write(stream.END_OF_RAM)
            self._write_devices(stream.devices(state, was_suspended=machine.was_suspended))
            if self.error is not None:
                raise StreamError(self.error)
            self._pace.finished()
            if self._change("device", "completed"):
                machine.run_state = RunState.POSTMIGRATE

    def _snapshot(self) -> None:
        """Save the state of one moment while the guest runs on.

        QEMU protects RAM against writing and copies pages as the guest touches them. Here the
        guest is halted instead until its pages are written; events and file are the same. There
        is no end of the RAM section, and so, in QEMU 10.0.2, mapped-ram's bitmap is never written:
        such an image restores to empty RAM.
        """
        machine, ram, writer = self._machine, self._ram, self._writer
        assert ram is not None and writer is not None
        with machine.lock:
            state = self._old_state = machine.run_state
            if state is RunState.PRELAUNCH:
                reason = "invalid runstate transition: 'prelaunch' -> 'paused'"
                faults.die(reason, signal.SIGABRT)
            self._pace.stopped()
            devices = stream.devices(state, was_suspended=machine.was_suspended)
            machine.stop(RunState.PAUSED)
        while self.status == "active" and ram.bytes_left:
            writer.write(stream.section(fmt.SECTION_PART, stream.RAM_SECTION))
            self._send_slice(ram)
            writer.write(stream.END_OF_RAM)
            self._pace.rest(self._sent(ram), machine.parameters)
        with machine.lock:
            if state is RunState.RUNNING and self.status == "active":
                machine.start()
        self._write_devices(devices)
        self._pace.finished()
        self._change("active", "completed")

    def _write_devices(self, devices: bytes) -> None:
        assert self._writer is not None
        self._writer.write(devices)
        self._writer.write(stream.description(self._recorded(), self._uuid()))
        self._writer.flush()

    def _recorded(self) -> list[str]:
        """Return the capabilities that a stream records, in the order of their list."""
        recorded = (fmt.CAPABILITY_IGNORE_SHARED, fmt.CAPABILITY_MAPPED_RAM)
        return [name for name in recorded if self._machine.capabilities[name]]

    def _switch_over(self) -> bool:
        if not self._machine.capabilities["pause-before-switchover"]:
            return self._change("active", "device")
        if self._change("active", "pre-switchover"):
            self._proceed.wait()
        return self._change("pre-switchover", "device")

    def _fail(self, error: StreamError) -> None:
        is_channel = isinstance(error, ChannelError)
        lines = self._version.channel_reports if is_channel else error.reports
        for line in (*lines, error.desc):
            faults.report(line)
        if self.status == "cancelling":
            return
        self.error = self.error or error.desc
        first = "failing" if self._version.fails_in_two_steps else "failed"
        self._enter(first)
        if is_channel:
            # QEMU reports a failed channel twice: the channel, then the migration thread.
            self._machine.migration_event(first)

    def _enter_failed(self) -> None:
        if self._version.fails_in_two_steps:
            self._enter("failing")
        self._enter("failed")

    def _put_guest_back(self) -> None:
        machine, state = self._machine, self._old_state
        if self.status == "completed" or state is None:
            return
        if state in LIVE:
            machine.start()
        elif machine.run_state is RunState.FINISH_MIGRATE:
            machine.run_state = state

    def _sync(self, ram: RamSave) -> None:
        ram.sync()
        if self._machine.capabilities["events"]:
            self._machine.monitor.emit("MIGRATION_PASS", {"pass": ram.counters.syncs})

    def _sent(self, ram: RamSave) -> int:
        assert self._writer is not None
        return self._writer.written + ram.counters.multifd_bytes + ram.counters.page_bytes

    def _uuid(self) -> bytes | None:
        if not self._machine.capabilities["validate-uuid"] or self._machine.options.uuid is None:
            return None
        return uuid.UUID(self._machine.options.uuid).bytes

    def _open_main(self, address: Address) -> int:
        flags = os.O_WRONLY | os.O_CREAT
        fd = self._machine.fdsets.open_file(address.filename, flags)
        try:
            os.ftruncate(fd, address.offset)
            os.lseek(fd, address.offset, os.SEEK_SET)
        except (OSError, OverflowError) as error:
            self._machine.fdsets.close(fd)
            number = error.errno if isinstance(error, OSError) else 22
            raise QmpError(
                f"failed to truncate migration file to offset {address.offset:x}:"
                f" {os.strerror(number or 0)}"
            ) from None
        return fd

    def _open_channels(self, address: Address) -> None:
        machine = self._machine
        if self._left_fds:
            reason = "multifd was switched off before the save before this one was cleaned up"
            faults.die(reason, signal.SIGABRT)
        flags = os.O_WRONLY | (os.O_DIRECT if machine.uses_direct_io else 0)
        try:
            for _ in range(machine.parameters["multifd-channels"]):
                fd = machine.fdsets.open_file(address.filename, flags)
                self._fds.append(fd)
                self._channel_fds.append(fd)
        except QmpError as error:
            faults.die(f"a multifd channel cannot be opened ({error.desc})")

    def _enter(self, status: str) -> None:
        with self._status_lock:
            self.status = status
        self._machine.migration_event(status)

    def _change(self, old: str, new: str) -> bool:
        with self._status_lock:
            if self.status != old:
                return False
            self.status = new
        self._machine.migration_event(new)
        return True
