"""The kinds of faults: what each draws for a seed."""

import errno
import random
from collections.abc import Callable
from dataclasses import replace

from tests.campaign import deeds
from tests.campaign.plan import (
    NOTHING,
    RESTORE_STEPS,
    SAVE_STEPS,
    Blow,
    Plan,
    State,
    World,
    base,
)
from tests.kit.inject import Action, Call, Rule

Draw = Callable[[random.Random, Plan], Plan]
MIB = 1 << 20
_FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EINTR)
_PARTIAL = "one.mapsave"

# What mapsave does itself that may fail, and where: the call, and part of the file's path.
_OWN_CALLS: tuple[tuple[Call, str], ...] = (
    ("fsync", ".mapsave"),
    ("fsync", "/images"),
    ("fsync", "/"),
    ("fdatasync", "/journal"),
    ("fdatasync", "/"),
    ("write", "/journal"),
    ("write", "/state"),
    ("pwrite", ".mapsave"),
    ("pread", ".mapsave"),
    ("rename", ".mapsave"),
    ("unlink", ".mapsave"),
    ("unlink", "/journal"),
    ("unlink", "/state"),
    ("open", "one.mapsave"),
    ("open", "site/state/journal"),
    ("open", "site/state"),
    ("open", "site/images"),
    ("ftruncate", "/"),
    ("fallocate", ".mapsave"),
)
_OWN_WRITES: tuple[tuple[Call, str], ...] = (
    ("write", "/journal"),
    ("write", "/state"),
    ("pwrite", ".mapsave"),
)
# At which of its calls it is killed: what it does to files, and what it sends and receives.
_MOMENTS: tuple[tuple[Call, str, int], ...] = (
    ("write", "/journal", 12),
    ("fdatasync", "/", 12),
    ("fsync", "/", 10),
    ("pwrite", ".mapsave", 8),
    ("pread", ".mapsave", 30),
    ("rename", ".mapsave", 1),
    ("unlink", "/", 3),
    ("send", "socket:", 60),
    ("recv", "socket:", 80),
)


# The same for a restore, which makes fewer calls.
_RESTORE_CALLS: tuple[tuple[Call, str], ...] = (
    ("fsync", ".mapsave"),
    ("fsync", "/"),
    ("fdatasync", "/journal"),
    ("write", "/journal"),
    ("write", "/state"),
    ("pwrite", ".mapsave"),
    ("pread", ".mapsave"),
    ("unlink", "/journal"),
    ("open", "one.mapsave"),
    ("open", "site/state"),
)
_RESTORE_MOMENTS: tuple[tuple[Call, str, int], ...] = (
    ("write", "/journal", 6),
    ("fdatasync", "/", 6),
    ("fsync", "/", 3),
    ("pwrite", ".mapsave", 2),
    ("pread", ".mapsave", 15),
    ("unlink", "/journal", 1),
    ("send", "socket:", 25),
    ("recv", "socket:", 30),
)


def _rule(
    rng: random.Random, call: Call, action: Action, argument: int, path: str, most: int
) -> Rule:
    """Return a rule for one of the first ``most`` calls, the earlier the likelier."""
    skip = min(int(rng.expovariate(4 / most)), most - 1)
    return Rule(call, action, argument, path, skip=skip, count=rng.choice((1, 1, 1, 3)))


def _moment(rng: random.Random, number: int) -> Rule:
    return _one_of(rng, _MOMENTS, number)


def _one_of(rng: random.Random, moments: tuple[tuple[Call, str, int], ...], number: int) -> Rule:
    call, path, most = rng.choice(moments)
    return Rule(call, "kill", number, path, skip=rng.randrange(most), count=1)


def _own_failure(rng: random.Random) -> Rule:
    call, path = rng.choice(_OWN_CALLS)
    return _rule(rng, call, "errno", rng.choice(_REFUSALS), path, 8)


def _own_delay(rng: random.Random, plan: Plan) -> Plan:
    """A monitor that answers late, as behind a proxy."""
    call: Call = rng.choice(("send", "recv"))
    path = "socket:" if plan.world == "libvirt" else ".qmp"
    rule = Rule(call, "delay", rng.randrange(1000, 60_000), path, count=-1)
    return replace(plan, blow=Blow(rules=(rule,)), restore_blow=Blow(rules=(rule,)))


def _monitor_lost(rng: random.Random, plan: Plan) -> Plan:
    """The connection to the monitor breaks, while QEMU knows nothing of it."""
    call: Call = rng.choice(("send", "recv"))
    number = errno.EPIPE if call == "send" else errno.ECONNRESET
    rule = Rule(call, "errno", number, ".qmp", skip=rng.randrange(60))
    if rng.random() < 0.7:
        return replace(plan, blow=Blow(rules=(rule,)), recoveries=_maybe_recoveries(rng))
    recoveries = _maybe_recoveries(rng)
    return replace(plan, restore_blow=Blow(rules=(rule,)), recoveries=recoveries, then="quit")


def _maybe_recoveries(rng: random.Random) -> tuple[Blow, ...]:
    """Return what hits the recoveries that come before a clean one: nothing, mostly."""
    found: list[Blow] = []
    while rng.random() < 0.4 and len(found) < 3:
        rule = _moment(rng, 9) if rng.random() < 0.6 else _own_failure(rng)
        found.append(Blow(rules=(rule,)))
    return tuple(found)


# In QEMU, while it saves.


def _guest_rule(action: Action, arguments: Callable[[random.Random], int]) -> Draw:
    def draw(rng: random.Random, plan: Plan) -> Plan:
        call: Call = rng.choice(("pwritev", "pwritev", "pwritev", "pwrite", "writev", "write"))
        rule = _rule(rng, call, action, arguments(rng), _PARTIAL, 12)
        tags = plan.tags | ({"guest dies"} if action == "kill" else set())
        options = plan.save
        if action == "hang":
            rule = Rule(call, "delay", 4_000_000, _PARTIAL, skip=rule.skip, count=1)
            options = (*options, "--timeout", "1s")
        return replace(plan, guest_rules=(rule,), save=options, tags=tags)

    return draw


def _short(rng: random.Random) -> int:
    return rng.choice((0, 1, 512, 4096, 8192, rng.randrange(1, 300) * 512, rng.randrange(1 << 17)))


# In mapsave.


def _own_errno(rng: random.Random, plan: Plan) -> Plan:
    rules = tuple(_own_failure(rng) for _ in range(rng.choice((1, 1, 2))))
    return replace(plan, blow=Blow(rules=rules), recoveries=_maybe_recoveries(rng))


def _own_short(rng: random.Random, plan: Plan) -> Plan:
    call, path = rng.choice(_OWN_WRITES)
    rule = _rule(rng, call, "short", rng.randrange(64), path, 8)
    return replace(plan, blow=Blow(rules=(rule,)), recoveries=_maybe_recoveries(rng))


def _killed(rng: random.Random, plan: Plan) -> Plan:
    return replace(plan, blow=Blow(rules=(_moment(rng, 9),)), recoveries=_maybe_recoveries(rng))


def _told_to_stop(rng: random.Random, plan: Plan) -> Plan:
    rules = [_moment(rng, rng.choice((2, 15, 1)))]
    if rng.random() < 0.4:
        rules.append(_moment(rng, rng.choice((2, 15))))
    return replace(plan, blow=Blow(rules=tuple(rules)))


def _at_step(rng: random.Random, signals: str) -> Blow:
    return Blow(strike=(rng.choice(("before", "after")), rng.choice(SAVE_STEPS), signals))


def _step_kill(rng: random.Random, plan: Plan) -> Plan:
    return replace(plan, blow=_at_step(rng, "KILL"), recoveries=_maybe_recoveries(rng))


def _step_signal(rng: random.Random, plan: Plan) -> Plan:
    return replace(plan, blow=_at_step(rng, rng.choice(("TERM", "INT", "INT+INT", "HUP"))))


def _step_guest_dies(rng: random.Random, plan: Plan) -> Plan:
    blow = _at_step(rng, rng.choice(("guest:KILL", "guest:SEGV")))
    return replace(plan, blow=blow, tags=plan.tags | {"guest dies"})


def _both_die(rng: random.Random, plan: Plan) -> Plan:
    """QEMU ends after mapsave was killed, before the recovery."""
    tags = plan.tags | {"guest dies"}
    recoveries = _maybe_recoveries(rng)
    return replace(
        plan, blow=_at_step(rng, "KILL"), between="guest dies", recoveries=recoveries, tags=tags
    )


def _time_limit(rng: random.Random, plan: Plan) -> Plan:
    """Slow storage, and a limit that may be met at any point."""
    rule = Rule("pwritev", "delay", rng.randrange(1000, 60_000), _PARTIAL, count=-1)
    limit = f"{rng.randrange(20, 1200)}ms"
    return replace(plan, guest_rules=(rule,), save=(*plan.save, "--timeout", limit))


# Others.


def _others(rng: random.Random, plan: Plan) -> Plan:
    # Before that step nothing keeps anybody from the guest.
    step = rng.choice([step for step in SAVE_STEPS if step not in ("begin", "end")])
    deed = rng.choice([name for name in deeds.DEEDS if name not in deeds.ON_DISK])
    tags = plan.tags | ({"guest dies"} if deed in deeds.DEADLY else set())
    return replace(plan, blow=Blow(deed=(step, deed)), tags=tags | {"others"})


def _others_between(rng: random.Random, plan: Plan) -> Plan:
    """Others are at work between the crash and the recovery."""
    deed = rng.choice(("cont", "stop", "cont and stop", "quit"))
    tags = plan.tags | {"others"} | ({"guest dies"} if deed in deeds.DEADLY else set())
    return replace(plan, blow=_at_step(rng, "KILL"), between=deed, tags=tags)


def _two_at_once(rng: random.Random, plan: Plan) -> Plan:
    return replace(plan, blow=Blow(deed=(rng.choice(SAVE_STEPS[:-1]), "another save")))


# Limits of QEMU.


def _limits(rng: random.Random, plan: Plan) -> Plan:
    name = rng.choice(("nofile", "nofile", "fsize", "pids"))
    most = {"nofile": 24, "fsize": 80 * MIB, "pids": 24}[name]
    return replace(plan, limit=(name, rng.randrange(most)))


# The disk.


def _disk_full(rng: random.Random, plan: Plan) -> Plan:
    free = rng.randrange(4096, (plan.shape.memory + 8) * MIB)
    return replace(plan, disk=rng.choice(("tmpfs", "ext4", "xfs")), leave_free=free)


def _disk_dies(rng: random.Random, plan: Plan) -> Plan:
    step = rng.choice(SAVE_STEPS[:-1])
    return replace(plan, disk="ext4", blow=Blow(deed=(step, "disk dies")), between="disk is back")


def _disk_read_only(rng: random.Random, plan: Plan) -> Plan:
    """Killed; and the recovery meets a file system that is read-only."""
    recoveries = (Blow(), *_maybe_recoveries(rng))
    return replace(
        plan, disk="ext4", blow=_at_step(rng, "KILL"), between="read-only", recoveries=recoveries
    )


def _directory_gone(rng: random.Random, plan: Plan) -> Plan:
    if rng.random() < 0.5:
        step = rng.choice([step for step in SAVE_STEPS if step not in ("begin", "end")])
        return replace(plan, blow=Blow(deed=(step, "directory moved away")), retry=False)
    return replace(
        plan, blow=_at_step(rng, "KILL"), between="directory away", recoveries=(Blow(), Blow())
    )


def _left_over(rng: random.Random, plan: Plan) -> Plan:
    before = rng.choice(("partial garbage", "partial of a dead save", "partial that says saved"))
    return replace(plan, before=before)


# What is on the disk is damaged.


def _journal_damaged(rng: random.Random, plan: Plan) -> Plan:
    recoveries = _maybe_recoveries(rng)
    return replace(
        plan, blow=_at_step(rng, "KILL"), between="journal damaged", recoveries=recoveries
    )


def _image_damaged(rng: random.Random, plan: Plan) -> Plan:
    return replace(plan, damage=rng.randrange(1 << 30), then="quit")


# The restore.


def _load_rule(action: Action, arguments: Callable[[random.Random], int]) -> Draw:
    def draw(rng: random.Random, plan: Plan) -> Plan:
        call: Call = rng.choice(("preadv", "preadv", "preadv", "pread", "read", "readv"))
        rule = _rule(rng, call, action, arguments(rng), _PARTIAL, 12)
        return replace(plan, destination_rules=(rule,), then="quit")

    return draw


def _restore_step(rng: random.Random, plan: Plan) -> Plan:
    signals = rng.choice(("KILL", "KILL", "TERM", "INT+INT", "child:KILL"))
    strike = (rng.choice(("before", "after")), rng.choice(RESTORE_STEPS), signals)
    recoveries = _maybe_recoveries(rng)
    return replace(plan, restore_blow=Blow(strike=strike), recoveries=recoveries, then="quit")


def _restore_call(rng: random.Random, plan: Plan) -> Plan:
    if rng.random() < 0.5:
        rule = _one_of(rng, _RESTORE_MOMENTS, rng.choice((9, 9, 15)))
    else:
        call, path = rng.choice(_RESTORE_CALLS)
        rule = _rule(rng, call, "errno", rng.choice(_REFUSALS), path, 4)
    recoveries = _maybe_recoveries(rng)
    return replace(plan, restore_blow=Blow(rules=(rule,)), recoveries=recoveries, then="quit")


def _load_hangs(rng: random.Random, plan: Plan) -> Plan:
    """A read that does not come back for longer than any restore waits for progress."""
    rule = Rule("preadv", "hang", 0, _PARTIAL, skip=rng.randrange(3), count=1)
    return replace(plan, destination_rules=(rule,), then="quit")


def _restore_others(rng: random.Random, plan: Plan) -> Plan:
    """Others are at work on the destination."""
    names = ("cont", "stop", "cont and stop", "kill", "quit", "cont and kill", "hang")
    deed = rng.choice((*names, "another restore"))
    step = rng.choice(("load", "mark", "run", "end"))
    tags = plan.tags | {"others"} | ({"destination dies"} if deed in deeds.DEADLY else set())
    return replace(plan, restore_blow=Blow(deed=(step, deed)), then="quit", tags=tags)


def _not_marked(rng: random.Random, plan: Plan) -> Plan:
    """The image cannot be marked as restored: the file system has become read-only, or fails."""
    rule = Rule("pwrite", "errno", rng.choice((errno.EROFS, errno.EIO)), _PARTIAL, count=-1)
    return replace(plan, restore_blow=Blow(rules=(rule,)), then="quit")


# A checkpoint.


def _checkpoint(rng: random.Random, plan: Plan) -> Plan:
    """A guest whose memory is a shared file beside its images; and what hits any save."""
    states: tuple[State, ...] = ("running", "running", "paused", "prelaunch")
    shape = replace(
        plan.shape,
        machine=rng.choice(("none", "pc", "q35")),
        state=rng.choice(states),
        extra="shared",
    )
    plan = replace(
        plan,
        shape=shape,
        then=rng.choice(("resume", "resume", "leave")),
        save=("--method", "checkpoint"),
        disk="xfs",
    )
    hit: Draw = rng.choice(
        (
            lambda _, plan: plan,
            _own_errno,
            _killed,
            _told_to_stop,
            _step_kill,
            _step_signal,
            _step_guest_dies,
            _both_die,
        )
    )
    return hit(rng, plan)


# The service.


def _service(rng: random.Random, plan: Plan) -> Plan:
    blow = NOTHING
    if rng.random() < 0.8:
        blow = _at_step(rng, rng.choice(("KILL", "KILL", "TERM")))
    return replace(plan, service=True, blow=blow, recoveries=())


def _service_rot(rng: random.Random, plan: Plan) -> Plan:
    """The service is killed, and its database is damaged until the next one starts."""
    blow = _at_step(rng, "KILL")
    return replace(plan, service=True, blow=blow, between="database damaged", recoveries=())


_QEMU: tuple[World, ...] = ("qemu",)
_REAL: tuple[World, ...] = ("qemu", "qemu", "qemu", "libvirt")
_ALL: tuple[World, ...] = ("qemu", "qemu", "qemu", "qemu", "libvirt", "emulator")

KINDS: dict[str, tuple[int, tuple[World, ...], Draw]] = {
    "nothing": (2, _ALL, lambda _, plan: plan),
    "qemu-short": (8, _QEMU, _guest_rule("short", _short)),
    "qemu-errno": (6, _QEMU, _guest_rule("errno", lambda rng: rng.choice(_FAILURES))),
    "qemu-delay": (2, _QEMU, _guest_rule("delay", lambda rng: rng.randrange(1000, 300_000))),
    "qemu-stall": (1, _QEMU, _guest_rule("hang", lambda _: 0)),
    "qemu-kill": (2, _QEMU, _guest_rule("kill", lambda rng: rng.choice((9, 11, 6)))),
    "own-errno": (14, _ALL, _own_errno),
    "own-delay": (2, _REAL, _own_delay),
    "monitor-lost": (4, _QEMU, _monitor_lost),
    "own-short": (4, _ALL, _own_short),
    "killed": (10, _ALL, _killed),
    "told-to-stop": (6, _ALL, _told_to_stop),
    "step-kill": (8, _ALL, _step_kill),
    "step-signal": (4, _ALL, _step_signal),
    "step-guest-dies": (4, _REAL, _step_guest_dies),
    "both-die": (4, _REAL, _both_die),
    "time-limit": (3, _QEMU, _time_limit),
    "others": (8, _REAL, _others),
    "others-between": (4, _REAL, _others_between),
    "two-at-once": (2, _REAL, _two_at_once),
    "limits": (6, _QEMU, _limits),
    "disk-full": (5, _QEMU, _disk_full),
    "disk-dies": (4, _QEMU, _disk_dies),
    "disk-read-only": (3, _QEMU, _disk_read_only),
    "directory-gone": (3, _REAL, _directory_gone),
    "left-over": (2, _REAL, _left_over),
    "journal-damaged": (8, _REAL, _journal_damaged),
    "image-damaged": (8, _QEMU, _image_damaged),
    "load-short": (3, _QEMU, _load_rule("short", _short)),
    "load-errno": (3, _QEMU, _load_rule("errno", lambda rng: rng.choice((errno.EIO, errno.EIO)))),
    "load-delay": (1, _QEMU, _load_rule("delay", lambda rng: rng.randrange(1000, 300_000))),
    "load-hang": (2, _QEMU, _load_hangs),
    "restore-others": (4, _QEMU, _restore_others),
    "not-marked": (3, _REAL, _not_marked),
    "restore-step": (8, _ALL, _restore_step),
    "restore-call": (8, _ALL, _restore_call),
    "checkpoint": (8, _QEMU, _checkpoint),
    "service": (6, _REAL, _service),
    "service-rot": (2, _REAL, _service_rot),
}


def plan_of(seed: int, kind: str | None = None) -> Plan:
    """Return the plan of a seed; with ``kind``, of that kind."""
    rng = random.Random(f"campaign-{seed}")
    drawn = rng.choices(list(KINDS), [weight for weight, _, _ in KINDS.values()])[0]
    name = kind or drawn
    _, worlds, draw = KINDS[name]
    return draw(rng, base(seed, name, rng.choice(worlds), rng))
