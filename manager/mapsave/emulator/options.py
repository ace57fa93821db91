"""What an emulated QEMU is started with."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from mapsave.config import EmulatedVersion

Pattern = Literal["zero", "random", "sparse", "fragmented", "linux"]
PATTERNS: tuple[str, ...] = get_args(Pattern)
PAGE = 4096  # bytes; x86's TARGET_PAGE_SIZE, and the alignment every RAM size must have


@dataclasses.dataclass(frozen=True)
class EmulatorOptions:
    """The emulator's command line.

    ``memory`` is in bytes, ``throttle`` in bytes of guest pages a second (0: as fast as the file
    takes them), so that a test can catch a save half way. ``writer`` starts a thread that dirties
    pages while the guest is running. ``paused`` is QEMU's ``-S``. ``stale`` fills RAM by
    ``pattern`` even if it awaits a restore, as a memory backend file that was used before.
    ``version``: of QEMU, to play. Raises ValueError if the memory is not a positive number of whole
    pages.
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

    def __post_init__(self) -> None:
        if self.memory <= 0 or self.memory % PAGE:
            raise ValueError(f"memory must be whole pages of {PAGE} bytes, not {self.memory}")
