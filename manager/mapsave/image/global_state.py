"""The run state that a guest had when QEMU ended its stream: its section ``globalstate``.

After a save QEMU reports ``postmigrate`` only, and of a guest that was paused while suspended to
RAM no more than ``paused``. Only the stream has both (QEMU 10.0, ``migration/global_state.c``).
"""

import dataclasses
import os
import re

_CHUNK = 1 << 20
# Behind it are the states of devices, and QEMU's description of them in JSON.
_MOST = 256 * _CHUNK
# Name, instance 0, version 1; length of the word, the word, has_vm_was_suspended and its value.
_SECTION = re.compile(
    rb"\x04.{4}\x0bglobalstate\x00{4}\x00\x00\x00\x01(?P<length>.{4})(?P<word>[a-z\-]{1,31}\x00)",
    re.DOTALL,
)
_WORD = 32
_LONGEST = 5 + 12 + 8 + 4 + _WORD + 2


@dataclasses.dataclass(frozen=True)
class GlobalState:
    """``run_state`` as ``query-status`` names it, and whether the guest was suspended to RAM."""

    run_state: str
    was_suspended: bool


def read(fd: int, start: int = 0) -> GlobalState | None:
    """Return the state in the stream that begins at ``start`` and ends the file.

    It is searched for from the end, before which there is nothing but devices; None where it is
    not found. Raises OSError.
    """
    end = os.fstat(fd).st_size
    least = max(start, end - _MOST)
    while end > least:
        begin = max(least, end - _CHUNK)
        # A section may begin in this chunk and end in the one after it, which was read before.
        state = parse(os.pread(fd, end - begin + _LONGEST, begin))
        if state is not None:
            return state
        end = begin
    return None


def parse(data: bytes) -> GlobalState | None:
    """Return the first such section that is whole within ``data``."""
    for match in _SECTION.finditer(data):
        word = match["word"]
        after = match.start("word") + _WORD
        if int.from_bytes(match["length"], "big") == len(word) and len(data) >= after + 2:
            return GlobalState(word[:-1].decode("ascii"), data[after : after + 2] == b"\x01\x01")
    return None
