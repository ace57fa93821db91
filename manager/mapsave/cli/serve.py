"""``mapsave serve``, and ``mapsaved``: run the service."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Iterator

import click

from mapsave import __version__
from mapsave.cli.options import Globals, LocalCommand, pass_globals

# Seconds that a thread at work may keep the interpreter while another waits for it (Python: 0.005).
# For an answer the event loop takes it a dozen times, as every system call may let go of it.
_SWITCH = 0.0005


@click.command("serve", cls=LocalCommand)
@click.version_option(__version__, prog_name="mapsaved")
@pass_globals
def command(given: Globals, /) -> None:
    """Run the service: jobs by their schedules, an interface for other programs, recovery.

    It stops on SIGTERM or Ctrl-C, and reloads its configuration on SIGHUP.
    """
    given.in_main_thread = functools.partial(run, given)


@contextlib.contextmanager
def _without_certificates() -> Iterator[None]:
    """Have OpenSSL find no CA certificates (SSL_CERT_FILE, see SSL_CTX_load_verify_locations(3)).

    aiohttp reads those of the host when it is imported, 20 ms of a start; ``webhooks``, which alone
    needs them, reads them itself.
    """
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    try:
        yield
    finally:
        del os.environ["SSL_CERT_FILE"]
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before


def run(given: Globals) -> None:
    """Run the service until it is told to stop. Raises as ``server.serve`` does."""
    config = given.config()  # a mistake in it is reported before anything heavy is loaded
    with _without_certificates():
        from mapsave.service import server
    from mapsave.service.log import setup

    level = logging.DEBUG if given.debug else logging.INFO
    setup.configure(config.service.log, level, sys.stderr)
    sys.setswitchinterval(_SWITCH)
    try:
        asyncio.run(server.serve(given.config, config))
    finally:
        # asyncio leaves Python's own handler, whose traceback would be the last that is seen.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
