"""``mapsave fleet agent``: do on this host what the fleet asks of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mapsave import errors
from mapsave.cli.options import Globals, LocalCommand, pass_globals

if TYPE_CHECKING:
    from mapsave.config import Config

_GRACE = 4.0  # seconds from a signal to the end, whatever a disk or a server keeps it waiting for


@click.command("agent", cls=LocalCommand)
@pass_globals
def command(given: Globals, /) -> None:
    """Do what the fleet asks of this host, by the host's own service, as an operator.

    It stops on SIGTERM or Ctrl-C; operations that it has begun go on, and are reported by its next
    start.
    """
    given.in_main_thread = functools.partial(run, given)


def run(given: Globals) -> None:
    """Run the agent until it is told to stop. Raises as ``agent.run`` does, and ConfigError."""
    config = given.config()
    host = host_of(config)
    from mapsave.service.log import setup  # of the service, whose log is read the same way

    level = logging.DEBUG if given.debug else logging.INFO
    setup.configure(config.service.log, level, sys.stderr)
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    asyncio.run(_run(config, host))


def host_of(config: Config) -> str:
    """Return what the fleet calls this host. Raises ConfigError where it is in no fleet."""
    from mapsave.fleet import libraries, naming

    libraries.check()
    if config.fleet is None:
        where = f"in {config.source}" if config.source else "and there is no configuration file"
        raise errors.ConfigError(
            f"no 'fleet:' {where}", hint="'mapsave fleet host add' prints what to put there"
        )
    name = config.fleet.host or socket.gethostname()
    try:
        return naming.check_host(name)
    except ValueError as error:
        raise errors.ConfigError(str(error), hint="set 'fleet: {host: NAME}'") from None


def _state_directory() -> Path | None:
    """Return the StateDirectory= of the unit that this runs as, systemd.exec(5)."""
    first = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(first) if first else None


async def _run(config: Config, host: str) -> None:
    from mapsave import sd_notify
    from mapsave.client.address import Unix
    from mapsave.fleet import agent, database, local_service

    assert config.fleet is not None
    notifier = sd_notify.Notifier.from_environment(os.environ)
    beating = asyncio.create_task(sd_notify.beat(notifier, sd_notify.watchdog_interval(os.environ)))
    state = config.fleet.state or _state_directory() or config.state / "fleet"
    place = agent.Place(
        host,
        functools.partial(database.connect, config.fleet, agent.purpose(state)),
        local_service.LocalService(Unix(str(config.socket))),
        state,
        notifier.status,
    )
    working = asyncio.ensure_future(agent.run(place))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        notifier.stopping()
        # What is durable is on stable storage before anything is asked for, so nothing is lost
        # by an end that does not wait.
        last = threading.Timer(_GRACE, os._exit, (0,))
        last.daemon = True
        last.start()
        working.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    notifier.ready()
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        beating.cancel()
