"""``mapsave fleet scheduler``: any number of processes, of which one leads.

The leader answers requests, makes the runs that are due, and looks after what no host can: closed
windows, hosts that are gone, slots that ran out. All that it knows is in the database, so another
one goes on where it was killed. Without a scheduler hosts still do the tasks that they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mapsave import errors, sd_notify, textfile
from mapsave.fleet import answering, clock, database, in_force, leading, tidying
from mapsave.fleet.settings import Settings
from mapsave.sd_notify import Notifier

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.leading import Term

_log = logging.getLogger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_LOOK = 1.0  # seconds between two looks for requests, and for runs that are due
_STANDBY = 2.0  # seconds between two tries to lead
_TIDY = 5.0
_METRICS = 15.0
_FORGET = 600.0
_LONGEST_WAIT = 10.0  # seconds between two tries to reach the database
# A statement of ours that takes longer is ended: the next scheduler waits for it.
_STATEMENT = 60  # seconds
_GRACE = 4.0  # seconds from a signal to the end, however long the database takes to answer


class Scheduler:
    """One scheduler: its settings, and how often it has done what.

    ``load`` reads fleet.yaml again, and raises ConfigError and its like.
    """

    def __init__(
        self, load: Callable[[], Settings], settings: Settings, notifier: Notifier
    ) -> None:
        self.settings = settings
        self._load = load
        self._notifier = notifier
        self._done: dict[str, float] = {}
        self._problem = ""
        self._textfile_problem = ""
        self._status = ""

    def reload(self) -> None:
        """Read fleet.yaml again; a mistake in it is reported, and what was in force stays so."""
        self._notifier.reloading()
        try:
            self.settings = self._load()
        except errors.MapsaveError as error:
            _log.error("fleet.yaml was not reloaded, what was in force stays so: %s", error)
            self._say(f"fleet.yaml was not reloaded: {error}")
        else:
            _log.info("fleet.yaml was reloaded")
            self._done.clear()
        self._notifier.ready()

    async def run(self) -> None:
        """Lead whenever no other scheduler does, until cancelled."""
        wait = 1.0
        while True:
            try:
                await self._lead_or_wait()
                wait = 1.0
            except errors.NotLeading as error:
                _log.warning("not leading any more: %s", error)
            except errors.MapsaveError as error:
                self._report(error)
                wait = min(wait * 2, _LONGEST_WAIT)
            await asyncio.sleep(wait)

    def _report(self, error: errors.MapsaveError) -> None:
        """Log what keeps us from working, once."""
        if error.message != self._problem:
            self._problem = error.message
            _log.error("%s", error.message)
            self._say(error.message)

    def _say(self, status: str) -> None:
        """Have systemd show how we are, where that has changed."""
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    async def _lead_or_wait(self) -> None:
        """Wait until the lock is free, then lead until it is lost. Raises MapsaveError."""
        settings = self.settings
        async with database.connected(settings.database, "scheduler: lock") as held:
            while True:
                async with leading.lock(held) as is_held:
                    if self._problem:
                        _log.info("the database can be reached again")
                        self._problem = ""
                    if is_held:
                        await self._lead(held)
                        return
                await self._standby()

    async def _standby(self) -> None:
        self._say("standing by: another scheduler leads")
        await self._write_metrics(None)
        await asyncio.sleep(_STANDBY)

    async def _lead(self, held: Connection) -> None:
        """Do what the leader does until the lock on ``held`` is lost. Raises MapsaveError."""
        async with database.connected(self.settings.database, "scheduler") as work:
            for limit, seconds in (
                ("statement_timeout", _STATEMENT),
                ("idle_in_transaction_session_timeout", leading.SILENCE),
            ):
                await work.execute(f"SET {limit} = '{seconds} s'")
            term = await leading.begin_term(work)
            self._done.clear()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(leading.hold(held))
                    group.create_task(self._work(term, work))
            except* errors.MapsaveError as several:
                raise several.exceptions[0] from None

    async def _work(self, term: Term, work: Connection) -> None:
        self._say(f"leading, term {term.number}")
        with database.explained():
            while True:
                await self._tick(term, work)
                await asyncio.sleep(_LOOK)

    async def _tick(self, term: Term, work: Connection) -> None:
        """Do once what is due. Raises NotLeading and psycopg.Error."""
        settings = self.settings
        if self._is_due("settings", _TIDY):
            await in_force.apply(term, settings)
        if await answering.answer_all(term, settings):
            self._done.pop("tidy", None)
        await clock.run_due(term, settings)
        if self._is_due("tidy", _TIDY):
            for look_after in (
                *(tidying.close_windows, tidying.drop_homeless, tidying.settle_lost),
                *(tidying.free_slots, tidying.settle_runs),
            ):
                await self._look_after(term, look_after)
        if self._is_due("forget", _FORGET):
            async with term.transaction() as connection:
                count = await tidying.forget(connection, settings.history)
            if count:
                _log.info("forgot %s old runs", count)
            if count == tidying.MOST:  # there may be more
                self._done.pop("forget")
        if self._is_due("metrics", _METRICS):
            await self._write_metrics(work)

    async def _look_after(
        self, term: Term, look_after: Callable[[Connection], Awaitable[int]]
    ) -> None:
        async with term.transaction() as connection:
            if count := await look_after(connection):
                _log.info("%s: %s", look_after.__name__.replace("_", " "), count)

    def _is_due(self, name: str, seconds: float) -> bool:
        """Return whether something was not done for so long, and note that it is done now."""
        now = time.monotonic()
        if now - self._done.get(name, -seconds) < seconds:
            return False
        self._done[name] = now
        return True

    async def _write_metrics(self, work: Connection | None) -> None:
        """Write the metrics' file, of a scheduler that stands by without what the leader's has."""
        path = self.settings.metrics.textfile
        if path is None or (work is None and not self._is_due("standby", _METRICS)):
            return
        from mapsave.fleet import metrics

        facts = None if work is None else await metrics.look(work, self.settings)
        try:
            content = metrics.text(facts, leads=work is not None)
            await asyncio.to_thread(textfile.replace, path, content)
        except OSError as error:
            problem = f"{os.fspath(path)!r}: {error.strerror}"
            if problem != self._textfile_problem:
                _log.warning("cannot write the metrics to %s", problem)
            self._textfile_problem = problem
        else:
            self._textfile_problem = ""


async def serve(load: Callable[[], Settings], settings: Settings) -> None:
    """Run a scheduler until SIGTERM or SIGINT; SIGHUP reloads fleet.yaml, by ``load``.

    A database that cannot be reached is waited for. Raises Unsupported without the libraries.
    """
    database.parameters(settings.database, "scheduler")  # what will never work is said at once
    notifier = Notifier.from_environment(os.environ)
    interval = sd_notify.watchdog_interval(os.environ)
    scheduler = Scheduler(load, settings, notifier)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOPPING:
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, scheduler.reload)
    beating = asyncio.create_task(sd_notify.beat(notifier, interval))
    working = asyncio.create_task(scheduler.run())
    stopping = asyncio.create_task(stop.wait())
    notifier.ready()
    _log.info("scheduler started")
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()  # a bug: it is raised
    finally:
        notifier.stopping()
        # All that matters is in the database: an end that does not wait for it loses nothing.
        last = threading.Timer(_GRACE, os._exit, (0,))
        last.daemon = True
        last.start()
        for task in (beating, working, stopping):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    _log.info("scheduler stopped")
