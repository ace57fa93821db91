"""Boot the virtual machine for some modes, and take the results off its serial line."""

import ast
import functools
import importlib.util
import io
import json
import os
import py_compile
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.kit import linux_guest, processes, tree
from tests.kit.linux_guest import UNCOUNTED
from tests.outside import packages
from tests.vm import image

_NOT = "not "
RESULT = "VMRESULT "  # what a line of results begins with; see console.py
# Seconds for a boot and all its cases: a busy machine takes several times the usual.
TIMEOUT = 1500.0
TIMEOUT_ALL = 3600.0  # for the disk and all the boots, which the first test waits for
_MIB = 1 << 20
_XFS = ("lib/libcrc32c", "fs/xfs/xfs")
_XFS_SIZE = 320 * _MIB
_IMAGES_LABEL = b"system_u:object_r:virt_image_t:s0\0"
_TESTS = (
    *("__init__.py", "backports.py", "conftest.py", "faults", "kit"),
    *("vm", "mac", "outside"),
)
# With what package data in manager/ links to.
_CARRIED = ("manager", "policies", "examples/systemd", *(f"tests/{name}" for name in _TESTS))
# TCG copies by string instructions, which these features recommend, byte by byte. Without SMAP and
# the fifth level of page tables it is no faster.
_PROCESSOR = "max,-erms,-fsrm"
_KERNEL = f"root=/dev/nvme0n1 rw console=ttyS0 loglevel=4 mitigations=off {UNCOUNTED}"
# Time passes by instructions, 2 ns each, so that no limit of time is missed on a busy host; a
# processor that waits waits in real time. It begins at a date of its own.
_OWN_CLOCK = ("-icount", "shift=1,sleep=on", "-rtc", "base=2040-06-01T01:00:00,clock=vm")


@dataclass(frozen=True)
class Mode:
    """The kernel's switches, the files of cases, and which cases to run.

    Modes with the same switches share a machine, one after the other, in the order of ``MODES``;
    systemd reboots between them.
    """

    switches: str
    cases: str  # a pattern of file names in a stage's directory, for instance mac/guest/*_cases.py
    only: str = ""  # of pytest's -m: a mark, or "not" and one
    before: str = ""  # a command of the shell


# Process 1 is a script that runs the cases and nothing else.
_ALONE = "init=/usr/sbin/mac-init panic=-1 audit=1 audit_backlog_limit=8192 log_buf_len=8M"
# Process 1 is systemd, without a security module.
_SYSTEMD = "lsm=capability quiet systemd.unit=tests.target systemd.show_status=0"

# The longest first, for two of them run side by side.
MODES = {
    # mapsave unconfined, for the cases where that matters.
    "apparmor": Mode(f"{_ALONE} security=apparmor", "mac/guest/apparmor_*cases.py", "unconfined"),
    # mapsave itself in the profile that ships: after the other, which has none.
    "apparmor-confined": Mode(
        f"{_ALONE} security=apparmor", "mac/guest/apparmor_*cases.py", only="not once"
    ),
    "selinux": Mode(f"{_ALONE} security=selinux enforcing=1", "mac/guest/selinux_*cases.py"),
    # The control: the cases that see a refusal must fail where nothing is refused.
    "selinux-off": Mode(
        f"{_ALONE} security=selinux enforcing=1",
        "mac/guest/selinux_*cases.py",
        only="refusal",
        before="echo 0 >/sys/fs/selinux/enforce",
    ),
    "systemd": Mode(_SYSTEMD, "outside/guest/first_boot_cases.py"),
    "rebooted": Mode(_SYSTEMD, "outside/guest/second_boot_cases.py"),
    "none": Mode(f"{_ALONE} lsm=capability", "mac/guest/none_cases.py"),
}


class Result(NamedTuple):
    """What came of a case: ``passed`` or ``failed``, why, and the seconds it took inside."""

    outcome: str
    words: str
    seconds: float


@dataclass(frozen=True)
class Boot:
    """What came of a mode: the result of each case, and the whole serial line of the boot."""

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
        mark = f"pytest.mark.{chosen.only.removeprefix(_NOT)}"
        wanted = not chosen.only.startswith(_NOT)
        tests = [
            each for each in tests if (mark in map(ast.unparse, each.decorator_list)) is wanted
        ]
    names = [each.name for each in tests]
    assert len(set(names)) == len(names), f"two cases of one name: {names}"
    return names


def _files(mode: Mode) -> list[Path]:
    return sorted((tree.ROOT / "tests").glob(mode.cases))


def of(stage: str) -> list[str]:
    """Return the names of the modes of a stage of the tests."""
    return [name for name, mode in MODES.items() if mode.cases.startswith(f"{stage}/")]


def together(modes: Iterable[str]) -> list[tuple[str, ...]]:
    """Return which of the modes share a boot, in the order of ``MODES``."""
    wanted = set(modes)
    shared: dict[str, tuple[str, ...]] = {}
    for name, mode in MODES.items():
        if name in wanted:
            shared[mode.switches] = (*shared.get(mode.switches, ()), name)
    return list(shared.values())


def boot(
    modes: Sequence[str], directory: Path, *arguments: str, timeout: float = TIMEOUT
) -> dict[str, Boot]:
    """Boot, run the cases of ``modes``, wait for the end; the serial line goes to ``directory``.

    ``arguments`` are further ones of pytest inside. Raises AssertionError where the machine does
    not end within ``timeout`` seconds, but not for cases that fail.
    """
    kernel, disk = image.files()
    serial = directory / "serial"
    with _carried(directory, modes, arguments) as carried, _reflinking(directory, modes) as shared:
        command = _command(kernel, disk, carried, serial, modes, shared)
        with processes.running(command, stdin=subprocess.DEVNULL) as machine:
            try:
                status: int | None = machine.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
    if status != 0:
        log = serial.read_text(errors="replace")
        raise AssertionError(f"{modes}: exit status {status}; the serial line ends:\n{log[-6000:]}")
    return finished(modes, directory)


def finished(modes: Iterable[str], directory: Path) -> dict[str, Boot]:
    """Return what came of a boot whose serial line is in ``directory``."""
    log = (directory / "serial").read_text(errors="replace")
    return {mode: Boot(_results(log, mode), log) for mode in modes}


def _results(log: str, mode: str) -> dict[str, Result]:
    lines = [line.partition(RESULT)[2] for line in log.splitlines() if RESULT in line]
    found = [each for each in map(json.loads, lines) if each["mode"] == mode]
    return {each["case"]: Result(*(each[name] for name in Result._fields)) for each in found}


def _by_systemd(modes: Sequence[str]) -> bool:
    return MODES[modes[0]].switches == _SYSTEMD


def _command(
    kernel: Path,
    disk: Path,
    carried: Path,
    serial: Path,
    modes: Sequence[str],
    shared: Path | None,
) -> list[str]:
    drives = {"root": f"file={disk},snapshot=on", "carried": f"file={carried},readonly=on"}
    if shared is not None:
        drives["shared"] = f"file={shared}"
    command = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg"),
        *("-cpu", _PROCESSOR),
        *("-smp", "1", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(kernel), "-append", f"{_KERNEL} {MODES[modes[0]].switches}"),
        *("-serial", f"file:{serial}"),
        *(_OWN_CLOCK if _by_systemd(modes) else ("-no-reboot",)),
    ]
    for name, options in drives.items():
        command += ["-drive", f"if=none,id={name},format=raw,{options}"]
        command += ["-device", f"nvme,drive={name},serial={name}"]
    return command


@contextmanager
def _carried(directory: Path, modes: Sequence[str], arguments: tuple[str, ...]) -> Iterator[Path]:
    """Make the second disk: an archive of this checkout, the commands to run, and the package."""
    run = directory / "run"
    commands = [_commands(mode, arguments) for mode in modes]
    run.write_text(_by_boot(commands) if _by_systemd(modes) else "".join(commands))
    path = directory / "carried.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(run, "run")
        if _by_systemd(modes):
            archive.add(packages.for_host(directory).deb, "mapsave.deb")
        for module in linux_guest.modules(*_XFS) if _is_confined(modes) else ():
            archive.add(module, f"modules/{module.name}")
        for name in _CARRIED:
            archive.add(tree.ROOT / name, name, filter=_without_caches)
        for name, content in _bytecode().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // _MIB) * _MIB)
    try:
        yield path
    finally:
        path.unlink()


def _is_confined(modes: Sequence[str]) -> bool:
    """Return whether a security module is active, and checkpoints are taken of confined guests."""
    return "security=" in MODES[modes[0]].switches


@contextmanager
def _reflinking(directory: Path, modes: Sequence[str]) -> Iterator[Path | None]:
    """Make a disk with an XFS, whose directory is labelled as those of images are."""
    if not _is_confined(modes):
        yield None
        return
    file, place = directory / "xfs.img", directory / "xfs"
    with file.open("xb") as made:
        made.truncate(_XFS_SIZE)
    place.mkdir()
    subprocess.run(["mkfs.xfs", "-q", file], check=True)
    subprocess.run(["mount", "-o", "loop", file, place], check=True)
    try:
        os.setxattr(place, "security.selinux", _IMAGES_LABEL)
    finally:
        subprocess.run(["umount", place], check=True)
    try:
        yield file
    finally:
        file.unlink()


def _commands(mode: str, arguments: tuple[str, ...]) -> str:
    chosen = MODES[mode]
    files = _files(chosen)
    words = ["-c", str((files[0].parent / "pytest.ini").relative_to(tree.ROOT))]
    words += [str(file.relative_to(tree.ROOT)) for file in files]
    words += ["-m", chosen.only] if chosen.only else []
    pytest = (
        f"VM_MODE={mode} PYTHONPATH=manager python3 -m pytest {shlex.join((*words, *arguments))}\n"
    )
    return f"{chosen.before}\n{pytest}"


def _by_boot(commands: list[str]) -> str:
    """Return a script that runs the next of ``commands`` and reboots; after the last it stops."""
    count = "/var/lib/boots"
    lines = [f"boot=$(cat {count} 2>/dev/null || echo 0)", f"echo $((boot + 1)) >{count}"]
    lines.append("case $boot in")
    for number, command in enumerate(commands):
        then = "reboot" if number < len(commands) - 1 else "poweroff"
        lines.append(f"{number})\n{command}systemctl --no-block {then};;")
    return "\n".join([*lines, "*) systemctl --no-block poweroff;;", "esac", ""])


@functools.cache
def _bytecode() -> dict[str, bytes]:
    """Return what is carried compiled, by its name: compiling takes ten times as long inside.

    A Python there that is of another version passes it over.
    """
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch) / "compiled"
        found: dict[str, bytes] = {}
        for name in _CARRIED:
            for file in (tree.ROOT / name).rglob("*.py"):
                source = file.relative_to(tree.ROOT)
                py_compile.compile(
                    str(file),
                    cfile=str(compiled),
                    dfile=str(source),
                    doraise=True,
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                )
                target = importlib.util.cache_from_source(str(source))
                found[target] = compiled.read_bytes()
    return found


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith("__pycache__") else member
