"""Ctrl-C and SIGTERM end a command within five seconds, whatever it waits for.

What it could not undo by then it leaves to ``mapsave recover``, and says so.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.faults import struck
from tests.faults.in_time import _LIMIT, calls, stopped
from tests.kit import cli, emulated, inject, patterns, processes, qemu, service, wait

NAME = "web01"
IMAGE = "one.mapsave"


def waits_for(process: subprocess.Popen[str], what: str) -> None:
    """Wait until a thread of the process is in the system call ``what`` on behalf of the kit."""
    wait.until(lambda: what in calls(process.pid), what=f"mapsave in {what}")


@pytest.mark.cancels
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "step", ["label", "hand-over", "pause", "migrate", "complete", "commit", "committed"]
)
def test_save_of_a_guest_that_hangs(site: cli.Site, step: str, number: signal.Signals) -> None:
    """It is left to recovery, which finishes or undoes it once QEMU answers again."""
    with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
        before = guest.state()
        with struck.stopped(site, step, "save", NAME, "--image", IMAGE, "--json") as process:
            with guest.frozen():
                error = stopped(process, number)
            left = error["data"].get("left", [])
            # Right after the label QEMU may not have been asked for anything yet.
            assert len(left) == 1 or (step == "label" and not left)
            for found in left:
                known = (found["operation"], found["guest"], found["pid"])
                assert known == ("save", NAME, guest.pid)
                assert "mapsave recover" in error["hint"]
        site.run("recover", check=0)
        assert not struck.journals(site)
        assert not struck.partials(site)
        if step in ("commit", "committed", "complete"):
            guest.wait()
            assert (site.images / IMAGE).exists()
        else:
            assert guest.state() == before


@pytest.mark.parametrize("command", [("save", "--image", IMAGE), ("check",)])
def test_guest_that_does_not_greet(site: cli.Site, command: tuple[str, ...]) -> None:
    with qemu.guest(site, NAME) as guest, guest.frozen():
        with site.start(command[0], NAME, *command[1:], "--json") as process:
            wait.until(lambda: connections(process.pid), what="a connection")
            stopped(process)
        assert not list(site.images.iterdir())


def connections(pid: int) -> int:
    """Return how many sockets a process has open beside the pair that its event loop has."""
    with contextlib.suppress(OSError):
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        return max(sum(link.startswith("socket:") for link in links) - 2, 0)
    return 0


def test_fsync_that_hangs(site: cli.Site) -> None:
    """No thread can be called back from there: guest and process go on without it."""
    with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
        rules = inject.environment(inject.Rule("fsync", "hang", path=".partial"))
        with site.start("save", NAME, "--image", IMAGE, "--json", env=rules) as process:
            waits_for(process, "pause")
            (left,) = stopped(process)["data"]["left"]
            assert left["step"] == "complete"
        assert guest.status() == "running"
        struck.recovered(site, "save rolled back")


@pytest.mark.parametrize("command", ["list", "inspect", "verify", "check", "discard", "restore"])
def test_image_on_storage_that_hangs(site: cli.Site, command: str) -> None:
    (site.images / IMAGE).write_bytes(b"MAPSAVE\0" * 4096)
    rules = inject.environment(
        inject.Rule("pread", "hang", path=IMAGE), inject.Rule("preadv", "hang", path=IMAGE)
    )
    words = [command, *([] if command == "list" else [IMAGE]), "--json"]
    with site.start(*words, env=rules) as process:
        waits_for(process, "pause")
        error = stopped(process)
    assert error["message"].endswith(("nothing is left to undo", "everything was rolled back"))


def test_hook_that_does_not_end(site: cli.Site) -> None:
    script = f"trap '' TERM; echo $$ > {site.directory}/pid; sleep 600"
    site.add_hook("stubborn", script, "before_save", "on_failure")
    site.add_guest("toy", emulator={"memory": "8M"})
    with site.start("save", "toy", "--json") as process:
        wait.until((site.directory / "pid").exists, what="the hook")
        (left,) = stopped(process)["data"]["left"]
    assert left["operation"] == "hooks"
    # The processes that the tests have started are looked for when this one has ended.


@contextlib.contextmanager
def _silent_service(site: cli.Site) -> Iterator[service.Service]:
    """Run a service that is stopped (SIGSTOP) as soon as it serves."""
    with service.running(site) as mapsaved:
        mapsaved.signal(signal.SIGSTOP)
        try:
            yield mapsaved
        finally:
            mapsaved.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "words",
    ["save toy", "list", "ps", "wait 0123", "logs 0123", "cancel 0123", "inspect one", "recover"],
)
def test_service_that_does_not_answer(site: cli.Site, words: str) -> None:
    site.add_guest("toy", emulator={"memory": "8M"})
    with _silent_service(site), site.start(*words.split(), "--json") as process:
        wait.until(lambda: connections(process.pid) or _sockets(process.pid), what="a request")
        stopped(process)


def _sockets(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any(
            os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
            for fd in os.listdir(f"/proc/{pid}/fd")
        )
    return False


def _is_written(site: cli.Site) -> bool:
    return any(path.stat().st_size > 2 << 20 for path in struck.partials(site))


def test_operation_of_the_service_that_is_not_undone_in_time(site: cli.Site) -> None:
    """The command ends; it names the operation, which the service goes on cancelling."""
    with emulated.guest(site, NAME, throttle="256K") as socket, service.running(site) as mapsaved:
        pid = emulated.pid(socket)
        with site.start("save", NAME, "--image", IMAGE, "--json") as process:
            wait.until(lambda: _is_written(site), what="pages in the partial image")
            os.kill(pid, signal.SIGSTOP)
            try:
                error = stopped(process)
            finally:
                os.kill(pid, signal.SIGCONT)
        operation = error["data"]["operation"]
        assert f"mapsave wait {operation}" in error["hint"]
        assert mapsaved.ended(operation)["state"] == "cancelled"
        assert emulated.status(socket) == "running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_emulated_guest_ends(site: cli.Site, number: signal.Signals) -> None:
    path = site.directory / "toy.qmp"
    command = ["emulate", "--qmp", str(path), "--memory", "8M"]
    with processes.running([*cli.COMMAND, *command]) as process:
        wait.until(lambda: emulated.answers(path), what="the monitor")
        process.send_signal(number)
        assert process.wait(_LIMIT) == 0


def test_signal_while_nothing_is_done_yet(site: cli.Site) -> None:
    """The configuration is on storage that hangs."""
    os.unlink(site.config)
    os.mkfifo(site.config)
    with site.start("list", "--json") as process:
        wait.until(lambda: _opens(process.pid), what="the configuration being opened")
        assert "nothing is left" in stopped(process)["message"]


def _opens(pid: int) -> bool:
    calls = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/syscall") as file:
            calls.add(file.read().split()[0])
    return bool({"2", "257"} & calls)  # open, openat (asm/unistd_64.h)


def test_second_signal_does_not_matter(site: cli.Site) -> None:
    with qemu.guest(site, NAME, ram=patterns.dense, memory="24M", paused=False) as guest:
        with (
            struck.stopped(site, "pause", "save", NAME, "--image", IMAGE, "--json") as process,
            guest.frozen(),
        ):
            process.send_signal(signal.SIGINT)
            error = stopped(process, signal.SIGINT)
            assert error["data"]["left"]
        site.run("recover", check=0)
        assert guest.status() == "running"
