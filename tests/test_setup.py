"""``mapsave setup``: what it writes below a root of the test's own, shows, refuses and undoes."""

import os
import sys
from pathlib import Path

import pytest
from mapsave import host_setup

from tests.kit import cli, tree

UNITS = tree.ROOT / "examples/systemd"
PROGRAM = f"""#!{sys.executable}
from mapsave.cli.start import command
command()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    return path


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A directory of commands, as pip makes one."""
    return commands_in(tmp_path / "bin")


def commands_in(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in ("mapsave", "mapsaved"):
        (directory / name).write_text(PROGRAM)
        (directory / name).chmod(0o755)
    return directory


def setup(commands: Path, root: Path, *words: str, code: int = 0, **env: str) -> cli.Result:
    command = [str(commands / "mapsave")]
    return cli.mapsave(
        "setup", *words, "--root", root, "--json", command=command, check=code, env=env
    )


def files(root: Path) -> dict[str, str]:
    found = (each for each in root.rglob("*") if each.is_file())
    return {str(each.relative_to(root)): each.read_text() for each in found}


@pytest.mark.root
def test_units_have_the_path_of_the_command_and_go_again(commands: Path, root: Path) -> None:
    done = setup(commands, root, "systemd").json()
    written = files(root / "etc")
    names = {str(each.relative_to(UNITS)) for each in UNITS.rglob("mapsave*") if each.is_file()}
    units = {name for name in names if "/" not in name}
    assert {f"systemd/system/{name}" for name in units} <= set(written)
    assert {"sysusers.d/mapsave.conf", "tmpfiles.d/mapsave.conf"} <= set(written)
    assert not [name for name in written if name.endswith(("libvirt.conf", "quit.conf"))]
    for name in units:
        text = written[f"systemd/system/{name}"]
        assert text.endswith(
            (UNITS / name).read_text().replace("/usr/local/bin/mapsave", f"{commands}/mapsave")
        )
    assert (root / "etc/mapsave/jobs.d").is_dir()
    for path in written:
        if path.startswith("systemd/"):
            assert f"write {root}/etc/{path}" in done["steps"]
    assert setup(commands, root, "systemd").json()["then"].startswith("systemctl enable")
    assert files(root / "etc") == written
    setup(commands, root, "systemd", "--undo")
    assert not [name for name in files(root / "etc") if "mapsave" in name]


def test_a_dry_run_changes_nothing(commands: Path, root: Path) -> None:
    for words in (("systemd", "--libvirt"), ("apparmor",)):
        steps = setup(commands, root, *words, "--dry-run").json()["steps"]
        assert any(step.startswith("write ") for step in steps)
    assert files(root) == {}
    assert "systemd/system/mapsave-save-all.service.d/libvirt.conf" in "".join(
        setup(commands, root, "systemd", "--libvirt", "--dry-run").json()["steps"]
    )


def test_the_profile_knows_the_environment(commands: Path, root: Path) -> None:
    setup(commands, root, "apparmor")
    written = files(root / "etc/apparmor.d")
    assert set(written) == {
        "usr.bin.mapsave",
        "abstractions/mapsave-guest",
        "tunables/mapsave.d/setup",
    }
    assert f"+= {commands.parent}" in written["tunables/mapsave.d/setup"]
    setup(commands, root, "apparmor", "--undo")
    assert files(root) == {}


def test_the_file_of_another_is_left(commands: Path, root: Path) -> None:
    """Nothing is written at all; and what has become another's since is not removed."""
    profile = root / "etc/apparmor.d/usr.bin.mapsave"
    profile.parent.mkdir()
    for content in (b"profile of_mine {}\n", b"# \xff\n"):
        profile.write_bytes(content)
        assert setup(commands, root, "apparmor", code=3).error_id() == "check.refused"
        assert [each for each in root.rglob("*") if each.is_file()] == [profile]
    profile.unlink()
    setup(commands, root, "apparmor")
    profile.write_text("profile of_mine {}\n")
    steps = setup(commands, root, "apparmor", "--undo").json()["steps"]
    assert f"leave {profile}, which is not from mapsave setup" in steps
    assert list(files(root)) == ["etc/apparmor.d/usr.bin.mapsave"]


def test_the_same_file_of_another_stays_theirs(commands: Path, root: Path) -> None:
    profile = root / "etc/apparmor.d/usr.bin.mapsave"
    profile.parent.mkdir()
    profile.write_text((tree.ROOT / "policies/apparmor/usr.bin.mapsave").read_text())
    before = files(root)
    steps = setup(commands, root, "apparmor").json()["steps"]
    assert f"leave {profile}, which is there already" in steps
    setup(commands, root, "apparmor", "--undo")
    assert files(root) == before


def test_an_abstraction_stays_as_long_as_it_is_included(commands: Path, root: Path) -> None:
    """A profile that includes a file that is not there could not be loaded any more."""
    setup(commands, root, "apparmor")
    guest = root / "etc/apparmor.d/qemu-web01"
    guest.write_text("profile qemu-web01 {\n  include <abstractions/mapsave-guest>\n}\n")
    abstraction = root / "etc/apparmor.d/abstractions/mapsave-guest"
    steps = setup(commands, root, "apparmor", "--undo").json()["steps"]
    assert f"leave {abstraction}, which {guest} includes" in steps
    assert {root / name for name in files(root)} == {guest, abstraction}
    guest.write_text("#   include <abstractions/mapsave-guest>\n")
    setup(commands, root, "apparmor", "--undo")
    assert {root / name for name in files(root)} == {guest}


@pytest.mark.parametrize("loaded", ["mapsave", "mapsave2"])
def test_only_a_profile_that_is_loaded_is_unloaded(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: str
) -> None:
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "profiles").write_text(f"man_filter (enforce)\n{loaded} (enforce)\n")
    monkeypatch.setattr(host_setup, "_APPARMOR", tmp_path / "enabled")
    monkeypatch.setattr(host_setup, "_LOADED", tmp_path / "profiles")
    monkeypatch.setattr(host_setup, "_is_ours", lambda _: True)
    monkeypatch.setattr(sys, "argv", [str(commands / "mapsave")])
    assert bool(host_setup.apparmor(Path("/")).before_undo) == (loaded == "mapsave")


def test_what_fails_leaves_no_files(commands: Path, root: Path, tmp_path: Path) -> None:
    tool = tmp_path / "tools/systemd-sysusers"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    error = setup(commands, root, "systemd", code=3, PATH=path).error()
    assert "no room" in error["message"]
    assert files(root) == {}


def test_with_the_units_of_a_package_only_the_drop_ins_are_added(
    commands: Path, root: Path
) -> None:
    unit = root / "usr/lib/systemd/system/mapsaved.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("")
    assert "a package" in setup(commands, root, "systemd", code=2).error("usage")["message"]
    setup(commands, root, "systemd", "--libvirt")
    assert all(".service.d/" in name for name in files(root / "etc/systemd/system"))
    assert not (root / "etc/sysusers.d").exists()


def test_in_a_home_directory_it_says_how_to_install(root: Path) -> None:
    script = (
        "import sys, pathlib; pathlib.Path.exists = lambda _: True;"
        "sys.argv[0] = '/home/she/.local/bin/mapsave';"
        "from mapsave.cli.main import main; main()"
    )
    command = [sys.executable, "-c", script]
    done = cli.mapsave("setup", "systemd", "--libvirt", "--json", command=command, check=2)
    error = done.error("usage")
    assert "/home/she/.local/bin" in error["message"]
    assert "PIPX_HOME=/opt/pipx" in error["hint"]


def test_without_selinux_there_is_nothing_to_add_to(commands: Path) -> None:
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("SELinux is active here")
    command = [str(commands / "mapsave")]
    done = cli.mapsave("setup", "selinux", "--json", command=command, check=2)
    done.error("unsupported")
