"""The kernel's limits on QEMU and on mapsave: asked before a save or a restore begins.

QEMU asks for nothing beforehand, and dies where it is refused (``manager/plan/limits.py``). So what
it will take is counted, fewer channels are taken where they suffice, and else it is refused.
"""

import dataclasses
import os
import resource
import time
from collections.abc import Awaitable, Mapping

from mapsave import errors, together, units
from mapsave.image import superblock
from mapsave.monitor import headroom, process
from mapsave.monitor.control_groups import Limit
from mapsave.monitor.headroom import Headroom
from mapsave.monitor.ram_blocks import Memory, RamBlock
from mapsave.monitor.session import Session
from mapsave.plan import limits as plan
from mapsave.plan.limits import Need
from mapsave.plan.strategy import LIMITED_CHANNELS, Most

# The first thread, the one that works, those for blocking calls, and one that ends these. More at
# once are not needed.
_OWN_THREADS = 6
# How often these are counted, and the seconds in between, until none ends meanwhile.
_LOOKS, _MOMENT = 100, 0.001
# The state of the devices; most guests' take a few hundred KiB.
_DEVICES = 16 * units.MIB


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Of which process a save or a restore takes what.

    ``pid`` is None where QEMU's process is not known for certain. ``workers``: threads that QEMU
    may have to start for its disks. ``image_bytes``: the length that its image may get.
    """

    pid: int | None
    workers: int
    image_bytes: int


@dataclasses.dataclass(frozen=True)
class Limited:
    """How many channels may be taken (None: as many as are wanted), and the check's line."""

    most: Most | None
    detail: str


async def footprint(
    session: Session, memory: Awaitable[Memory], blocks: Awaitable[Mapping[str, RamBlock]]
) -> Footprint:
    """Ask QEMU for it; ``memory`` is for one that does not list its RAM ``blocks``."""
    async with together.group() as tasks:
        pid = tasks.create_task(_qemu_pid(session))
        workers = tasks.create_task(_workers(session))
    used = [block.used for block in (await blocks).values()] or [(await memory).total]
    # Each block begins at a full MiB after its bitmap.
    stream = sum(length + length // (8 * 4096) + 2 * units.MIB for length in used)
    return Footprint(
        pid=pid.result(),
        workers=workers.result(),
        image_bytes=superblock.DEFAULT_STREAM_OFFSET + stream + _DEVICES,
    )


async def _qemu_pid(session: Session) -> int | None:
    """Return QEMU's pid; None where another process listens for it, such as a proxy."""
    pid = session.pid
    if pid is None:
        return None
    try:
        processors = await session.processors()
    except errors.CommandRefused:
        return pid
    threads = [int(each["thread-id"]) for each in processors[:1]]
    return pid if all(process.has_thread(pid, thread) for thread in threads) else None


async def _workers(session: Session) -> int:
    """Return how many threads QEMU may start for its disks (util/thread-pool.c): one a loop."""
    if not any("inserted" in each for each in await session.execute("query-block")):
        return 0
    return 1 + len(await session.execute("query-iothreads"))


def for_save(footprint: Footprint, preferred: int, *, is_demanded: bool) -> Limited:
    """Return how many channels a save may take, where ``preferred`` would be, or are demanded.

    Raises TooLittleLeft where not even one fits, or fewer than were asked for explicitly.
    """
    own, room = _measured(footprint.pid)
    if room.file_size is not None and room.file_size < footprint.image_bytes:
        raise errors.TooLittleLeft(
            f"QEMU (pid {footprint.pid}) may write files of at most "
            f"{units.format_size(room.file_size)} (RLIMIT_FSIZE), the image may grow to "
            f"{units.format_size(footprint.image_bytes)}",
            hint=f"raise the limit: prlimit --pid {footprint.pid} --fsize=unlimited:unlimited",
            limit="RLIMIT_FSIZE",
            most=room.file_size,
            needed=footprint.image_bytes,
        )
    return _limited(footprint, room, own, preferred, is_demanded=is_demanded)


def for_load(footprint: Footprint, wanted: int, *, is_demanded: bool) -> Most | None:
    """Return how many channels a restore may take; None: ``wanted``. Raises TooLittleLeft."""
    own, room = _measured(footprint.pid)
    return _limited(footprint, room, own, wanted, is_demanded=is_demanded).most


def _limited(
    footprint: Footprint, room: Headroom, own: dict[str, int], wanted: int, *, is_demanded: bool
) -> Limited:
    needs = plan.needs(room, workers=footprint.workers, handed_over=0, own=own)
    tightest = plan.tightest(needs)
    if tightest is not None and tightest.channels < (wanted if is_demanded else 1):
        raise _refused(footprint.pid, tightest, wanted if is_demanded else 1, is_demanded)
    most, unknown = Most(wanted, ""), ", ".join(room.unknown)
    if unknown and not is_demanded and wanted > LIMITED_CHANNELS:
        most = Most(LIMITED_CHANNELS, f"few, because QEMU's limits are unknown: {unknown}")
    if tightest is not None and tightest.channels < most.channels:
        words = f"as many as the limits allow: {tightest.text(wanted)}"
        most = Most(tightest.channels, words)
    detail = tightest.text(most.channels) if tightest is not None else "no limit that matters"
    if unknown:
        detail = f"unknown: {unknown}; {plan.plural(most.channels)}"
    return Limited(most if most.channels < wanted else None, detail)


def _refused(pid: int | None, need: Need, channels: int, is_demanded: bool) -> errors.TooLittleLeft:
    hint = _hint(pid, need.limit)
    if is_demanded and need.channels >= 1:
        hint = f"use at most {plan.plural(need.channels)}, or set channels to auto; or {hint}"
    return errors.TooLittleLeft(
        f"QEMU (pid {pid}) has {need.text(channels)}; it would crash",
        hint=hint,
        **need.as_dict(channels),
    )


def _hint(pid: int | None, limit: Limit) -> str:
    name = limit.name.split()[0]
    if name.startswith("RLIMIT_"):
        option = name.removeprefix("RLIMIT_").lower()
        shared = "; it counts all threads of that user on this host" if option == "nproc" else ""
        return f"raise the limit: prlimit --pid {pid or os.getpid()} --{option}=NUMBER{shared}"
    if limit.file:
        return f"write a larger number to {limit.file} (of a systemd unit: TasksMax=)"
    return f"raise the limit: sysctl {name}=NUMBER"


def recheck(footprint: Footprint, channels: int) -> None:
    """Raise TooLittleLeft where ``channels`` no longer fit, now that QEMU has the descriptors."""
    own, room = _measured(footprint.pid)
    needs = plan.needs(room, workers=footprint.workers, handed_over=plan.HANDED_OVER, own=own)
    tightest = plan.tightest(needs)
    if tightest is not None and tightest.channels < channels:
        error = _refused(footprint.pid, tightest, channels, is_demanded=False)
        error.message += "; other processes have used some since the check"
        raise error


def _measured(pid: int | None) -> tuple[dict[str, int], Headroom]:
    """Return how many threads we may still start, by limit, and what is left to process ``pid``.

    Raises TooLittleLeft where the threads are too few. A thread of ours that ends in between would
    be counted as taken, and as still to be taken; on a busy host many have yet to end.
    """
    for _ in range(_LOOKS):
        count = _count()
        own, room = headroom.measure(os.getpid()), headroom.measure(pid)
        if count == _count():
            break
        time.sleep(_MOMENT)
    return _own_threads(own, max(_OWN_THREADS - count, 0)), room


def _count() -> int:
    return len(os.listdir("/proc/self/task"))


def _own_threads(room: Headroom, needed: int) -> dict[str, int]:
    """Return the ``needed`` threads by limit. Raises TooLittleLeft where fewer are left."""
    for limit in room.threads:
        if limit.left < needed:
            threads = "thread" if limit.left == 1 else "threads"
            raise errors.TooLittleLeft(
                f"mapsave has {limit.left} {threads} left of {limit.most} ({limit.name}) and "
                f"needs {needed}",
                hint=_hint(None, limit),
                limit=limit.name,
                most=limit.most,
                left=limit.left,
                needed=needed,
            )
    return {limit.name: needed for limit in room.threads}


def check_own_files(preallocated: int) -> None:
    """Raise TooLittleLeft where mapsave may not write header and ``preallocated`` bytes."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    needed = superblock.DEFAULT_STREAM_OFFSET + preallocated
    if most != resource.RLIM_INFINITY and most < needed:
        raise errors.TooLittleLeft(
            f"mapsave may write files of at most {units.format_size(most)} (RLIMIT_FSIZE) and "
            f"needs {units.format_size(needed)}",
            hint="raise the limit (ulimit -f; of a systemd unit LimitFSIZE=)",
            limit="RLIMIT_FSIZE",
            most=most,
            needed=needed,
        )
