"""What an emulated QEMU is started with."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from mapsave import qemu_options, units
from mapsave.config import EmulatedVersion

Pattern = Literal["zero", "random", "sparse", "fragmented", "linux"]
_BACKEND = "memory-backend-file"
PATTERNS: tuple[str, ...] = get_args(Pattern)
PAGE = 4096  # bytes; x86's TARGET_PAGE_SIZE, and the alignment every RAM size must have


@dataclasses.dataclass(frozen=True)
class Backend:
    """A file that the RAM is a mapping of, from ``offset`` on: a private one, or ``is_shared``."""

    id: str
    size: int
    path: str
    offset: int
    is_shared: bool = False


def backend(text: str) -> Backend:
    """Return the backend that an option ``-object`` means. Raises ValueError for any other."""
    found = next(qemu_options.options(["-object", text], "object"), None)
    if found is None or found.text("qom-type") != _BACKEND:
        raise ValueError(f"{text!r}: only {_BACKEND} is emulated")
    is_shared, rom = found.is_on("share"), found.text("rom")
    if is_shared and (found.is_on("readonly") or rom not in (None, "auto", "off")):
        raise ValueError(f"{text!r}: with share=on only readonly=off,rom=off is emulated")
    if not is_shared and (not found.is_on("readonly") or rom != "off"):
        raise ValueError(f"{text!r}: with share=off only readonly=on,rom=off is emulated")
    numbers = [units.parse_size(str(found.text(key) or 0)) for key in ("size", "offset")]
    names = [str(found.text(key)) for key in ("id", "mem-path")]
    return Backend(names[0], numbers[0], names[1], numbers[1], is_shared)


@dataclasses.dataclass(frozen=True)
class EmulatorOptions:
    """The emulator's command line.

    ``memory`` is in bytes, ``throttle`` in bytes of guest pages a second (0: as fast as the file
    takes them), so that a test can catch a save half way. ``writer`` starts a thread that dirties
    pages while the guest is running. ``paused`` is QEMU's ``-S``. ``stale`` fills RAM by
    ``pattern`` even if it awaits a restore, as a memory backend file that was used before.
    ``version``: of QEMU, to play. ``backend`` is what QEMU's ``-object`` says of the RAM; as in
    QEMU the option ``machine`` names it. Raises ValueError if the memory is not a positive number
    of whole pages, or not the backend's.
    """

    qmp: Path
    memory: int
    pattern: Pattern = "zero"
    incoming: Literal["defer"] | None = None
    paused: bool = False
    writer: bool = False
    name: str | None = None
    uuid: str | None = None
    seed: int = 0
    throttle: int = 0
    stale: bool = False
    version: EmulatedVersion = "10.0"
    backend: Backend | None = None
    machine: str | None = None

    def __post_init__(self) -> None:
        if self.backend is not None and self.backend.size != self.memory:
            raise ValueError(f"the backend has {self.backend.size} bytes, not {self.memory}")
        if self.memory <= 0 or self.memory % PAGE:
            raise ValueError(f"memory must be whole pages of {PAGE} bytes, not {self.memory}")
