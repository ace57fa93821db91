"""Save a guest by a YAML job, look at the image, restore it, and prove that its RAM came back.

    python demo.py MAPSAVE...

MAPSAVE is the command that runs mapsave. Everything is made in a temporary directory, which is
removed at the end; every process that was started is ended, by its id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import guest

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU_MEGABYTES = 256
EMULATED_MEGABYTES = 64
# A unix socket's path has at most 107 bytes (unix(7)), of which mapsave's state takes some 50.
_LONGEST_DIRECTORY = 50


class Demo:
    """The directory of one demonstration, and the processes that it has to end."""

    def __init__(self, mapsave: list[str], directory: Path) -> None:
        self.mapsave = mapsave
        self.directory = directory
        self.pids: set[int] = set()
        self.qemu: str | None = None
        self.socket = directory / "demo.qmp"

    def run(self, *arguments: str) -> str:
        """Run mapsave, show the command and what it prints; return its output. Raises Failed."""
        words = ["--config", "manager.yaml", *arguments]
        print("$ mapsave", *arguments, flush=True)
        done = subprocess.run(
            [*self.mapsave, *words], cwd=self.directory, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            print(done.stdout, end="")
            raise guest.Failed(f"mapsave {' '.join(arguments)}: exit code {done.returncode}")
        return done.stdout

    def show(self, *arguments: str) -> None:
        """Run mapsave and print what it says."""
        print(self.run(*arguments).replace(f"{self.directory}/", ""))

    def write(self, kind: dict[str, Any]) -> None:
        """Write the configuration, with a guest of this kind, and the save job."""
        # JSON is YAML, and needs no quoting of paths with spaces.
        configuration = {"images": "images", "state": "state", "guests": {"demo": kind}}
        (self.directory / "manager.yaml").write_text(json.dumps(configuration, indent=2) + "\n")
        (self.directory / "save.yaml").write_text(
            "job: quickstart\n"
            "guests: [demo]\n"
            "save:\n"
            '  image: "{guest}.mapsave"\n'
            "  then: quit\n"
            "timeout: 60s\n"
        )

    def digest(self) -> str:
        """Pause the guest and return the digest of its RAM; leave its monitor again."""
        monitor = guest.Monitor(self.socket)
        try:
            self.pids.add(monitor.pid)
            monitor.execute("stop")
            return monitor.ram_digest(self.directory / "ram")
        finally:
            monitor.close()


def start_qemu(demo: Demo, qemu: str) -> None:
    """Start a real QEMU with random RAM, paused before its first instruction."""
    source = demo.directory / "content"
    guest.fill(source, QEMU_MEGABYTES)
    empty = guest.qemu_command(qemu, demo.socket, QEMU_MEGABYTES, None)
    # The one that is restored begins with empty RAM: what is in it then came from the image.
    demo.write({"qmp": str(demo.socket), "launch": empty})
    full = guest.qemu_command(qemu, demo.socket, QEMU_MEGABYTES, source)
    demo.pids.add(guest.start_qemu(full, demo.directory / "qemu.log").pid)


def start_emulated(demo: Demo) -> None:
    """Let mapsave start the emulated guest, as it does where one is to be saved."""
    demo.write({"emulator": {"memory": f"{EMULATED_MEGABYTES}M", "pattern": "random"}})
    demo.run("save", "demo", "--image", "start.mapsave", "--then", "resume")
    (demo.socket,) = (demo.directory / "state").glob("emulated/*.qmp")


def choose() -> tuple[str | None, str]:
    """Return the QEMU to use, None for the emulated guest, and why."""
    wanted = os.environ.get("MAPSAVE_GUEST", "")
    if wanted not in ("", "qemu", "emulator"):
        raise guest.Failed(f"MAPSAVE_GUEST is {wanted!r}: expected 'qemu' or 'emulator'")
    if wanted == "emulator":
        return None, "asked for by MAPSAVE_GUEST"
    qemu, words = guest.good_qemu()
    if wanted == "qemu" and qemu is None:
        raise guest.Failed(words)
    return qemu, words


def demonstrate(demo: Demo) -> None:
    """Do it all. Raises Failed."""
    started = time.monotonic()
    qemu, words = choose()
    if qemu:
        print(f"guest: real {words}, {QEMU_MEGABYTES} MiB of random RAM", flush=True)
        start_qemu(demo, qemu)
    else:
        print(f"guest: emulated ({words}), {EMULATED_MEGABYTES} MiB of random RAM", flush=True)
        start_emulated(demo)
    before = demo.digest()
    megabytes = QEMU_MEGABYTES if qemu else EMULATED_MEGABYTES
    if before == hashlib.sha256(bytes(megabytes * guest.MIB)).hexdigest():
        raise guest.Failed("the guest's RAM is empty: nothing would be proved")

    demo.show("job", "run", "save.yaml")
    demo.show("inspect", "demo.mapsave")
    restored = json.loads(demo.run("restore", "demo.mapsave", "--json"))
    demo.pids.add(int(restored["pid"]))
    print(f"restored in {restored['duration_s']:.2f} s, now {restored['run_state']}\n")
    after = demo.digest()
    if before != after:
        raise guest.Failed(f"RAM differs: SHA-256 {before} before, {after} after")
    print(f"RAM before  SHA-256 {before}")
    print(f"RAM after   SHA-256 {after}")
    print(
        f"PROVED: the {'real QEMU' if qemu else 'emulated'} guest's {megabytes} MiB of RAM"
        f" came back byte for byte ({time.monotonic() - started:.1f} s in all)"
    )


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a directory whose path is short enough for the sockets in it; remove it at the end."""
    made = Path(tempfile.mkdtemp(prefix="mapsave-quickstart-"))
    if len(os.fsencode(made)) > _LONGEST_DIRECTORY:
        made.rmdir()
        made = Path(tempfile.mkdtemp(prefix="mapsave-quickstart-", dir="/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def end_all(demo: Demo) -> None:
    """End every guest that was started, also one whose id mapsave did not report before it died."""
    for each in {demo.socket, *(demo.directory / "state").glob("emulated/*.qmp")}:
        with contextlib.suppress(OSError):  # nothing listens there any more
            demo.pids.add(guest.owner(each))
    for pid in demo.pids:
        guest.end(pid)


def main() -> int:
    """Run the demonstration; 0 if RAM came back."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with temporary_directory() as directory:
        demo = Demo(sys.argv[1:], directory)
        try:
            demonstrate(demo)
        except (guest.Failed, OSError) as error:
            print(f"quickstart: FAILED: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            end_all(demo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
