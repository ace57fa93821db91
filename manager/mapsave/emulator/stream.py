"""The bytes of a migration stream as ``-machine none`` writes them, and the writer they go to.

The layout was read off images that QEMU 10.0.2 saved; constants are in
:mod:`mapsave.image.stream_format`.
"""

import json
import os
import time
from collections.abc import Sequence

from mapsave.emulator.faults import StreamError
from mapsave.image import sections
from mapsave.image import stream_format as fmt

MACHINE = "none"
# The order in which QEMU 10.0.2 registers the three savevm handlers of -machine none.
TIMER_SECTION, RAM_SECTION, GLOBAL_STATE_SECTION = 0, 1, 3
RAM_FLAG_ZERO = 0x02
RAM_FLAG_PAGE = 0x08
RAM_FLAG_CONTINUE = 0x20
END_OF_RAM = fmt.U64.pack(fmt.RAM_FLAG_EOS) + sections.footer(RAM_SECTION)
_BUFFER = 32 << 10  # bytes; QEMU's QEMUFile has the same
_RUN_STATE_BYTES = 32
_Described = dict[str, object]  # of a device, or of a part of it
_Field = tuple[str, str, int]  # its name, type and size in bytes
_TIMER: Sequence[_Field] = (
    ("cpu_ticks_offset", "int64", 8),
    ("unused", "unused_buffer", 8),
    ("cpu_clock_offset", "int64", 8),
)
_GLOBAL_STATE: Sequence[_Field] = (
    ("size", "uint32", 4),
    ("runstate", "buffer", _RUN_STATE_BYTES),
    ("has_vm_was_suspended", "uint8", 1),
    ("vm_was_suspended", "uint8", 1),
    ("unused", "buffer", 66),
)


class StreamWriter:
    """A buffered writer at the file's position, as QEMU's main channel."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.written = 0  # bytes of the stream, without what skip_to() left out
        self._buffer = bytearray()
        self._position = os.lseek(fd, 0, os.SEEK_CUR)

    @property
    def position(self) -> int:
        """The absolute file offset of the next byte."""
        return self._position + len(self._buffer)

    def write(self, data: bytes) -> None:
        """Append ``data`` to the stream. Raises StreamError if the file does not take it."""
        self._buffer += data
        self.written += len(data)
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write the buffer out. Raises StreamError."""
        rest = memoryview(bytes(self._buffer))
        self._buffer.clear()
        while rest:
            try:
                written = os.write(self.fd, rest)
            except OSError as error:
                raise unable_to_write(error) from None
            self._position += written
            rest = rest[written:]

    def skip_to(self, offset: int) -> None:
        """Go on at the absolute file offset ``offset``; what lies between becomes a hole."""
        self.flush()
        self._position = os.lseek(self.fd, offset, os.SEEK_SET)


def unable_to_write(error: OSError) -> StreamError:
    """Return what QEMU says of a write that failed."""
    return StreamError(f"Unable to write to file: {os.strerror(error.errno or 0)}")


def header(capabilities: list[str], uuid: bytes | None) -> bytes:
    out = fmt.HEADER.pack(fmt.MAGIC, fmt.VERSION) + bytes([fmt.CONFIGURATION])
    out += fmt.U32.pack(len(MACHINE)) + MACHINE.encode()
    if capabilities:
        fields = fmt.U32.pack(len(capabilities)) + b"".join(map(fmt.counted, capabilities))
        out += _subsection(fmt.SUBSECTION_CAPABILITIES) + fields
    if uuid is not None:
        out += _subsection(fmt.SUBSECTION_UUID) + uuid
    return out


def _subsection(name: str) -> bytes:
    return bytes([fmt.SUBSECTION]) + fmt.counted(name) + fmt.U32.pack(1)


def section(kind: int, section_id: int, name: str = "", version: int = 0) -> bytes:
    """Return the head of a section; START and FULL carry name, instance 0 and version."""
    out = bytes([kind]) + fmt.U32.pack(section_id)
    if kind in (fmt.SECTION_START, fmt.SECTION_FULL):
        out += fmt.counted(name) + fmt.U32.pack(0) + fmt.U32.pack(version)
    return out


def devices(run_state: str, *, was_suspended: bool = False) -> bytes:
    """Return the device sections of ``-machine none``: clock, and the run state at the save."""
    ticks = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    timer = fmt.U64.pack(ticks) + bytes(8) + fmt.U64.pack(ticks)
    state = run_state.encode() + b"\0"
    # has_vm_was_suspended is 1, then vm_was_suspended, then 66 unused bytes.
    flags = bytes([1, was_suspended]) + bytes(66)
    stored = fmt.U32.pack(len(state)) + state.ljust(_RUN_STATE_BYTES, b"\0") + flags
    return (
        section(fmt.SECTION_FULL, TIMER_SECTION, "timer", 2)
        + timer
        + sections.footer(TIMER_SECTION)
        + section(fmt.SECTION_FULL, GLOBAL_STATE_SECTION, "globalstate", 1)
        + stored
        + sections.footer(GLOBAL_STATE_SECTION)
    )


def description(capabilities: list[str], uuid: bytes | None) -> bytes:
    """Return the end of the stream: end mark, and the JSON that describes the device fields."""
    text = json.dumps(
        {
            "configuration": _described_configuration(capabilities, uuid),
            "page_size": 4096,
            "devices": [_device("timer", 2, _TIMER), _device("globalstate", 1, _GLOBAL_STATE)],
        }
    ).encode()
    return bytes([fmt.EOF, fmt.VMDESCRIPTION]) + fmt.U32.pack(len(text)) + text


def _described_configuration(capabilities: list[str], uuid: bytes | None) -> _Described:
    subsections: list[_Described] = []
    if capabilities:
        # An array is described by its first element.
        names = ("capabilities", "capability", 1 + len(capabilities[0]))
        count = len(capabilities)
        fields = [("caps_count", "uint32", 4), names]
        subsections.append(_vmsd(fmt.SUBSECTION_CAPABILITIES, 1, fields, array=count))
    if uuid is not None:
        subsections.append(_vmsd(fmt.SUBSECTION_UUID, 1, [("uuid", "uint8", 16)]))
    own = [("len", "uint32", 4), ("name", "buffer", len(MACHINE))]
    described = _vmsd("configuration", 1, own)
    return {**described, "subsections": subsections} if subsections else described


def _vmsd(name: str, version: int, fields: Sequence[_Field], *, array: int = 1) -> _Described:
    """Return the description; the last field is an array of so many elements."""
    listed: list[_Described] = []
    for number, (field, kind, size) in enumerate(fields, 1):
        several = {"array_len": array} if array > 1 and number == len(fields) else {}
        listed.append({"name": field, **several, "type": kind, "size": size})
    return {"vmsd_name": name, "version": version, "fields": listed}


def _device(name: str, version: int, fields: Sequence[_Field]) -> _Described:
    return {"name": name, "instance_id": 0, **_vmsd(name, version, fields)}
