"""``mapsave serve``, and ``mapsaved``: run the service."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys

import click

from mapsave.cli.options import Command, Globals, of


@click.command("serve", cls=Command)
@click.pass_context
def command(context: click.Context, /) -> None:
    """Run the service: jobs by their schedules, an interface for other programs, recovery.

    It stops on SIGTERM or Ctrl-C, and reloads its configuration on SIGHUP.
    """
    given = of(context)
    given.in_main_thread = functools.partial(run, given)


def run(given: Globals) -> None:
    """Run the service until it is told to stop. Raises as ``server.serve`` does."""
    config = given.config()  # a mistake in it is reported before anything heavy is loaded
    from mapsave.service import server
    from mapsave.service.log import setup

    level = logging.DEBUG if given.debug else logging.INFO
    setup.configure(config.service.log, level, sys.stderr)
    asyncio.run(server.serve(given.config, config))
