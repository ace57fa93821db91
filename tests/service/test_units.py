"""The units that ship: systemd takes them, the sandbox is tight, and mapsave can work in it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mapsave import config, units

from tests.kit import cli, emulated, patterns, qemu, tree

UNITS = tree.ROOT / "examples/systemd"
SANDBOX = UNITS / "mapsave-.service.d/sandbox.conf"
LIBVIRT = UNITS / "libvirt/mapsave-save-all.service.d/libvirt.conf"
FILES = sorted(path.name for path in UNITS.glob("*.*") if path.is_file())
SERVICES = [name for name in FILES if name.endswith(".service")]
# Those of a fleet, which are a user's without any rights.
FLEET = ["mapsaved-fleet-agent.service", "mapsaved-fleet-scheduler.service"]
ROOTS = [name for name in SERVICES if name not in FLEET]
EXPOSURE = "25"  # tenths, as systemd-analyze wants it

# What differs for a service that listens and is watched; the rest must be the same everywhere.
_OTHERS = {
    *("Type", "ExecStart", "ExecReload", "NotifyAccess", "WatchdogSec", "Restart", "RestartSec"),
    *("RestartPreventExitStatus", "TimeoutStartSec", "TimeoutStopSec", "KillMode", "SendSIGKILL"),
    *("OOMPolicy", "OOMScoreAdjust", "TasksMax", "LimitMEMLOCK"),
}


def settings(path: Path, section: str = "Service") -> list[tuple[str, str]]:
    """Return the settings of a section in their order."""
    found, inside = [], ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif line and not line.startswith("#") and inside == section:
            key, _, value = line.partition("=")
            found.append((key, value))
    return found


def setting(name: str, key: str, section: str = "Service") -> list[str]:
    """Return the values of one setting of a unit, in their order."""
    return [value for each, value in settings(UNITS / name, section) if each == key]


def instance(name: str) -> str:
    """Return the name of a unit, with an instance where it is a template."""
    return name.replace("@.", "@nightly.")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The units with commands that exist here, where no mapsave is in /usr/local/bin."""
    place = tmp_path / "units"
    shutil.copytree(UNITS, place)
    for name in SERVICES:
        path = place / name
        text, number = re.subn(r"/usr/local/bin/mapsaved?\b", "/bin/true", path.read_text())
        assert number == 1
        path.write_text(text)
    return place


@pytest.fixture
def with_libvirt(copied: Path) -> Path:
    """The units with the drop-in for libvirt guests."""
    target = copied / "mapsave-save-all.service.d"
    target.mkdir()
    text, number = re.subn(r"/usr/local/bin/mapsave\b", "/bin/true", LIBVIRT.read_text())
    assert number == 1
    (target / "libvirt.conf").write_text(text)
    return copied


def analyze(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # It makes its generators' directories below the first of these.
    env = {**os.environ, "XDG_RUNTIME_DIR": str(cwd), "SYSTEMD_PAGER": "", "LC_ALL": "C"}
    return subprocess.run(
        ["systemd-analyze", *words], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_all_units_are_there() -> None:
    services = {"mapsaved", "mapsave-save-all", "mapsave-restore-all", "mapsave-job@"}
    assert set(SERVICES) == {f"{name}.service" for name in services} | set(FLEET)
    assert set(FILES) - set(SERVICES) == {"mapsaved.socket", "mapsave-job@.timer"}


@pytest.mark.parametrize("name", FILES)
def test_systemd_takes_the_unit(copied: Path, name: str) -> None:
    done = analyze("verify", "--recursive-errors=no", f"./{instance(name)}", cwd=copied)
    # It also tells what it thinks of units that are there already.
    ours = [line for line in done.stderr.splitlines() if "mapsave" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_systemd_takes_the_drop_in_for_libvirt(with_libvirt: Path) -> None:
    name = "mapsave-save-all.service"
    done = analyze("verify", "--recursive-errors=no", f"./{name}", cwd=with_libvirt)
    assert [line for line in done.stderr.splitlines() if "mapsave" in line] == []
    assert done.returncode == 0, done.stderr
    words = ("security", "--offline=true", f"--threshold={EXPOSURE}", f"./{name}")
    assert analyze(*words, cwd=with_libvirt).returncode == 0
    path = with_libvirt / "mapsave-save-all.service.d/libvirt.conf"
    path.write_text(path.read_text().replace("ExecStop=/bin/true", "ExecStop=/nonexistent"))
    done = analyze("verify", "--recursive-errors=no", f"./{name}", cwd=with_libvirt)
    assert "/nonexistent" in done.stderr, "the drop-in was not looked at"


def test_the_drop_in_for_libvirt_changes_nothing_else() -> None:
    """It saves in place of the unit, not beside it, and is installed only where it is wanted."""
    (stop,) = setting("mapsave-save-all.service", "ExecStop")
    assert settings(LIBVIRT) == [
        ("ExecStop", ""),
        ("ExecStop", stop.replace("save-all", "save-all --libvirt")),
    ]
    assert LIBVIRT.parent.parent.parent == UNITS
    assert not LIBVIRT.parent.parent.name.startswith("mapsave")


@pytest.mark.parametrize("unit", ["mapsaved.service", "mapsave-.service"])
def test_with_libvirt_guests_one_system_call_more_is_allowed(copied: Path, unit: str) -> None:
    """It is one that debuggers use: so it is not in the sandbox of all hosts."""
    drop_in = UNITS / f"libvirt/{unit}.d/quit.conf"
    assert settings(drop_in) == [("SystemCallFilter", "pidfd_getfd")]
    name = unit.replace("-.", "-save-all.")
    (copied / f"{unit}.d").mkdir(exist_ok=True)
    shutil.copy(drop_in, copied / f"{unit}.d/quit.conf")
    assert analyze("verify", f"./{name}", cwd=copied).returncode == 0
    listed = analyze("security", "--offline=true", f"./{name}", cwd=copied).stdout
    assert "e.g. pidfd_getfd is allowed" in listed


def test_what_a_shutdown_needs_is_stopped_behind_it() -> None:
    after = " ".join(setting("mapsave-save-all.service", "After", "Unit")).split()
    assert {"mapsaved.service", "mapsaved.socket", "libvirtd.service", "libvirtd.socket"} <= set(
        after
    )
    for name in ("mapsave-job@.service", "mapsave-restore-all.service"):
        behind = " ".join(setting(name, "After", "Unit")).split()
        assert "mapsave-save-all.service" in behind, "it would end behind the save-all"


def test_verify_finds_a_mistake(copied: Path) -> None:
    path = copied / "mapsaved.service"
    path.write_text(path.read_text().replace("KillMode=process", "KillMode=nobody"))
    done = analyze("verify", "--recursive-errors=no", "./mapsaved.service", cwd=copied)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if "mapsave" in line]


@pytest.mark.parametrize("name", SERVICES)
def test_exposure_is_low(copied: Path, name: str) -> None:
    words = ("security", "--offline=true", f"--threshold={EXPOSURE}", f"./{instance(name)}")
    done = analyze(*words, cwd=copied)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Overall exposure level for {instance(name)}" in done.stdout


@pytest.mark.parametrize("name", ["mapsaved.service", "mapsave-save-all.service"])
def test_exposure_is_measured(copied: Path, name: str) -> None:
    """With one line less of the sandbox it is too high: the figure is of this sandbox."""
    for path in (copied / name, copied / "mapsave-.service.d/sandbox.conf"):
        path.write_text(path.read_text().replace("NoNewPrivileges=yes\n", ""))
    words = ("security", "--offline=true", f"--threshold={EXPOSURE}", f"./{name}")
    assert analyze(*words, cwd=copied).returncode != 0


def test_the_sandbox_is_the_same_for_all() -> None:
    service = [each for each in settings(UNITS / "mapsaved.service") if each[0] not in _OTHERS]
    assert settings(SANDBOX) == service
    assert len(service) > 30


def test_every_unit_that_may_start_a_qemu_leaves_it_alive() -> None:
    assert {name: setting(name, "KillMode") for name in ROOTS} == {
        name: ["process"] for name in ROOTS
    }


def test_units_of_a_fleet_have_no_rights_of_roots(copied: Path) -> None:
    """Not even by the drop-in for units of root, which is for names with another beginning."""
    prefix = SANDBOX.parent.name.removesuffix(".service.d")
    for name in FLEET:
        assert not name.startswith(prefix)
        assert setting(name, "User") == ["mapsave-fleet"]
        assert setting(name, "CapabilityBoundingSet") == [""]
        assert setting(name, "KillMode") == []
        (state,) = setting(name, "StateDirectory")
        assert state.startswith("mapsave-fleet/")
        words = ("security", "--offline=true", "--threshold=15", f"./{name}")
        assert analyze(*words, cwd=copied).returncode == 0
    assert setting(FLEET[0], "SupplementaryGroups") == ["mapsave"]
    assert setting(FLEET[1], "SupplementaryGroups") == []
    assert len({setting(name, "StateDirectory")[0] for name in FLEET}) == 2
    users = (UNITS / "sysusers.d/mapsave.conf").read_text()
    assert "\nu mapsave-fleet " in users
    assert "m mapsave-fleet" not in users  # in no group but by its unit


def test_units_name_the_places_of_the_configuration() -> None:
    built_in = config.defaults({}, root=True)
    assert setting("mapsaved.socket", "ListenStream", "Socket") == [str(built_in.socket)]
    (state,) = setting("mapsaved.service", "StateDirectory")
    made = {Path("/var/lib") / each for each in state.split()}
    assert {built_in.images, built_in.state} <= made
    (start,) = setting("mapsave-job@.service", "ExecStart")
    assert start.endswith(f" {built_in.jobs}/%i.yaml")
    directories = (UNITS / "tmpfiles.d/mapsave.conf").read_text()
    for place in (built_in.jobs, built_in.hooks.directory, built_in.socket.parent):
        assert f"d {place} 0755 root root -" in directories


def test_the_policies_may_write_where_they_must() -> None:
    """In a read-only /etc and /sys."""
    writable = " ".join(setting("mapsaved.service", "ReadWritePaths")).replace("-/", "/").split()
    policy = yaml.safe_load((tree.ROOT / "policies/apparmor-qemu.yaml").read_text())
    for profile in policy["apparmor"]["profiles"]:
        assert str(Path(profile["rules_file"]).parent) in writable
    for place in ("/sys/kernel/security/apparmor", "/sys/fs/selinux", "/sys/fs/smackfs"):
        assert place in writable


def test_systemd_makes_group_and_directories(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for command, file in (
        (["systemd-sysusers"], "sysusers.d/mapsave.conf"),
        (["systemd-tmpfiles", "--create"], "tmpfiles.d/mapsave.conf"),
    ):
        if os.geteuid() != 0 and command[0] == "systemd-tmpfiles":
            continue  # it gives the directories to root
        subprocess.run([*command, f"--root={root}", UNITS / file], check=True, capture_output=True)
    assert (root / "etc/group").read_text().startswith("mapsave:x:")
    if os.geteuid() == 0:
        assert (root / "etc/mapsave/hooks.d").stat().st_mode & 0o7777 == 0o755


def test_commands_of_the_units_work(site: cli.Site) -> None:
    """Those that do nothing where there is nothing to do; so their options are right too."""
    job = site.directory / "nightly.yaml"
    job.write_text("job: nightly\nguests: [idle]\n")
    site.add_guest("idle", qmp=site.directory / "nobody.qmp")
    commands = {
        name: [*setting(name, "ExecStart"), *setting(name, "ExecStop")][0].split() for name in ROOTS
    }
    assert commands.pop("mapsaved.service") == ["/usr/local/bin/mapsaved"]
    codes = {}
    for name, words in commands.items():
        assert words.pop(0) == "/usr/local/bin/mapsave"
        given = [word.replace("/etc/mapsave/jobs.d/%i.yaml", str(job)) for word in words]
        codes[name] = site.run(*given).returncode
    assert codes == {
        "mapsave-job@.service": 3,  # the guest cannot be reached
        "mapsave-save-all.service": 0,  # it does not run
        "mapsave-restore-all.service": 0,
    }


def test_there_is_more_time_than_the_deadline_of_a_shutdown() -> None:
    (stop,) = setting("mapsave-save-all.service", "ExecStop")
    (limit,) = setting("mapsave-save-all.service", "TimeoutStopSec")
    deadline = units.parse_duration(stop.split("--deadline ")[1])
    assert units.parse_duration(limit.removesuffix("in")) >= deadline + 60


# --- the capabilities: a save with those of the unit, and with one of them less ---

OTHER = 12345  # a user that exists nowhere
LABELLED = "module: dac\nowner: '12345'\ngroup: '12345'\nmode: '0640'\n"


def capabilities() -> list[str]:
    """Return the names in CapabilityBoundingSet= as setpriv(1) knows them."""
    names = " ".join(setting("mapsaved.service", "CapabilityBoundingSet")).split()
    assert all(name.startswith("CAP_") for name in names)
    return [name.removeprefix("CAP_").lower() for name in names]


@pytest.fixture
def confine() -> Iterator[None]:
    """Let the commands of a test run with these capabilities; see ``bound``."""
    before = cli.COMMAND[:]
    yield
    cli.COMMAND[:] = before


def bound(names: list[str]) -> None:
    """From now on run ``mapsave`` as root with these capabilities and no new privileges."""
    several = ",".join(["-all", *(f"+{name}" for name in names)])
    cli.COMMAND[:] = [
        *("setpriv", "--bounding-set", several, "--inh-caps", "-all", "--no-new-privs", "--"),
        *(sys.executable, "-m", "mapsave"),
    ]


def give_away(guest_socket: Path, site: cli.Site) -> None:
    """Give the monitor of a guest and the place of its image to another user."""
    for path in (guest_socket, site.images):
        os.chown(path, OTHER, OTHER)
        path.chmod(0o700)
    (site.directory / "labelled.yaml").write_text(LABELLED)


def save(site: cli.Site, guest: emulated.Emulated | qemu.Qemu, code: int) -> cli.Result:
    policy = site.directory / "labelled.yaml"
    options = ("--then", "resume", "--image", f"{code}.mapsave", "--policy", policy)
    return site.run("save", guest.address, *options, check=code)


@pytest.mark.root
@pytest.mark.usefixtures("confine")
def test_the_capabilities_suffice_and_are_needed(site: cli.Site) -> None:
    socket = site.directory / "guest.qmp"
    with emulated.emulated(socket) as guest:
        give_away(socket, site)
        names = capabilities()
        for missing, message in (
            ("dac_override", "cannot connect to qmp"),
            ("chown", "which mapsave is not permitted to do as uid 0"),
            ("fowner", "Operation not permitted"),
        ):
            bound([name for name in names if name != missing])
            refused = save(site, guest, 7)
            assert message in refused.stderr, missing
            assert list(site.images.iterdir()) == []
        bound(names)
        save(site, guest, 0)
    image = (site.images / "0.mapsave").stat()
    assert (image.st_uid, image.st_gid, image.st_mode & 0o7777) == (OTHER, OTHER, 0o640)


@pytest.mark.root
@pytest.mark.usefixtures("confine")
def test_proc_tells_of_a_qemu_with_more_capabilities(site: cli.Site) -> None:
    """Without CAP_SYS_PTRACE even root does not learn where root's QEMU was started."""
    socket = site.directory / "guest.qmp"
    with emulated.emulated(socket) as guest:
        give_away(socket, site)
        recorded = []
        for without in ("sys_ptrace", ""):
            bound([name for name in capabilities() if name != without])
            save(site, guest, 0)
            shown = site.run("inspect", site.images / "0.mapsave", "--json", check=0).json()
            recorded.append(shown["command"].get("cwd"))
            (site.images / "0.mapsave").unlink()
    assert recorded == [None, os.getcwd()]


@pytest.mark.root
@pytest.mark.usefixtures("confine")
def test_a_real_qemu_is_saved_and_restored_with_them(site: cli.Site) -> None:
    with qemu.running("-nodefaults", ram=patterns.dense, user=OTHER, sandbox=True) as guest:
        give_away(guest.qmp, site)
        site.add_guest("web01", guest.qmp, launch=guest.argv)
        before = guest.ram_digests()
        bound(capabilities())
        policy = site.directory / "labelled.yaml"
        site.run("save", "web01", "--image", "it.mapsave", "--policy", policy, check=0)
        guest.wait()
        # Without the policy no one has said that its owner may write images.
        site.run("restore", site.images / "it.mapsave", "--paused", check=7)
        paused = ("--paused", "--policy", policy)
        site.run("restore", site.images / "it.mapsave", *paused, check=0)
        with guest.successor() as restored:
            assert restored.ram_digests() == before
            status = Path(f"/proc/{restored.pid}/status").read_text()
            assert "NoNewPrivs:\t1" in status
