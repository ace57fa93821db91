"""``mapsave fleet scheduler``: run a scheduler of the fleet."""

from __future__ import annotations

import functools
import logging
import signal
import sys

import click

from mapsave.cli import fleet_options
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals


@click.command("scheduler", cls=FleetCommand)
@pass_globals
def command(given: Globals, /) -> None:
    """Run a scheduler: it makes the runs that are due, and answers requests.

    There may be any number on any hosts, of which one leads. It stops on SIGTERM or Ctrl-C, and
    reloads fleet.yaml on SIGHUP.
    """
    given.in_main_thread = functools.partial(run, given)


def run(given: Globals) -> None:
    """Run a scheduler until it is told to stop. Raises as ``scheduler.serve`` does."""
    found = fleet_options.settings(given)
    import asyncio

    from mapsave.fleet import scheduler
    from mapsave.service.log import setup  # of the service, whose log is read the same way

    setup.configure("auto", logging.DEBUG if given.debug else logging.INFO, sys.stderr)
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    try:
        asyncio.run(scheduler.serve(functools.partial(fleet_options.settings, given), found))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
