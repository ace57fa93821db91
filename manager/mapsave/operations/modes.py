"""Modes of QEMU in which a save or a load kills it, hangs, or cannot be begun: asked beforehand."""

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mapsave import errors, together
from mapsave.image import description
from mapsave.image.image import Image
from mapsave.image.validation import Contents
from mapsave.migration import outgoing
from mapsave.migration.outgoing import Outcome
from mapsave.monitor import process
from mapsave.monitor.session import Session

# What QEMU says to nearly every command until its machine is made (qapi/qmp-dispatch.c).
_TOO_EARLY = "only after machine initialization"
# Jobs that keep QEMU from inactivating the disks (10.0, tried), or stop and resume the guest
# themselves. Others, as mirrors and streams, end with QEMU, unfinished.
_HINDERING = frozenset(("backup", "commit", "snapshot-save", "snapshot-load", "snapshot-delete"))
# Of jobs that do no more (qapi/job.json, JobStatus).
_OVER = frozenset(("undefined", "concluded", "null"))
_EXPORTS = frozenset(("vhost-user-blk", "fuse", "vduse-blk"))
# Parts of the state of QEMU's clocks (system/cpu-timers.c), and those that are timers.
_ICOUNT = "timer/icount"
_WARP, _ADAPTIVE = "timer/icount/warp_timer", "timer/icount/timers"
_TIMERS = {_WARP, _ADAPTIVE}


class Replay(enum.StrEnum):
    """QEMU's replay modes (``qapi/replay.json``, ``ReplayMode``)."""

    NONE = "none"
    RECORD = "record"
    PLAY = "play"


@dataclasses.dataclass(frozen=True)
class Mode:
    """QEMU's replay mode, and what else it does, as users name it.

    With ``writers``, jobs and exports, QEMU cannot release the guest's disks; ``jobs`` are others.
    """

    replay: str
    writers: tuple[str, ...]
    jobs: tuple[str, ...]


async def query(session: Session) -> Mode:
    """Ask QEMU in which modes it is."""
    async with together.group() as tasks:
        replay = tasks.create_task(_replay(session))
        all_jobs = tasks.create_task(session.execute("query-jobs"))
        all_exports = tasks.create_task(session.execute("query-block-exports"))
    jobs = [job for job in all_jobs.result() if job["status"] not in _OVER]
    exports = all_exports.result()
    writers = (
        *_named(job for job in jobs if job["type"] in _HINDERING),
        *(f"{each['type']} export {each['id']!r}" for each in exports if each["type"] in _EXPORTS),
    )
    others = tuple(_named(job for job in jobs if job["type"] not in _HINDERING))
    return Mode(replay.result(), writers, others)


async def _replay(session: Session) -> str:
    try:
        return str((await session.execute("query-replay"))["mode"])
    except errors.CommandRefused:
        return Replay.NONE  # built without TCG


def _named(jobs: Iterable[Mapping[str, object]]) -> Iterator[str]:
    return (f"{job['type']} job {job['id']!r}" for job in jobs)


def check(mode: Mode, *, goes_on: bool) -> str:
    """Return the check's line. ``goes_on``: whether the guest is resumed after the save.

    Raises UnsafeMode where a save would make QEMU abort, NotMigratable where a job would make it
    fail, or be cut off by it.
    """
    if mode.replay != Replay.NONE:
        does = {
            Replay.RECORD.value: "records its execution",
            Replay.PLAY.value: "replays a recorded execution",
        }
        raise errors.UnsafeMode(
            f"QEMU {does.get(mode.replay, mode.replay)} (-icount rr={mode.replay}): a save would "
            "make it abort",
            hint="start the guest without rr= to save it; use QEMU's own snapshots for "
            "recordings (savevm, rrsnapshot=)",
            replay=mode.replay,
        )
    if mode.writers:
        raise errors.NotMigratable(
            f"{', '.join(mode.writers)} in progress, so QEMU could not release the guest's disks "
            "at the end of the save",
            hint="wait until it has finished, or stop it ('job-cancel', 'block-export-del' at "
            "QEMU's monitor)",
            writers=list(mode.writers),
        )
    if mode.jobs and not goes_on:
        raise errors.NotMigratable(
            f"{', '.join(mode.jobs)} in progress, which would not go on after the save",
            hint="wait until it has finished, stop it ('job-cancel' at QEMU's monitor), or save "
            "with --then resume",
            jobs=list(mode.jobs),
        )
    return "no record/replay, and no job that the save would disturb"


async def migration(session: Session) -> Outcome:
    """Return where QEMU's migration is, asked first of all.

    Raises WrongRunState where QEMU has not made its machine yet (``-preconfig``).
    """
    try:
        return await outgoing.query(session)
    except errors.CommandRefused as error:
        if _TOO_EARLY not in error.desc:
            raise
        raise errors.WrongRunState(
            f"{session.address}: QEMU is in preconfig state (-preconfig) and has no machine yet",
            hint="finish its configuration ('x-exit-preconfig' at its monitor) first",
        ) from None


def compare_icount(session: Session, opened: Image, contents: Contents) -> None:
    """Raise DestinationMismatch where the image counts instructions otherwise than the destination.

    QEMU 10.0 aborts over the state of a timer that the destination does not have. Which ones it has
    follows from ``-icount`` (accel/tcg/icount-common.c): one for the time while the guest sleeps,
    unless ``sleep=off``, and two with ``shift=auto``.
    """
    saved = description.state_names(opened.fd, contents.stream, _ICOUNT)
    argv = process.command_line(session.pid) if session.pid is not None else []
    if not saved or not argv:
        return
    lacking = sorted(saved & _TIMERS - _timers(argv))
    if lacking:
        raise errors.DestinationMismatch(
            f"the guest was saved with -icount, and its state has {', '.join(lacking)}, which the "
            "destination lacks; QEMU would abort",
            hint="start the destination with the same -icount (shift=, sleep=)",
            lacking=lacking,
        )


def _timers(argv: Sequence[str]) -> set[str]:
    """Return the states of timers that a QEMU of this command line has."""
    at = [number for number, word in enumerate(argv) if word in ("-icount", "--icount")]
    if not at:
        return set()
    # The first value may come without its name (qemu-options.hx).
    words = argv[at[-1] + 1].split(",")
    options = dict((word if "=" in word else f"shift={word}").split("=", 1) for word in words)
    found = set() if options.get("sleep") in ("off", "no", "false", "n") else {_WARP}
    return found | ({_ADAPTIVE} if options.get("shift") == "auto" else set())
