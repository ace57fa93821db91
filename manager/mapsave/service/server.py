"""Run the service: from the sockets to the signals, and a clean stop."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from aiohttp import web

from mapsave import errors, sd_notify
from mapsave.config import Config
from mapsave.history import history
from mapsave.history import opening as history_opening
from mapsave.operations import journal
from mapsave.sd_notify import Notifier
from mapsave.service import memory, sockets, systemd, work
from mapsave.service.accepting import Acceptor
from mapsave.service.api import app, routes
from mapsave.service.api.connections import Connections
from mapsave.service.service import Service

_log = logging.getLogger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_EXTEND = 5.0  # seconds between two requests for more time while saves are finished
_UNDOING = 90.0  # seconds for putting guests back at the end; a monitor has 60 to answer
_KEEPALIVE = 25.0
_GRACE = 5.0  # seconds that notifications may still take at the end
_LINGER = 0.5  # seconds in which those who wait for what has just ended ask for its outcome


async def serve(load: Callable[[], Config], config: Config) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads the configuration, by ``load``.

    Raises ServiceRunning, ConfigError, NotPermitted.
    """
    memory.be_sparing()
    notifier = Notifier.from_environment(os.environ)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each connection is a descriptor
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    running: Service | None = None

    def limit() -> float:
        return (running.config if running is not None else config).service.stop_timeout

    for number in _STOPPING:
        loop.add_signal_handler(number, stop.set)
    # From the first moment to the last: an unhandled signal would end us during a save.
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with contextlib.AsyncExitStack() as stack:
        # First of all, for both go on until everything else has ended.
        interval = sd_notify.watchdog_interval(os.environ)
        stack.callback(asyncio.create_task(sd_notify.beat(notifier, interval)).cancel)
        stack.callback(asyncio.create_task(_extend(notifier, stop, limit)).cancel)
        stack.enter_context(sockets.only_one(config.state))
        opening = history_opening.opened(config.state / "journal.db")
        kept, problems = await stack.enter_async_context(opening)
        running = await stack.enter_async_context(_listening(load, config, kept, problems))
        # What there is by now stays: to look through it for garbage, time and again, would hold up
        # the loop by tens of milliseconds.
        gc.freeze()
        notifier.ready()
        notifier.status(_summary(running))
        _log.info("serving at %s", config.socket)
        reloading = asyncio.create_task(_reload_when(reload, running, notifier))
        await stop.wait()
        reloading.cancel()
        _end_at_last(limit())
        _log.info("stopping: running saves are %s", _ending(running))
        notifier.stopping()
        notifier.status(f"stopping: running saves are {_ending(running)}")
    _log.info("stopped")


@contextlib.asynccontextmanager
async def _listening(
    load: Callable[[], Config], config: Config, kept: history.History, problems: list[str]
) -> AsyncIterator[Service]:
    """Yield the service while it listens; it still answers while it stops."""
    async with contextlib.AsyncExitStack() as stack:
        connections = Connections()
        # The sockets are bound before the service begins, so that a second one changes nothing.
        listeners = systemd.listen_sockets(os.environ)
        if not listeners:
            listeners = [stack.enter_context(sockets.unix(config.socket))]
        async with started(load, config, kept, problems) as running:
            runner = web.AppRunner(
                app.application(running, routes.ROUTES, connections),
                access_log=None,
                keepalive_timeout=_KEEPALIVE,
                shutdown_timeout=1.0,
            )
            await runner.setup()
            server = runner.server
            assert server is not None
            acceptor = Acceptor(server, lambda: running.roles)
            try:
                for listener in listeners:
                    acceptor.serve(listener)
                if running.tls is not None and config.service.listen is not None:
                    listener = stack.enter_context(sockets.tcp(config.service.listen))
                    acceptor.serve(listener, running.tls)
                running.retire = lambda: connections.retire(server, running.tls)
                sweep = asyncio.create_task(connections.sweep(server), name="connections")
                try:
                    yield running
                    was_busy = len(running.operations) > 0
                    await running.stop()
                    await asyncio.sleep(_LINGER if was_busy else 0)
                finally:
                    sweep.cancel()
            finally:
                running.hub.close()
                await acceptor.close()
                await runner.cleanup()


async def _reload_when(asked: asyncio.Event, running: Service, notifier: Notifier) -> None:
    """Reload each time that SIGHUP asks for it, forever."""
    while True:
        await asked.wait()
        asked.clear()
        try:
            await _reload(running, notifier)
        except Exception:
            _log.exception("reload: a bug in mapsave")
            notifier.ready()


async def _reload(running: Service, notifier: Notifier) -> None:
    """Reload the configuration; report the outcome to systemd and the log."""
    notifier.reloading()
    try:
        fixed = await running.reload()
    except errors.MapsaveError as error:
        _log.error("the old configuration remains in use: %s", error.message)
        notifier.status(f"the old configuration remains in use: {error.message}")
    else:
        for key in fixed:
            _log.warning("%s: takes effect only after a restart of the service", key)
        _log.info("configuration reloaded")
        notifier.status(_summary(running))
    notifier.ready()


def _summary(running: Service) -> str:
    return f"{len(running.config.guests)} guests, {len(running.jobs)} jobs"


def _ending(running: Service) -> str:
    return "finished" if running.config.service.on_stop == "finish" else "cancelled"


async def _extend(notifier: Notifier, stop: asyncio.Event, limit: Callable[[], float]) -> None:
    """Ask systemd for more time once we stop, while there may be saves to finish.

    ``limit`` says for how many seconds. After that we ask once more, for putting guests back.
    """
    await stop.wait()
    loop = asyncio.get_running_loop()
    end = loop.time() + limit()
    while (left := end - loop.time()) > 0:
        notifier.extend(4 * _EXTEND)
        await asyncio.sleep(min(_EXTEND, left))
    notifier.extend(_UNDOING)


def _end_at_last(limit: float) -> None:
    """End the process where the stop itself hangs, on storage that does not answer.

    It is a thread, for the event loop may hang as well; by then what could be undone is undone.
    """

    def end() -> None:
        for each in journal.unfinished():
            _log.critical(
                "stopping: %s of %s hangs at step %s and is left to the next start",
                each["operation"],
                each["guest"] or each["image"],
                each["step"],
            )
        os._exit(1)

    timer = threading.Timer(limit + _UNDOING, end)
    timer.daemon = True
    timer.start()


@contextlib.asynccontextmanager
async def started(
    load: Callable[[], Config],
    config: Config,
    history: history.History,
    problems: Sequence[str],
) -> AsyncIterator[Service]:
    """Yield a service that recovers, keeps schedules and writes metrics; at the end all of that
    ends, operations included.

    Raises ConfigError.
    """
    service = Service(
        load,
        config,
        history,
        notifying={name: kind.notifies for name, kind in work.KINDS.items()},
        start_job=work.start_job,
        problems=problems,
    )
    for broken in service.jobs.broken:
        _log.error("%s", broken.error.message)
    await service.begin()
    schedule = asyncio.create_task(service.scheduler.run(), name="scheduler")
    beside = (
        ("recovery", service.recovery.run()),
        ("housekeeping", service.housekeeping()),
        ("metrics", service.write_metrics()),
        ("reaper", service.reap()),
        ("memory", memory.give_back(lambda: not service.operations)),
        ("history", service.mend_history()),
        ("digests", service.digests.run()),
    )
    tasks = [schedule, *(asyncio.create_task(each, name=name) for name, each in beside)]
    for task in tasks:
        task.add_done_callback(_died)
    with service.looking, service.verifying:
        try:
            yield service
        finally:
            schedule.cancel()
            try:
                await service.stop()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                await service.end_background(_GRACE)


def _died(task: asyncio.Task[None]) -> None:
    """Log the end of what should have gone on: the service goes on without it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("%s has exited: %s", task.get_name(), error, exc_info=error)
