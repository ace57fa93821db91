"""A QEMU that a restore starts: what it inherits of mapsave, and where its output goes."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import cli, processes, qemu, service, tree, wait

SECRETS = {
    "NOTIFY_SOCKET": "/run/nowhere",
    "WATCHDOG_PID": "1",
    "WATCHDOG_USEC": "30000000",
    "LISTEN_PID": "1",
    "LISTEN_FDS": "1",
    "LISTEN_FDNAMES": "api",
    "CREDENTIALS_DIRECTORY": "/run/credentials/mapsaved.service",
    "INVOCATION_ID": "0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "SSH_AUTH_SOCK": "/tmp/agent",
}
PASSED = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def environment_of(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode().rstrip("\0")
    return dict(line.split("=", 1) for line in raw.split("\0") if line)


@contextmanager
def saved(site: cli.Site, **keys: list[str]) -> Iterator[qemu.Qemu]:
    """Yield a guest that was saved to the image ``a`` and has ended."""
    with qemu.running(memory="16M") as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, **keys)
        site.run("save", "web01", "--image", "a", check=0)
        guest.wait()
        yield guest


def test_secrets_stay_with_mapsave(site: cli.Site) -> None:
    with saved(site) as guest:
        site.run("restore", "a", env={**SECRETS, "LANG": "C.UTF-8"}, check=0)
        with guest.successor() as restored:
            found = environment_of(restored.pid)
            assert found.pop(processes.MARK)  # the kit's own, which its configuration names
            assert found == PASSED


def test_the_service_keeps_its_secrets_too(site: cli.Site) -> None:
    with saved(site) as guest:
        # The service uses some of them itself; these it only inherits.
        env = {key: SECRETS[key] for key in SECRETS if not key.startswith(("LISTEN", "WATCHDOG"))}
        with service.running(site, env={**env, "LANG": "C.UTF-8"}) as mapsaved:
            mapsaved.done(kind="restore", image="a")
            with guest.successor() as restored:
                found = environment_of(restored.pid)
                assert not found.keys() & SECRETS.keys()
                assert found.items() >= PASSED.items()


def test_an_emulated_guest_gets_as_little(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "4M"})
    with service.emulated_ended(site):
        resume = ("--then", "resume")
        site.run("save", "toy", *resume, env={**SECRETS, "LANG": "C.UTF-8"}, check=0)
        (pid,) = (pid for pid, words in processes.strays().items() if " emulate " in words)
        assert environment_of(pid).keys() == {"PATH", "LANG", "PYTHONPATH", processes.MARK}


def test_the_guests_list_takes_the_place_of_the_general_one(site: cli.Site) -> None:
    with saved(site, launch_environment=["FOR_GUEST", processes.MARK]) as guest:
        site.run("restore", "a", env={"FOR_GUEST": "1", "OTHER": "2"}, check=0)
        with guest.successor() as restored:
            found = environment_of(restored.pid)
            assert found.pop(processes.MARK)
            assert found == {"FOR_GUEST": "1"}


def test_only_path_and_lang_by_default(site: cli.Site) -> None:
    shown = cli.mapsave("--config", "/dev/null", "config", "show", check=0).stdout
    assert "launch_environment:\n- PATH\n- LANG\n" in shown


@pytest.mark.parametrize("name", ["", "A=B", "A B", "é", 7])
def test_what_is_no_variable_is_named(site: cli.Site, name: object) -> None:
    site.settings = {"launch_environment": ["PATH", name]}
    site.write()
    assert "launch_environment" in site.run("list", check=2).stderr


def test_no_signal_stays_blocked_and_no_descriptor_open(site: cli.Site, tmp_path: Path) -> None:
    with saved(site) as guest, (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            words = [*cli.COMMAND, "--config", str(site.config), "restore", "a"]
            env = {"PYTHONPATH": tree.PYTHONPATH}
            with processes.running(words, env=env, close_fds=False) as process:
                assert process.wait(wait.LONG) == 0
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with guest.successor() as restored:
            status = Path(f"/proc/{restored.pid}/status").read_text()
            (blocked,) = (line.split()[1] for line in status.splitlines() if "SigBlk" in line)
            assert not int(blocked, 16) >> (signal.SIGTERM - 1) & 1
            process = Path(f"/proc/{restored.pid}")
            links = {each.readlink(): each.name for each in (process / "fd").iterdir()}
            assert Path(tmp_path / "secret") not in links
            # The image that RAM is mapped from, to be read only.
            (number,) = (links[each] for each in links if each.is_relative_to(site.images))
            info = (process / "fdinfo" / number).read_text().splitlines()
            (flags,) = (line.split()[1] for line in info if line.startswith("flags:"))
            assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


# Where its output goes.


def log_of(site: cli.Site) -> Path:
    (found,) = (site.state / "logs").iterdir()
    return found


def test_the_output_is_for_its_owner_alone(site: cli.Site) -> None:
    with saved(site) as guest:
        site.run("restore", "a", check=0)
        with guest.successor():
            log = log_of(site)
            assert stat.S_IMODE(log.stat().st_mode) == 0o600
        # One that an earlier version left is closed too, and so is its directory.
        log.chmod(0o644)
        log.parent.chmod(0o755)
        site.run("restore", "a", "--again", check=0)
        with guest.successor():
            assert stat.S_IMODE(log.stat().st_mode) == 0o600
            assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory"])
def test_the_output_goes_to_no_other_file(site: cli.Site, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "precious"
    other.write_text("precious")
    with saved(site) as guest:
        site.run("restore", "a", check=0)
        with guest.successor():
            log = log_of(site)
        log.unlink()
        if kind == "symlink":
            log.symlink_to(other)
        elif kind == "hardlink":
            os.link(other, log)
        elif kind == "fifo":
            os.mkfifo(log)
        else:
            log.mkdir()
        found = site.run("restore", "a", "--again", "--json", check=5).error()
        assert found["id"] == "restore.launch"
        assert str(log) in found["message"]
        assert other.read_text() == "precious"


def test_the_journal_is_for_its_owner_alone(site: cli.Site) -> None:
    with service.running(site):
        pass
    journal = site.state / "journal.db"
    journal.chmod(0o644)
    with service.running(site):
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in site.state.iterdir()}
        files = {name: mode for name, mode in modes.items() if name.startswith("journal.db")}
        assert len(files) == 3
        assert set(files.values()) == {0o600}
        assert not [name for name, mode in modes.items() if mode & 0o077]
