"""Capabilities and parameters of a migration: remembered, set, and restored.

QEMU keeps both until they are changed, and checks them only against values that are in force
already. Two traps follow (QEMU 10.0, ``migration/options.c``): with mapped-ram on and compression
set, every later ``migrate-set-parameters`` fails, so mapped-ram goes off before any parameter is
touched; and ``background-snapshot`` together with mapped-ram is accepted and saves nothing at all,
so every capability that we do not need is off during a save.

A third: QEMU takes changes as soon as it has said how a migration came out, but cleans up after
that, by the capabilities that are in force then. With multifd off too early the channels stay, and
the next save aborts; with multifd on too early QEMU cleans up channels that it never had. So
nothing is touched before QEMU has cleaned up, which ``query-yank`` shows: the migration is listed
there until then (``migration_cleanup``).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping

from mapsave import errors, shielded, together
from mapsave.monitor.session import Session

_log = logging.getLogger(__name__)

# QEMU leaves memory that is a shared file out of the stream.
IGNORE_SHARED = "x-ignore-shared"
REQUIRED_CAPABILITIES = ("mapped-ram", "multifd")
# `events` makes QEMU report what happens instead of being polled.
_ON = frozenset((*REQUIRED_CAPABILITIES, "events"))
# With mapped-ram as well QEMU 10.0 fails to write the stream ("Bad address").
CHECKPOINT = frozenset((IGNORE_SHARED, "events"))
REQUIRED_PARAMETERS = ("direct-io", "multifd-channels", "max-bandwidth", "zero-page-detection")
# Values without which a file save with mapped-ram works: QEMU's defaults.
_NEUTRAL = {"multifd-compression": "none", "tls-creds": "", "mode": "normal"}
_RETRIES = 50
_CLEANED_UP_WITHIN = 10.0  # seconds
_MIGRATING = "There's a migration process in progress"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Capabilities and parameters as QEMU has them at one moment."""

    capabilities: dict[str, bool]
    parameters: dict[str, object]

    def of_libvirt(self) -> Settings:
        """Return the settings that a libvirt guest is to be left with.

        libvirt 11.3 leaves mapped-ram and multifd on after a sparse restore or a failed save of
        its own, and with ``--bypass-cache`` also direct-io, and sets them itself whenever it
        needs them. With them on, the next internal snapshot kills QEMU 10.0, and with direct-io
        on the next ``virsh save`` without ``--bypass-cache``: they are not restored.
        """
        off = {name: False for name in REQUIRED_CAPABILITIES if name in self.capabilities}
        changed = {"direct-io": False} if "direct-io" in self.parameters else {}
        return Settings({**self.capabilities, **off}, {**self.parameters, **changed})


async def query(session: Session) -> Settings:
    """Return what is in force. Raises what ``Session.execute`` raises."""
    async with together.group() as tasks:
        capabilities = tasks.create_task(_query_capabilities(session))
        values = tasks.create_task(session.execute("query-migrate-parameters"))
    return Settings(capabilities.result(), dict(values.result()))


async def _query_capabilities(session: Session) -> dict[str, bool]:
    found = await session.execute("query-migrate-capabilities")
    return {entry["capability"]: bool(entry["state"]) for entry in found}


def missing(settings: Settings) -> list[str]:
    """Return the capabilities and parameters that a save needs and this QEMU lacks."""
    return [
        *(name for name in REQUIRED_CAPABILITIES if name not in settings.capabilities),
        *(name for name in REQUIRED_PARAMETERS if name not in settings.parameters),
    ]


@contextlib.asynccontextmanager
async def configured(
    session: Session,
    found: Settings,
    wanted: Mapping[str, object],
    *,
    capabilities: Collection[str] = _ON,
    is_fresh: bool = False,
) -> AsyncIterator[None]:
    """Set the parameters ``wanted`` and the ``capabilities``, by default of a mapped-ram stream.

    ``found`` is what was in force before; it is restored on every way out, as far as QEMU lets us,
    but not where KeptByQemu comes from within: QEMU has a descriptor set still. ``is_fresh``: it
    is in force still, and QEMU has not migrated before.

    Raises QemuMigrates with nothing touched, CommandRefused, MonitorLost; KeptByQemu where
    nothing can be restored.
    """
    there_on = found.capabilities if is_fresh else await _when_cleaned_up(session)
    there = found.parameters
    neutral = {name: value for name, value in _NEUTRAL.items() if there.get(name, value) != value}
    changed = {**neutral, **wanted}
    try:
        off = await _set_off(session, there_on)
        await _parameters(session, changed)
        on = await _set(session, off, dict.fromkeys(capabilities, True))
        now = Settings(on, {**there, **changed})
        yield
    except errors.KeptByQemu:
        raise  # it has not cleaned up, and would die of settings that change now
    except BaseException:
        with contextlib.suppress(errors.MonitorLost):
            await shielded.whole(put_back(session, found))
        raise
    with contextlib.suppress(errors.MonitorLost):
        await shielded.whole(put_back(session, found, now))


async def put_back(session: Session, found: Settings, now: Settings | None = None) -> None:
    """Bring capabilities and parameters back to ``found``; only what differs is touched.

    ``now`` is what was set since, where that is known: QEMU is asked otherwise. A value that QEMU
    no longer takes is logged. Raises KeptByQemu where QEMU has not cleaned up after a migration.
    """
    try:
        await _cleaned_up(session)
    except errors.QemuMigrates as error:
        raise errors.KeptByQemu(f"{error.message}; its settings cannot be restored") from None
    now = now or await query(session)
    if now == found:
        return
    try:
        # Off first: with mapped-ram on QEMU would not let a compression be restored.
        capabilities = await _set_off(session, now.capabilities)
        changed = {
            name: value
            for name, value in found.parameters.items()
            if now.parameters.get(name) != value
        }
        await _parameters(session, changed)
        await _set(session, capabilities, found.capabilities)
    except errors.CommandRefused as error:
        _log.warning("%s: settings not restored: %s", session.address, error.desc)


async def _when_cleaned_up(session: Session) -> dict[str, bool]:
    """Return the capabilities once QEMU has cleaned up. Raises QemuMigrates."""
    async with together.group() as tasks:
        asked = tasks.create_task(_query_capabilities(session))
        busy = tasks.create_task(_is_cleaning_up(session))
    if not busy.result():
        return asked.result()
    await _cleaned_up(session)
    return await _query_capabilities(session)


async def _is_cleaning_up(session: Session) -> bool:
    """Return whether a migration is in progress, or QEMU has not cleaned up after one."""
    return {"type": "migration"} in await session.execute("query-yank")


async def _cleaned_up(session: Session) -> None:
    """Wait until QEMU has cleaned up after its last migration. Raises QemuMigrates after 10 s."""
    deadline = time.monotonic() + _CLEANED_UP_WITHIN
    while await _is_cleaning_up(session):
        if time.monotonic() > deadline:
            raise errors.QemuMigrates(
                f"{session.address}: there is a migration process in progress, or QEMU has not "
                "cleaned up after one"
            )
        await asyncio.sleep(0.005)


async def _set(
    session: Session, now: Mapping[str, bool], wanted: Mapping[str, bool]
) -> dict[str, bool]:
    """Bring capabilities from ``now`` to ``wanted``; return what they are then.

    All that differ in one command, for QEMU checks them together.
    """
    changed = {name: wanted[name] for name in now if name in wanted and wanted[name] != now[name]}
    if changed:
        states = [{"capability": name, "state": state} for name, state in changed.items()]
        await _patiently(session, "migrate-set-capabilities", {"capabilities": states})
    return {**now, **changed}


async def _set_off(session: Session, now: Mapping[str, bool]) -> dict[str, bool]:
    """Set all capabilities off but `events`, which has no part in what QEMU checks."""
    return await _set(session, now, {name: False for name in now if name != "events"})


async def _parameters(session: Session, wanted: Mapping[str, object]) -> None:
    if wanted:
        await session.execute("migrate-set-parameters", dict(wanted))


async def _patiently(session: Session, command: str, arguments: dict[str, object]) -> None:
    """Execute; while QEMU is still winding up a migration that has ended, try again."""
    for attempt in range(_RETRIES):
        try:
            await session.execute(command, arguments)
            return
        except errors.CommandRefused as error:
            if not error.desc.startswith(_MIGRATING) or attempt == _RETRIES - 1:
                raise
        await asyncio.sleep(0.02)
