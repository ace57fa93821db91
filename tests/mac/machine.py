"""Boot the virtual machine with one security module, and take the results off its serial line."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kit import processes
from tests.mac import image

if TYPE_CHECKING:
    from collections.abc import Iterator

GUEST = Path(__file__).parent / "guest"
RESULT = "MACRESULT "  # what a line of results begins with; see guest/console.py
# Seconds for a boot and all its cases: a busy machine takes several times the usual.
TIMEOUT = 600.0
TIMEOUT_ALL = 2400.0  # for the disk and all the boots, which the first test waits for
_MIB = 1 << 20
_TESTS = ("__init__.py", "backports.py", "conftest.py", "faults", "kit", "mac")
_CARRIED = ("manager", "policies", *(f"tests/{name}" for name in _TESTS))
_KERNEL = (
    "root=/dev/nvme0n1 rw init=/usr/sbin/mac-init console=ttyS0 loglevel=4 audit=1 "
    "audit_backlog_limit=8192 log_buf_len=8M mitigations=off panic=-1"
)


@dataclass(frozen=True)
class Mode:
    """A boot: the kernel's switches, the files of cases in ``guest``, and which cases to run."""

    switches: str
    cases: str  # a pattern of file names
    only: str = ""  # an expression of pytest's -m


# The longest first, for two of them run side by side.
MODES = {
    # mapsave itself in the profile that ships.
    "apparmor-confined": Mode("security=apparmor mapsave.confined", "apparmor_*cases.py"),
    "selinux": Mode("security=selinux enforcing=1", "selinux_*cases.py"),
    # The control: the cases that see a refusal must fail where nothing is refused.
    "selinux-off": Mode("security=selinux enforcing=0", "selinux_*cases.py", "refusal"),
    # mapsave unconfined, for the cases where that matters.
    "apparmor": Mode("security=apparmor", "apparmor_*cases.py", "unconfined"),
    "none": Mode("lsm=capability", "none_cases.py"),
}


class Result(NamedTuple):
    """What came of a case: ``passed`` or ``failed``, why, and the seconds it took inside."""

    outcome: str
    words: str
    seconds: float


@dataclass(frozen=True)
class Boot:
    """What came of a boot: the result of each case, and the whole serial line."""

    results: dict[str, Result]
    log: str

    def outcome(self, case: str) -> str:
        """Return ``passed`` or ``failed``; fail with the serial line where there is no result."""
        assert case in self.results, f"{case}: no result; the serial line ends:\n{self.log[-6000:]}"
        return self.results[case].outcome

    def assert_passed(self, case: str) -> None:
        """Fail with what was said inside unless the case passed."""
        outcome = self.outcome(case)
        assert outcome == "passed", f"{case} {outcome} inside:\n{self.results[case].words}"


def cases(mode: str) -> list[str]:
    """Return the names of the cases of a mode, from their source: they need not be imported."""
    chosen = MODES[mode]
    nodes = [node for file in _files(chosen) for node in ast.parse(file.read_text()).body]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    tests = [function for function in functions if function.name.startswith("test_")]
    if chosen.only:
        mark = f"pytest.mark.{chosen.only}"
        tests = [each for each in tests if mark in map(ast.unparse, each.decorator_list)]
    names = [each.name for each in tests]
    assert len(set(names)) == len(names), f"two cases of one name: {names}"
    return names


def _files(mode: Mode) -> list[Path]:
    return sorted(GUEST.glob(mode.cases))


def boot(mode: str, directory: Path, *arguments: str, timeout: float = TIMEOUT) -> Boot:
    """Boot, run the cases of ``mode``, wait for the end; the serial line goes to ``directory``.

    ``arguments`` are further ones of pytest inside. Raises AssertionError where the machine does
    not end within ``timeout`` seconds, but not for cases that fail.
    """
    kernel, disk = image.files()
    serial = directory / f"{mode}.serial"
    with _carried(directory, MODES[mode], arguments) as carried:
        command = _command(kernel, disk, carried, serial, MODES[mode].switches)
        with processes.running(command, stdin=subprocess.DEVNULL) as machine:
            try:
                status: int | None = machine.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
    log = serial.read_text(errors="replace")
    assert status == 0, f"{mode}: exit status {status}; the serial line ends:\n{log[-6000:]}"
    return Boot(_results(log), log)


def _results(log: str) -> dict[str, Result]:
    lines = [line.partition(RESULT)[2] for line in log.splitlines() if RESULT in line]
    found = [json.loads(line) for line in lines]
    return {each["case"]: Result(*(each[name] for name in Result._fields)) for each in found}


def _command(kernel: Path, disk: Path, carried: Path, serial: Path, switches: str) -> list[str]:
    drives = {"root": f"file={disk},snapshot=on", "carried": f"file={carried},readonly=on"}
    command = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35"),
        *("-smp", "1", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-kernel", str(kernel), "-append", f"{_KERNEL} {switches}"),
        *("-serial", f"file:{serial}"),
    ]
    for name, options in drives.items():
        command += ["-drive", f"if=none,id={name},format=raw,{options}"]
        command += ["-device", f"nvme,drive={name},serial={name}"]
    return command


@contextmanager
def _carried(directory: Path, mode: Mode, arguments: tuple[str, ...]) -> Iterator[Path]:
    """Make the second disk: a plain archive of this checkout and the command to run."""
    words = ["-c", "tests/mac/guest/pytest.ini"]
    words += [str(file.relative_to(image.CHECKOUT)) for file in _files(mode)]
    words += ["-m", mode.only] if mode.only else []
    run = directory / "run"
    run.write_text(f"exec python3 -m pytest {shlex.join((*words, *arguments))}\n")
    path = directory / "carried.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(run, "run")
        for name in _CARRIED:
            archive.add(image.CHECKOUT / name, name, filter=_without_caches)
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // _MIB) * _MIB)
    try:
        yield path
    finally:
        path.unlink()


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith("__pycache__") else member
