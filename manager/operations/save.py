"""Save a guest: preflight, create the partial image, hand the pair over, drive QEMU, commit, then.

Read ``_save`` and ``_write`` from top to bottom: that is the order in which things happen, and the
contexts they open are the order in which things are undone, whatever goes wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Literal

from manager import errors
from manager.image import bitmaps, descriptors, image, store, superblock, syscalls
from manager.labels import labelling, policy
from manager.migration import guest_state, outgoing, parameters, progress
from manager.monitor import fdset, process
from manager.operations import attach, check, facts, journal, locks, metadata, waiting
from manager.plan.strategy import Wishes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manager.config import Config, Guest
    from manager.image.image import Contents, Partial
    from manager.labels.labelling import Applied
    from manager.migration.guest_state import Paused
    from manager.migration.progress import Phases, Report
    from manager.monitor.session import Session
    from manager.operations.facts import Facts
    from manager.plan.strategy import Strategy

_log = logging.getLogger(__name__)

QUIT_TIMEOUT = 60.0
# A process that was killed closes its monitor a moment before it is gone.
_END_TIMEOUT = 2.0
_DENIED = "Permission denied"
# Runs of unwritten pages shorter than this keep their preallocated blocks: giving back single
# pages costs more calls than it frees room.
_WORTH_PUNCHING = 1 << 20


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a save. ``image`` is a path or a name in the image directory."""

    image: str | None = None
    then: Literal["quit", "resume", "leave"] = "quit"
    live: bool = False
    wishes: Wishes = dataclasses.field(default_factory=Wishes)
    policy: str = "auto"
    replace: bool = False
    timeout: float | None = None
    stream_offset: int = superblock.DEFAULT_STREAM_OFFSET


@dataclasses.dataclass
class _Job:
    """One save under way: everything that preflight has settled."""

    session: Session
    directory: store.Directory
    name: str
    request: Request
    facts: Facts
    strategy: Strategy
    labelling: labelling.Labelling
    log: journal.Journal
    phases: Phases
    metadata: dict[str, Any]
    fdset: int

    @property
    def path(self) -> str:
        return os.path.join(self.directory.path, self.name)

    @property
    def partial_path(self) -> str:
        return os.path.join(self.directory.path, image.partial_name(self.name))


async def save(
    guest: Guest, config: Config, request: Request, report: Report = progress.silent
) -> dict[str, Any]:
    """Save ``guest`` and return the summary that ``mapsave save --json`` prints.

    Raises Refused or one of its kin with the guest untouched, NotPermitted, Busy, SaveFailed or one
    of its kin with the guest as it was.
    """
    phases = progress.Phases(report)
    try:
        async with asyncio.timeout(request.timeout):
            return await _save(guest, config, request, phases)
    except TimeoutError:
        raise errors.SaveTimeout(
            f"guest {guest.name!r}: not saved within {request.timeout:g} s; cancelled",
            hint="the guest is as before; allow more time, or see 'mapsave check'",
        ) from None


async def _save(guest: Guest, config: Config, request: Request, phases: Phases) -> dict[str, Any]:
    phases.enter("preflight")
    who = f"guest {guest.name!r}"
    with locks.held(config.state, who, attach.lock_key(attach.socket_path(guest, config))):
        async with attach.attached(guest, config) as session:
            found = await facts.gather(session)
            with _one_saver(config, who, found), place(guest, config, request) as (held, name):
                chosen = policy_labelling(config, request.policy)
                strategy = check.all_pass(
                    check.Preflight(found, held, name, request.replace, request.wishes, chosen)
                )
                number = await fdset.choose_id(session)
                known = metadata.before(guest.name, found, strategy, live=request.live)
                with journal.operation(
                    config.state,
                    "save",
                    **_journalled(guest, config, request, held, name, found, number),
                ) as log:
                    job = _Job(
                        *(session, held, name, request, found, strategy, chosen, log),
                        *(phases, known, number),
                    )
                    return await _write(guest, job)


def policy_labelling(config: Config, name: str) -> labelling.Labelling:
    """Return the policy ``name`` ready to be applied. Raises UnknownPolicy, ConfigError."""
    search = [config.policies] if config.policies else []
    return labelling.Labelling(policy.load(name, search))


@contextlib.contextmanager
def _one_saver(config: Config, who: str, found: Facts) -> Iterator[None]:
    """Lock the QEMU process as well: a guest may have two monitors, and two names."""
    if found.pid is None:
        yield
        return
    key = f"process:{found.pid}:{process.start_time(found.pid)}"
    with locks.held(config.state, who, key):
        yield


@contextlib.contextmanager
def place(guest: Guest, config: Config, request: Request) -> Iterator[tuple[store.Directory, str]]:
    """Yield the directory and the name of the image to be."""
    target = request.image
    if target is None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        plain = guest.name.removeprefix("qmp:").replace("/", "_").strip("_")
        target = f"{plain}-{stamp}.mapsave"
    path, name = os.path.split(target)
    store.check_name(name)
    with store.directory(path or config.images, create=not path) as held:
        yield held, name


def _journalled(
    guest: Guest,
    config: Config,
    request: Request,
    held: store.Directory,
    name: str,
    found: Facts,
    number: int,
) -> dict[str, Any]:
    """Return what ``mapsave recover`` needs to finish or undo this save."""
    return {
        "guest": guest.name,
        "socket": os.path.realpath(attach.socket_path(guest, config)),
        "pid": found.pid,
        "process_started": process.start_time(found.pid) if found.pid else None,
        "directory": held.path,
        "name": name,
        "replace": request.replace,
        "then": request.then,
        "policy": request.policy,
        "was_running": found.runs,
        "settings": found.settings.as_dict(),
        "fdset": number,
    }


async def _write(guest: Guest, job: _Job) -> dict[str, Any]:
    """Create, label, let QEMU write, commit, and do what was asked for ``then``."""
    job.phases.enter("prepare")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_our_write_errors(job))
        with job.labelling.creating(job.facts.pid):
            partial = stack.enter_context(
                image.creating(
                    *(job.directory.fd, job.name, job.metadata),
                    stream_offset=job.request.stream_offset,
                )
            )
        applied = stack.enter_context(
            job.labelling.applied(partial.fd, job.partial_path, [job.path], job.facts.pid, "save")
        )
        job.log.step("label", label=applied.label.as_dict(), uuid=str(partial.block.uuid))
        if job.strategy.preallocate:
            room = job.facts.memory.total + job.request.stream_offset
            syscalls.preallocate(partial.fd, 0, room)
        async with guest_state.put_back_at_end(job.session, was_running=job.facts.runs) as paused:
            outcome = await _let_qemu_write(job, partial, applied, paused)
            if job.request.then == "resume" and outcome is not None:
                job.log.step("resume")
                await paused.resume(job.session)
            contents = await _prove(job, partial, outcome)
            return await waiting.to_the_end(_commit(guest, job, partial, applied, paused, contents))


@contextlib.contextmanager
def _our_write_errors(job: _Job) -> Iterator[None]:
    """Turn what the file system refuses to ourselves into an error that names the image."""
    try:
        yield
    except FileExistsError:
        raise errors.ImageExists(
            f"{job.path!r} was made by somebody else meanwhile", hint="choose another name"
        ) from None
    except OSError as error:
        raise errors.SaveFailed(
            f"cannot write {job.partial_path!r}: {error.strerror}", errno=error.errno
        ) from None
    except ValueError as error:
        raise errors.SaveFailed(f"cannot write {job.partial_path!r}: {error}") from None


async def _let_qemu_write(
    job: _Job, partial: Partial, applied: Applied, paused: Paused
) -> outgoing.Outcome | None:
    """Hand the pair over and drive the migration.

    Returns its outcome; None where QEMU died after it had written its stream whole.
    """
    try:
        with descriptors.paired(partial.fd, os.O_WRONLY, direct_io=job.strategy.direct_io) as pair:
            return await _transfer(job, pair, paused)
    except errors.MonitorLost as error:
        await _check_loss(job, partial, applied, error)
        return None
    except errors.CommandRefused as error:
        if _DENIED in error.desc:
            raise _refused(job, partial.fd, error.desc) from None
        raise errors.SaveFailed(f"{job.session.address}: {error.message}") from None
    except errors.SaveFailed as error:
        words = str(error.data.get("qemu_error"))
        if _DENIED in words:
            raise _refused(job, partial.fd, words) from None
        raise


def _refused(job: _Job, fd: int, words: str) -> errors.LabelRefused:
    """Return the error for a file that a security module kept from QEMU, with QEMU's words."""
    return labelling.describe_refusal(words, fd, job.partial_path, job.facts.pid)


async def _transfer(job: _Job, pair: descriptors.Pair, paused: Paused) -> outgoing.Outcome:
    job.log.step("hand-over")
    fds = (pair.first, pair.second)
    dropped = functools.partial(_refused, job, pair.first)
    async with (
        fdset.handed_over(job.session, fds, job.fdset, dropped) as path,
        parameters.configured(job.session, job.facts.settings, job.strategy.parameters()),
    ):
        if job.facts.runs and not job.request.live:
            job.log.step("pause")
            await guest_state.pause(job.session)
            paused.since = time.monotonic()
        job.log.step("migrate")
        job.phases.enter("write")
        outcome = await outgoing.save(
            job.session, path, job.request.stream_offset, job.phases, live=job.request.live
        )
        if job.request.live:
            paused.since = time.monotonic() - (outcome.downtime_ms or 0) / 1000
        job.log.step("complete")
        job.phases.enter("settle")
        return outcome


async def _check_loss(
    job: _Job, partial: Partial, applied: Applied, error: errors.MonitorLost
) -> None:
    """Decide what a lost monitor means: QEMU's end, or only the connection's.

    Returns where QEMU has ended with its stream whole: then the image can be committed.
    """
    found = job.facts
    if found.pid is not None and not await _ended(found.pid, _END_TIMEOUT):
        partial.keep()
        applied.keep()
        job.log.unsettled()
        raise errors.SaveFailed(
            f"{error.message}, though QEMU (pid {found.pid}) lives",
            hint="run 'mapsave recover': it finishes the save or puts the guest back",
        )
    try:
        partial.validate()
    except errors.InvalidImage:
        raise errors.SaveQemuDied(
            f"guest {job.metadata['guest']['name']!r}: QEMU ended while it was saving",
            hint="see QEMU's own log; mapsave did not end it",
        ) from None


async def _prove(job: _Job, partial: Partial, outcome: outgoing.Outcome | None) -> Contents:
    """Bring the data to stable storage and read the structure back.

    Raises CommitFailed, with the guest to be put back by the caller's contexts.
    """
    job.phases.enter("sync")
    try:
        await waiting.in_thread(partial.sync)
        job.phases.enter("validate")
        contents = await waiting.in_thread(partial.validate)
        if outcome is not None and outcome.normal_pages and not contents.data_bytes:
            raise errors.EmptyRam(
                f"QEMU wrote {outcome.normal_pages} pages, but every page bit is clear"
            )
        if job.strategy.preallocate:
            await waiting.in_thread(_trim, partial, contents)
    except OSError as error:
        raise errors.CommitFailed(f"{job.partial_path!r}: {error.strerror}") from None
    except errors.InvalidImage as error:
        raise errors.CommitFailed(
            f"{job.partial_path!r}, read back: {error.message}", found=error.as_dict()
        ) from None
    return contents


def _trim(partial: Partial, contents: Contents) -> None:
    """Give back what was preallocated and not written: behind the end, and long zero runs."""
    os.ftruncate(partial.fd, contents.stream.end)
    for block in contents.stream.blocks:
        for first, count in bitmaps.clear_runs(partial.fd, block):
            length = count * block.page_size
            if length >= _WORTH_PUNCHING:
                offset = block.pages_offset + first * block.page_size
                syscalls.punch_hole(partial.fd, offset, length)


async def _commit(
    guest: Guest,
    job: _Job,
    partial: Partial,
    applied: Applied,
    paused: Paused,
    contents: Contents,
) -> dict[str, Any]:
    """Make the image valid under its name; only then may the guest go."""
    job.phases.enter("commit")
    final = metadata.after(
        job.metadata,
        contents,
        applied.label,
        duration=job.phases.total,
        paused_at=time.time() - paused.seconds() if job.facts.runs else None,
    )
    job.log.step("commit")
    partial.commit(final, replace=job.request.replace)
    job.log.step("committed")
    applied.at_rest()
    if job.request.then == "quit":
        job.phases.enter("quit")
        await end_guest(job.session)
    paused.release()
    stats = os.fstat(partial.fd)
    phases = job.phases.seconds()
    written = phases.get("write", 0) + phases.get("sync", 0)
    return {
        "image": job.path,
        "guest": guest.name,
        "format": "native",
        "state": partial.block.state.word,
        "ram_bytes": contents.stream.ram_bytes,
        "data_bytes": contents.data_bytes,
        "file_bytes": stats.st_size,
        "allocated_bytes": stats.st_blocks * 512,
        "duration_s": round(job.phases.total, 6),
        "downtime_s": round(paused.seconds(), 6) if job.facts.runs else 0.0,
        "phases": phases,
        "bytes_per_s": round(contents.data_bytes / written) if written else 0,
        "strategy": job.strategy.as_dict(),
        "label": applied.label.as_dict(),
        "then": job.request.then,
    }


async def end_guest(session: Session) -> None:
    """Tell QEMU to quit, and wait until its process is gone (its disks are free then).

    A QEMU that is gone already is what was wanted; one that stays is logged.
    """
    pid = session.pid
    try:
        await session.execute("quit", timeout=QUIT_TIMEOUT)
    except errors.MonitorLost:
        pass
    except errors.MonitorError as error:
        _log.warning(
            "%s: the image is committed, but QEMU does not quit: %s", session.address, error
        )
        return
    await session.wait_lost(QUIT_TIMEOUT)
    if pid is not None and not await _ended(pid, QUIT_TIMEOUT):
        _log.warning("%s: QEMU (pid %d) has not ended yet", session.address, pid)


async def _ended(pid: int, timeout: float) -> bool:
    """Wait until the process is gone; False after ``timeout`` seconds."""
    started = process.start_time(pid)
    deadline = time.monotonic() + timeout
    while started is not None and process.alive(pid, started):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


def request(config: Config, guest: Guest, **chosen: Any) -> Request:
    """Return the request for what was ``chosen``, completed by the guest's and general settings.

    ``chosen`` holds ``image``, ``replace``, ``timeout`` and any of the settings of
    ``config.SaveSettings``; those that are None are filled in.
    """
    general = config.save

    def pick(name: str) -> Any:
        value = chosen.get(name)
        return getattr(general, name) if value is None else value

    if pick("format") != "native":
        raise errors.Unsupported(
            f"format {pick('format')!r} is not written by this version", hint="use 'native'"
        )
    channels = pick("channels")
    return Request(
        image=chosen.get("image"),
        then=pick("then"),
        live=pick("live"),
        wishes=Wishes(
            direct_io=pick("direct_io"),
            zero_pages=pick("zero_pages"),
            channels=None if channels == "auto" else channels,
            preallocate=pick("preallocate"),
        ),
        policy=chosen.get("policy") or guest.policy or general.policy or "auto",
        replace=bool(chosen.get("replace")),
        timeout=chosen.get("timeout"),
    )
