"""What is mapped where in a process's memory, and how much of a file it has changed for itself.

The source is ``/proc/PID/maps``, and ``smaps``, which has the same heads (proc_pid_maps(5)).
"""

import ctypes
import dataclasses
import mmap
import os
import re
from collections.abc import Iterator
from typing import NamedTuple, Self

# Addresses, offset, device, inode, access.
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ...(?P<kind>.) ([0-9a-f]+) (\S+) (\d+)\b")
_CHANGED = re.compile(r"Anonymous: +(\d+) kB")


class File(NamedTuple):
    """Which file it is: its device and inode as ``maps`` has them.

    On btrfs that device is another one than stat(2) tells, which has one for each subvolume.
    """

    device: str
    inode: int

    @classmethod
    def of(cls, fd: int) -> Self:
        """Return which file is open, not empty: as a mapping of our own has it. Raises OSError."""
        with mmap.mmap(fd, 1, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as own:
            held = ctypes.c_char.from_buffer(own)  # which needs it to be writable
            address = ctypes.addressof(held)
            del held
            found = next(each for each in everything(os.getpid()) if address in each.addresses)
        return cls(found.device, found.inode)


@dataclasses.dataclass(frozen=True)
class Mapping:
    """A part of a process's memory: its addresses, and of which file from which byte on it is.

    Without a file ``inode`` is 0. ``changed``: so many bytes are the process's own by now; known
    only where ``of_file`` has looked. ``is_shared``: what it writes goes into the file.
    """

    pid: int
    addresses: range
    device: str
    inode: int
    offset: int
    changed: int = 0
    is_shared: bool = False

    @property
    def end(self) -> int:
        """The byte of the file after the last one that is mapped."""
        return self.offset + len(self.addresses)

    @property
    def file(self) -> str | None:
        """The path of the file that is mapped, whatever its name is by now; None without one."""
        if not self.inode:
            return None
        return f"/proc/{self.pid}/map_files/{self.addresses.start:x}-{self.addresses.stop:x}"

    def is_of(self, file: File) -> bool:
        """Return whether that is what is mapped."""
        return (self.device, self.inode) == file


def everything(pid: int) -> list[Mapping]:
    """Return the mappings of a process, by their addresses. Raises OSError."""
    found = (_mapping(pid, line) for line in _lines(pid, "maps"))
    return [each for each in found if each is not None]


def of_file(pid: int, file: File) -> list[Mapping]:
    """Return what a process maps of a file, with how much of it was changed.

    Takes no time for memory that was not touched. Raises OSError.
    """
    found: list[Mapping] = []
    is_ours = False
    for line in _lines(pid, "smaps"):
        if (mapping := _mapping(pid, line)) is not None:
            is_ours = mapping.is_of(file)
            if is_ours:
                found.append(mapping)
        elif is_ours and (changed := _CHANGED.match(line)) is not None:
            found[-1] = dataclasses.replace(found[-1], changed=int(changed[1]) << 10)
    return found


def _lines(pid: int, name: str) -> Iterator[str]:
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        yield from file


def _mapping(pid: int, line: str) -> Mapping | None:
    """Return the mapping of a line that is the head of one."""
    if (head := _HEAD.match(line)) is None:
        return None
    first, end, offset = (int(text, 16) for text in head.group(1, 2, 4))
    is_shared = head["kind"] == "s"
    return Mapping(pid, range(first, end), head[5], int(head[6]), offset, is_shared=is_shared)
