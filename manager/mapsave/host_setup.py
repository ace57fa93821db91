"""What ``mapsave setup`` puts into the host's directories, from what is installed with mapsave.

A package of the distribution brings units; where mapsave was installed by pip or pipx, these
functions put them down, with the path of the command as it is here. Each file begins with a line
that says whence it is: only such files are replaced or removed. One that is the same but for that
line is the administrator's, and stays.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mapsave import errors

_MARK = "# Written by 'mapsave setup', which also removes it (--undo).\n"
_IN_EXAMPLES = "/usr/local/bin/"  # where the commands are in the files that are installed
_UNITS = Path("/etc/systemd/system")
# Where a package of the distribution has its units.
_PACKAGED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
# What ProtectHome= of the units hides, systemd.exec(5).
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
# The profiles that are loaded: the name and the mode of one a line.
_LOADED = Path("/sys/kernel/security/apparmor/profiles")
_SELINUX = Path("/sys/fs/selinux/enforce")
_TIMEOUT = 300.0  # seconds, for a policy of SELinux is compiled as a whole


@dataclass(frozen=True)
class Plan:
    """Files by their paths, commands after they are written, before they go, and after that."""

    files: dict[Path, str]
    do: list[list[str]] = field(default_factory=list)
    before_undo: list[list[str]] = field(default_factory=list)
    after_undo: list[list[str]] = field(default_factory=list)
    # What is left to the administrator.
    then: str = ""


def systemd(root: Path, *, libvirt: bool) -> Plan:
    """Return what installs the units; with ``libvirt`` also the drop-ins for its guests.

    Raises UsageError where a package has installed the units, and there is nothing to add.
    """
    source = _shipped("systemd")
    packaged = any(_below(root, place / "mapsaved.service").exists() for place in _PACKAGED)
    if packaged and not libvirt:
        raise errors.UsageError(
            "the units are there already: a package has installed them",
            hint="enable them with systemctl; --libvirt adds the drop-ins for libvirt guests",
        )
    commands = _commands()
    files: dict[Path, str] = {}
    for path in sorted(each for each in source.rglob("*") if each.is_file()):
        name = path.relative_to(source)
        if name.parts[0] in ("sysusers.d", "tmpfiles.d"):
            target = Path("/etc") / name
        elif name.parts[0] == "libvirt":
            target = _UNITS / name.relative_to("libvirt")
        else:
            target = _UNITS / name
        if libvirt if name.parts[0] == "libvirt" else not packaged:
            files[target] = path.read_text().replace(_IN_EXAMPLES, f"{commands}/")
    here = root == Path("/")
    within = [] if here else [f"--root={root}"]
    reload = [["systemctl", "daemon-reload"]] if here and _BOOTED.exists() else []
    if packaged:
        return Plan(files, do=reload, after_undo=reload)
    fleet = ["mapsaved-fleet-agent.service", "mapsaved-fleet-scheduler.service"]
    stop = ["systemctl", "disable", "--now", *fleet, "mapsaved.socket", "mapsaved.service"]
    # Not stopped: to stop the one is to save all guests, and it refuses.
    disable = ["systemctl", "disable", "mapsave-save-all.service", "mapsave-restore-all.service"]
    return Plan(
        files,
        do=[
            ["systemd-sysusers", *within, "mapsave.conf"],
            ["systemd-tmpfiles", *within, "--create", "mapsave.conf"],
            *reload,
        ],
        before_undo=[stop, disable] if reload else [],
        after_undo=reload,
        then="systemctl enable --now mapsaved.service mapsave-save-all.service; "
        "systemctl enable mapsave-restore-all.service",
    )


def apparmor(root: Path) -> Plan:
    """Return what confines mapsave, and lets profiles of guests include what guests need."""
    source, target = _shipped("policies") / "apparmor", Path("/etc/apparmor.d")
    profile = target / "usr.bin.mapsave"
    files = {
        target / name: (source / name).read_text()
        for name in ("usr.bin.mapsave", "abstractions/mapsave-guest")
    }
    environment = _commands().resolve().parent
    if str(environment) not in ("/usr", "/usr/local"):
        files[target / "tunables/mapsave.d/setup"] = f"@{{mapsave_environments}} += {environment}\n"
    active = root == Path("/") and _text(_APPARMOR) == "Y"
    loaded = any(line.startswith("mapsave (") for line in _text(_LOADED).splitlines())
    unload = active and loaded and _is_ours(profile)
    return Plan(
        files,
        do=[["apparmor_parser", "--replace", str(profile)]] if active else [],
        before_undo=[["apparmor_parser", "--remove", str(profile)]] if unload else [],
        then="set NoNewPrivileges=no for the units (docs/mac.md), and restart mapsaved",
    )


def selinux(*, tcg: bool) -> Plan:
    """Return what adds the rules of mapsave to the policy; ``tcg``: for guests without KVM too.

    Raises Unsupported where SELinux is not active, Refused.
    """
    if not _SELINUX.exists():
        raise errors.Unsupported(
            "SELinux is not active here, so there is no policy to add rules to"
        )
    source = _shipped("policies") / "selinux"
    modules = ["mapsave", *(["mapsave_tcg"] if tcg else [])]
    loaded = _run(["semodule", "--list"]).split()
    return Plan(
        {},
        do=[["semodule", "--install", str(source / f"{name}.cil")] for name in modules],
        before_undo=[
            ["semodule", "--remove", name] for name in ("mapsave_tcg", "mapsave") if name in loaded
        ],
    )


def install(plan: Plan, root: Path, show: Callable[[str], None], *, dry_run: bool) -> None:
    """Write the files and run the commands of a plan; on failure the files are as before.

    ``show`` gets each thing that is done, or with ``dry_run`` would be. Raises Refused where a file
    of somebody else is in the way or a command fails, NotPermitted.
    """
    to_write: dict[Path, str] = {}
    for name, text in plan.files.items():
        path, content = _below(root, name), f"{_MARK}{text}"
        before = _content(path)
        if before == text.encode():
            show(f"leave {path}, which is there already")
        elif path.exists() and not _is_ours(path):
            raise errors.Refused(
                f"{str(path)!r} is there already, and not from mapsave setup",
                hint="move it away, then run this again",
            )
        elif before != content.encode():
            to_write[path] = content
    with contextlib.ExitStack() as undo:
        for path, text in to_write.items():
            show(f"write {path}")
            if not dry_run:
                undo.callback(_restore, path, _content(path))
                _write(path, text)
        for command in plan.do:
            show(f"run {' '.join(command)}")
            if not dry_run:
                _run(command)
        undo.pop_all()


def remove(plan: Plan, root: Path, show: Callable[[str], None], *, dry_run: bool) -> None:
    """Undo what ``install`` did: commands, then the files that are from it. Raises Refused."""
    placed = [_below(root, path) for path in plan.files]
    ours = [path for path in placed if path.exists() and _is_ours(path)]
    for path in placed:
        if path.exists() and path not in ours:
            show(f"leave {path}, which is not from mapsave setup")
    for path in [each for each in ours if each.parent.name == "abstractions"]:
        if (other := _includer(path, ours)) is not None:
            show(f"leave {path}, which {other} includes")
            ours.remove(path)
    if plan.files and not ours:
        return
    for command in plan.before_undo:
        show(f"run {' '.join(command)}")
        if not dry_run:
            _run(command)
    for path in ours:
        show(f"remove {path}")
        if dry_run:
            continue
        with errors.explained(f"remove {str(path)!r}", path, os.W_OK, otherwise=errors.Refused):
            path.unlink()
        if ".service.d" in path.parent.name:
            with contextlib.suppress(OSError):  # others may have drop-ins there too
                path.parent.rmdir()
    for command in plan.after_undo:
        show(f"run {' '.join(command)}")
        if not dry_run:
            _run(command)


def _shipped(name: str) -> Path:
    from importlib import resources  # slow to import, and rarely needed

    return Path(str(resources.files("mapsave"))) / name


def _commands() -> Path:
    """Return the directory of the commands of this installation. Raises UsageError."""
    for place in (Path(sys.argv[0]).parent, Path(sys.executable).parent, Path(_IN_EXAMPLES)):
        if place.is_absolute() and all((place / name).exists() for name in ("mapsave", "mapsaved")):
            break
    else:
        raise errors.UsageError(
            "cannot find the commands mapsave and mapsaved of this installation",
            hint="install mapsave with pip or pipx, and run its command mapsave by its whole path",
        )
    real = place.resolve()
    for hidden in _HIDDEN:
        if real.is_relative_to(hidden):
            raise errors.UsageError(
                f"mapsave is in {str(real)!r}, which the sandbox of its units hides",
                hint="install it for all users: PIPX_HOME=/opt/pipx "
                "PIPX_BIN_DIR=/usr/local/bin pipx install ...",
            )
    return place


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _is_ours(path: Path) -> bool:
    return _text(path, len(_MARK)).startswith(_MARK.strip())


def _includer(path: Path, but: list[Path]) -> Path | None:
    """Return a file with rules of AppArmor, none of ``but``, that includes an abstraction."""
    line = re.compile(rf'^\s*#?include\s.*\babstractions/{re.escape(path.name)}[>"]', re.MULTILINE)
    for other in sorted(path.parents[1].rglob("*")):
        if other.is_file() and other not in but and line.search(_text(other)):
            return other
    return None


def _text(path: Path, length: int = -1) -> str:
    """Return the beginning of a file without white space around; nothing if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(length).strip()
    except OSError:
        return ""


def _content(path: Path) -> bytes | None:
    """Return what is in a file; None where that cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _restore(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(before)


def _write(path: Path, text: str) -> None:
    with errors.explained(f"write {str(path)!r}", path, os.W_OK, otherwise=errors.Refused):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)


def _run(command: list[str]) -> str:
    """Run a command; return what it printed. Raises Refused."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise errors.Refused(
            f"{command[0]} is not installed", hint=f"it is needed to run: {' '.join(command)}"
        ) from None
    except subprocess.TimeoutExpired:
        raise errors.Refused(f"{' '.join(command)} did not end in {_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise errors.Refused(f"{' '.join(command)} failed with {done.returncode}: {said}")
    return done.stdout
