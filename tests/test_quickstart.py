"""The quickstart saves, restores and proves it, and leaves nothing behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import processes, tree, wait

PROOF = re.compile(r"^PROVED: the (.*) guest's \d+ MiB of RAM came back byte for byte", re.M)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the quickstart uses, in a directory with a space in its name."""
    copy = tmp_path / "check out"
    for part in ("manager", "policies", "examples"):
        shutil.copytree(tree.ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def quickstart(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it from elsewhere, with the environment that the tests run in instead of a new one."""
    temporary = checkout.parent / "temporary files"
    temporary.mkdir()
    settings = {"MAPSAVE_VENV": sys.prefix, "TMPDIR": str(temporary), **env}
    with processes.running(
        ["bash", checkout / "examples/quickstart.sh"],
        cwd="/",
        env=settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, errors = process.communicate(timeout=wait.LONG)
    assert list(temporary.iterdir()) == []
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def files(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


def proved(output: str) -> str:
    """Return the kind of guest that was proved, having compared the digests that were printed."""
    digests = re.findall(r"^RAM (?:before|after) +SHA-256 ([0-9a-f]{64})$", output, re.M)
    assert len(digests) == 2
    assert digests[0] == digests[1]
    proof = PROOF.search(output)
    assert proof, output
    return proof[1]


def test_emulated_guest_comes_back(checkout: Path) -> None:
    before = files(checkout)
    done = quickstart(checkout, MAPSAVE_GUEST="emulator")
    assert done.returncode == 0, done.stderr
    assert proved(done.stdout) == "emulated"
    assert "demo.mapsave: saved" in done.stdout  # what inspect printed
    assert files(checkout) == before


def test_real_guest_comes_back(checkout: Path) -> None:
    done = quickstart(checkout, MAPSAVE_GUEST="qemu")
    assert done.returncode == 0, done.stderr
    assert proved(done.stdout) == "real QEMU"


def test_without_qemu_it_says_so_and_emulates(checkout: Path) -> None:
    done = quickstart(checkout, PATH=path_of(checkout.parent, "bash", "dirname"))
    assert done.returncode == 0, done.stderr
    assert "emulated (no qemu-system-x86_64 on PATH)" in done.stdout
    assert proved(done.stdout) == "emulated"


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        # A restore that brings back nothing, or something else, must not be called proved.
        ("return digest.hexdigest()", "RAM differs"),
        ("content = scratch.read_bytes()", "RAM is empty"),
    ],
)
def test_what_is_not_proved_fails(checkout: Path, break_it: str, complaint: str) -> None:
    instead = {
        "return digest.hexdigest()": "return digest.hexdigest() + str(self.pid)",
        "content = scratch.read_bytes()": "content = bytes(length)",
    }[break_it]
    module = checkout / "examples/quickstart/guest.py"
    assert break_it in module.read_text()
    module.write_text(module.read_text().replace(break_it, instead))
    done = quickstart(checkout, MAPSAVE_GUEST="emulator")
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "PROVED" not in done.stdout


def test_failing_command_fails_it(checkout: Path) -> None:
    (checkout / "manager/mapsave/cli/restore.py").write_text("raise SystemExit(6)\n")
    done = quickstart(checkout, MAPSAVE_GUEST="emulator")
    assert done.returncode == 1
    assert "mapsave restore demo.mapsave --json: exit code 6" in done.stderr


def test_python_without_pip_is_explained(checkout: Path) -> None:
    """Debian's python3 without python3-venv: the module is there, ensurepip is not."""
    path = path_of(checkout.parent, "bash", "dirname")
    python = Path(path) / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    done = quickstart(checkout, PATH=path, MAPSAVE_VENV="")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def path_of(directory: Path, *commands: str) -> str:
    """Make a directory with these commands only, to be PATH."""
    place = directory / "bin"
    place.mkdir()
    for command in commands:
        found = shutil.which(command)
        assert found
        os.symlink(found, place / command)
    return str(place)
