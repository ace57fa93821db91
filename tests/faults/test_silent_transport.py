"""A transport that never answers, at every step: no command waits without a limit.

A real QEMU is stopped (SIGSTOP) before the n-th command of mapsave to it, for every n. Each time
the operation ends with an error, and once QEMU goes on, recovery leaves nothing behind. The time
limits are those of the product, made short.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from mapsave import config as configuration
from mapsave import errors
from mapsave.cli import main
from mapsave.client import address, delegate
from mapsave.jobs import engine, job
from mapsave.migration import guest_state, outgoing, stall
from mapsave.monitor import qmp, session
from mapsave.operations import (
    ending,
    giving_up,
    preview,
    recover,
    restore,
    restore_request,
    save,
    save_request,
)

from tests.faults import struck
from tests.kit import cli, patterns, qemu, service
from tests.qemu import scene

SHORT = 0.1
_HURRY = 100  # times as fast passes the time of a load without progress
# Far more than an operation takes with these limits, on a busy host too.
_LIMIT = 240.0
NAME = "web01"
IMAGE = "one.mapsave"


def make_impatient(patch: pytest.MonkeyPatch) -> None:
    """Make every limit on what QEMU or libvirt takes short."""
    for module, names in {
        session: ("COMMAND_TIMEOUT", "DRAIN_TIMEOUT", "SILENT_TIMEOUT"),
        qmp: ("GREETING_TIMEOUT",),
        ending: ("QUIT_TIMEOUT", "LOST_TIMEOUT"),
        guest_state: ("_SETTLE_TIMEOUT",),
        outgoing: ("CANCEL_TIMEOUT", "_START_TIMEOUT"),
        giving_up: ("_ANSWER_TIMEOUT",),
    }.items():
        for name in names:
            patch.setattr(module, name, SHORT)


@dataclasses.dataclass
class Silence:
    """Stops a process before the ``at``-th command to it; from then on no one waits for long."""

    pid: int
    at: int
    patch: pytest.MonkeyPatch
    seen: int = 0

    def command(self) -> None:
        if self.seen == self.at:
            os.kill(self.pid, signal.SIGSTOP)
            make_impatient(self.patch)
        self.seen += 1

    @property
    def has_fallen(self) -> bool:
        """Whether there were so many commands."""
        return self.seen > self.at


@contextlib.contextmanager
def silent(pid: int, at: int) -> Iterator[Silence]:
    """Have the QEMU ``pid`` stop before the ``at``-th command, a connection being one as well."""
    execute, connect, look = qmp.QmpSession.execute, qmp.connect, stall.Watch._look
    with pytest.MonkeyPatch.context() as patch:
        silence = Silence(pid, at, patch)

        async def counted(self: qmp.QmpSession, *arguments: Any, **named: Any) -> Any:
            silence.command()
            if silence.has_fallen and named.get("timeout") is not None:
                named["timeout"] = SHORT  # it was looked up before
            return await execute(self, *arguments, **named)

        async def connecting(path: str, timeout: float) -> Any:
            silence.command()
            return await connect(path, timeout)

        def looked(self: stall.Watch, elapsed: float) -> None:
            look(self, elapsed * (_HURRY if silence.has_fallen else 1))

        patch.setattr(qmp.QmpSession, "execute", counted)
        patch.setattr(qmp, "connect", connecting)
        patch.setattr(stall.Watch, "_look", looked)
        try:
            yield silence
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def ends(work: Awaitable[Any]) -> errors.MapsaveError | None:
    """Wait for the end of ``work``, which must come in time; return the error it ended with."""
    try:
        async with asyncio.timeout(_LIMIT):
            await work
    except errors.MapsaveError as error:
        assert type(error) is not errors.MapsaveError, error
        return error
    return None


async def walk(pid: int, work: Callable[[], Awaitable[Any]]) -> int:
    """Do ``work`` with a QEMU that falls silent ever later; return how many commands it takes."""
    at = 0
    while True:
        with silent(pid, at) as silence:
            error = await ends(work())
        if not silence.has_fallen:
            assert error is None, error
            return at
        at += 1


async def recovered(site: cli.Site, config: configuration.Config) -> None:
    """Recover; a QEMU that was stopped may hang up when it notices that its client has gone."""
    done: dict[str, Any] = {}
    for _ in range(5):
        done = await recover.recover(config)
        if not struck.journals(site):
            return
    pytest.fail(f"not recovered: {done}")


def loaded(site: cli.Site) -> configuration.Config:
    return configuration.load(site.config, {})


async def test_check(site: cli.Site) -> None:
    with qemu.guest(site, NAME, memory="16M") as guest:
        config = loaded(site)
        before = guest.state()

        async def work() -> None:
            request = save_request.request(config, config.guests[NAME])
            _, error = await preview.preview(config.guests[NAME], config, request)
            if error is not None:
                raise error

        assert await walk(guest.pid, work) > 10
        assert guest.state() == before


@pytest.mark.cancels
@pytest.mark.parametrize(
    ("through", "at", "stride"), [*(("save", start, 4) for start in range(4)), ("job", 5, 12)]
)
async def test_save_and_recover(site: cli.Site, through: str, at: int, stride: int) -> None:
    """Whatever the save has left, recovery brings the guest back to running."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        config = loaded(site)
        before = guest.state()
        path = site.directory / "job.yaml"
        path.write_text(f"job: j\nguests: [{NAME}]\nsave: {{then: resume, replace: yes}}\n")
        loaded_job = job.load(path)

        async def work() -> None:
            guest_of_it = config.guests[NAME]
            if through == "job":
                done = await engine.run(loaded_job, config)
                for line in done["guests"]:
                    if line["error"]:
                        raise errors.from_dict(line["error"])
                return
            request = save_request.request(
                config, guest_of_it, image=IMAGE, replace=True, then="resume"
            )
            await save.save(guest_of_it, config, request)

        while True:
            with silent(guest.pid, at) as silence:
                error = await ends(work())
            if not silence.has_fallen:
                assert error is None, error
                break
            await recovered(site, config)
            assert not struck.partials(site)
            assert guest.state() == before, at
            at += stride
        assert at > 25


@pytest.mark.cancels
@pytest.mark.parametrize("step", ["hand-over", "migrate", "complete"])
async def test_recover(site: cli.Site, step: str) -> None:
    """Recovery that is not answered keeps the journal, and the next one goes on from there."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        config = loaded(site)
        words = ("save", NAME, "--image", IMAGE, "--then", "resume")
        result = struck.run(site, "after", step, "KILL", *words)
        assert result.returncode == -signal.SIGKILL
        at = 0
        while True:
            with silent(guest.pid, at) as silence:
                async with asyncio.timeout(_LIMIT):
                    done = await recover.recover(config)
            if not silence.has_fallen:
                break
            at += 1
            failed = [line["error"] for line in done["operations"]]
            assert bool(struck.journals(site)) == any(failed), done
            if not struck.journals(site):
                break
        assert not struck.journals(site)
        assert guest.state() == before
        assert at > 1


async def test_restore(site: cli.Site) -> None:
    """A destination that waits for its guest; each try needs a new one."""
    with scene.saved(site, memory="16M") as saved:
        config = loaded(site)
        at = 0
        while True:
            with qemu.running(name="other", memory="16M", incoming=True) as destination:
                request = restore_request.Request(
                    str(saved.image), into=str(destination.qmp), again=True
                )
                with silent(destination.pid, at) as silence:
                    error = await ends(restore.restore(config, request))
                if not silence.has_fallen:
                    assert error is None, error
                    break
                await recovered(site, config)
            at += 1
        assert at > 20


SERVICE_COMMANDS = ("list", "ps", "logs 0123", "wait 0123", "cancel 0123", "recover", "check toy")


@pytest.mark.parametrize("words", SERVICE_COMMANDS)
def test_service_that_answers_ever_fewer_requests(
    site: cli.Site, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is stopped before the n-th connection of a command, for every n."""
    with qemu.running(name="toy", memory="16M") as guest, service.running(site) as mapsaved:
        site.add_guest("toy", guest.qmp)
        mapsaved.signal(signal.SIGHUP)
        mapsaved.await_log("configuration reloaded")
        at = 0
        while _falls_silent(site, mapsaved, words.split(), at):
            assert "service" in capsys.readouterr().err
            at += 1
        assert at > 1


def _falls_silent(site: cli.Site, mapsaved: service.Service, words: list[str], at: int) -> bool:
    """Run a command; return whether the service fell silent in it, and it failed of that."""
    connect = address.Unix.connect
    with pytest.MonkeyPatch.context() as patch:
        silence = Silence(mapsaved.pid, at, patch)

        def counted(of: address.Unix, timeout: float, note: address.Note | None = None) -> Any:
            silence.command()
            return connect(of, SHORT if silence.has_fallen else timeout, note)

        patch.setattr(address.Unix, "connect", counted)
        patch.setattr(delegate, "USUAL", delegate.Patience(wait=5.0, reconnect=SHORT))
        patch.setattr(address, "BUSY", SHORT)
        try:
            with pytest.raises(SystemExit) as ended:
                main.main(["--config", str(site.config), *words])
        finally:
            mapsaved.signal(signal.SIGCONT)
    assert not silence.has_fallen or ended.value.code in (1, 2, 3), ended.value
    return silence.has_fallen
