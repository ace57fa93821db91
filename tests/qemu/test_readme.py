"""The README's configuration, run with a real QEMU: what is printed is what the README shows."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.kit import cli, processes, qemu, tree, wait

README = (tree.ROOT / "README.md").read_text()
CONFIGURATION = README.partition("# /etc/mapsave/manager.yaml\n")[2].partition("```")[0]
SHOWN = README.partition("A real run ")[2].partition("```\n")[2].partition("```")[0]
IMAGE = re.compile(r"web01-\d{8}T\d{6}Z\.mapsave")
# What depends on the host, on QEMU and on the time: the rest is the form, which is mapsave's.
_MASKS = (
    (re.compile(r"\d+(\.\d+)? ([KMGT]i)?B\b"), "SIZE"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s)\b"), "TIME"),
    (re.compile(r"^  QEMU .*"), "  QEMU"),
    (re.compile(r"^(ok   (direct_io|label|limits):|no checkpoint:) .*"), r"\1"),
    (re.compile(r"\d[\d.:+TZ-]*"), "N"),
    (re.compile(r"#+"), "#"),
    (re.compile(r" +"), " "),
)
# Rows of RAM blocks and of runs of pages: which there are is QEMU's affair, and the guest's.
_ROW = re.compile(r"\S+ SIZE N N|N N #")


def run_as_shown(site: cli.Site) -> str:
    """Run the README's commands in ``site``; return what it would show of them."""
    text = []
    with qemu.directory_for() as sockets:
        guest = yaml.safe_load(CONFIGURATION)["guests"]["web01"]
        socket = sockets / "web01.qmp"
        launch = list(guest["launch"])
        if not qemu.has_kvm():
            launch[launch.index("kvm")] = "tcg"
        site.add_guest("web01", socket, launch=launch)
        monitor = ("-qmp", f"unix:{socket},server=on,wait=off")
        with _guest([*launch, *monitor], socket) as process:
            wait.until(socket.exists, what="the guest's monitor")
            image = ""
            for command in re.findall(r"^\$ mapsave (.*)$", SHOWN, re.MULTILINE):
                words = [image if IMAGE.fullmatch(w) else w for w in command.split()]
                done = site.run("--quiet", *words)  # on a busy host it would say how far it is
                if found := IMAGE.search(done.stdout):
                    image = found[0]
                if command == "save web01":
                    process.wait(wait.LONG)
                said = done.stdout + done.stderr
                text.append(f"$ mapsave {IMAGE.sub(image, command)}\n{said}")
        places = {str(site.images): "/var/lib/mapsave/images", str(sockets): "/run/qemu"}
    shown = "".join(text)
    for ours, theirs in places.items():
        shown = shown.replace(ours, theirs)
    return shown


@contextmanager
def _guest(command: list[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the guest; whoever listens at ``socket`` at the end, restored or not, is ended."""
    quiet = subprocess.DEVNULL
    try:
        with processes.running(command, stdout=quiet, stderr=quiet) as process:
            yield process
    finally:
        for pid, words in processes.strays().items():
            if str(socket) in words:
                processes.end(pid)


def form(text: str) -> list[str]:
    """Return the lines as they are at any time, on any host."""
    lines = []
    for line in text.splitlines():
        for pattern, word in _MASKS:
            line = pattern.sub(word, line)
        line = "ROW" if _ROW.fullmatch(line.rstrip()) else line.rstrip()
        if line != "ROW" or lines[-1] != "ROW":
            lines.append(line)
    return lines


def test_the_run_that_is_shown_is_what_is_printed(site: cli.Site) -> None:
    assert form(run_as_shown(site)) == form(SHOWN)
