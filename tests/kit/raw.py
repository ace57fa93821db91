"""Save and restore a QEMU by bare monitor commands, without mapsave: what it is measured against.

It also makes images as QEMU itself writes them, for tests of the reader.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.kit import files
from tests.kit.qemu import Qemu
from tests.kit.qmp import QmpClosed

MIB = 1 << 20
FDSET = 7


def save(guest: Qemu, path: Path, *, offset: int = MIB, **settings: Any) -> dict[str, Any]:
    """Save ``guest`` to ``path``, the stream at byte ``offset``; see ``configure`` for the rest.

    Leaves the guest in ``postmigrate`` with its capabilities on, and no fdset. Returns the last
    answer of ``query-migrate``; fails unless it says completed.
    """
    direct = configure(guest, **settings)
    with handed_over(guest, path, os.O_WRONLY | os.O_CREAT, direct=direct):
        guest.control.execute("migrate", uri=f"file:/dev/fdset/{FDSET},offset={offset}")
        answer = guest.wait_migration("completed")
        guest.wait_status("postmigrate")
    return answer


def restore(guest: Qemu, path: Path, *, offset: int = MIB, **settings: Any) -> None:
    """Load the image at ``path`` into ``guest``, which waits with ``-incoming defer``."""
    direct = configure(guest, **settings)
    with handed_over(guest, path, os.O_RDONLY, direct=direct):
        uri = f"file:/dev/fdset/{FDSET},offset={offset}"
        guest.control.execute("migrate-incoming", uri=uri, exit_on_error=False)
        guest.wait_migration("completed")


def configure(
    guest: Qemu, *, multifd: bool = True, direct_io: bool = True, channels: int = 2, **more: Any
) -> bool:
    """Set capabilities and parameters (``more`` are further ones); tell if O_DIRECT is used."""
    wanted = {"mapped-ram": True, "multifd": multifd, "events": True}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    guest.control.execute("migrate-set-capabilities", capabilities=capabilities)
    guest.control.execute(
        "migrate-set-parameters",
        multifd_channels=channels,
        direct_io=direct_io,
        max_bandwidth=0,
        **more,
    )
    return direct_io and multifd


@contextmanager
def handed_over(guest: Qemu, path: Path, flags: int, *, direct: bool) -> Iterator[None]:
    """Open ``path`` once, and once more with O_DIRECT if ``direct``; QEMU has them in the fdset."""
    ways = [flags, flags | os.O_DIRECT] if direct else [flags]
    for way in ways:
        with files.opened(path, way) as descriptor:
            guest.control.pass_descriptor(descriptor, FDSET)
    try:
        yield
    finally:
        # If QEMU died, that is what the caller hears of.
        with suppress(QmpClosed):
            guest.control.execute("remove-fd", fdset_id=FDSET)
