"""What a private libvirtd (``libvirtd.py``) keeps in its directory, and which processes are its."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def belonging_to(directory: Path) -> list[int]:
    """Return the processes in a daemon's mount namespace, and QEMUs with files in ``directory``.

    A mount is listed by its path within its file system (proc_pid_mountinfo(5)), whose last part
    is unique.
    """
    name = directory.name.encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        # Gone in the meantime, or not ours to look at.
        with suppress(OSError):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            command = (entry / "cmdline").read_bytes()
            is_qemu = b"qemu-system" in command.partition(b"\0")[0]
            if name in (entry / "mountinfo").read_bytes() or (is_qemu and name in command):
                found.append(int(entry.name))
    return found


@contextmanager
def capabilities_kept(kind: str, place: Path, user: int) -> Iterator[None]:
    """Give a new libvirt what an earlier one found out about QEMU, which takes it seconds.

    libvirt itself checks whether that is still true, and asks QEMU again if not.
    """
    cache = Path(os.environ.get("MAPSAVE_TEST_CACHE") or Path.home() / ".cache" / "mapsave-tests")
    kept, found = cache / f"libvirt-{kind}", place / "capabilities"
    found.mkdir(parents=True)
    if kept.exists():
        shutil.copytree(kept, found, dirs_exist_ok=True)
    give(found, user)
    try:
        yield
    finally:
        kept.mkdir(parents=True, exist_ok=True)
        # Another worker may copy what is kept just now, so no file there may go again.
        with tempfile.TemporaryDirectory(prefix=f"libvirt-{kind}-", dir=cache) as beside:
            for path in found.iterdir():
                shutil.copyfile(path, Path(beside) / path.name).replace(kept / path.name)


def give(directory: Path, user: int) -> None:
    """Make ``user`` the owner of ``directory`` and of all that is in it."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user, user)
