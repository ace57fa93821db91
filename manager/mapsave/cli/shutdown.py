"""Have ``save-all`` done: by the service where that is well, otherwise here, in what time is left.

At a shutdown nothing restarts a service that hangs, and no one asks again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.cli import hosts, local, output, service_client
from mapsave.cli.options import Globals
from mapsave.cli.service_client import ServiceClient
from mapsave.cli.through_service import ThroughService
from mapsave.client.delegate import Patience
from mapsave.migration.progress import Report

if TYPE_CHECKING:
    from mapsave.config import Config
    from mapsave.evacuation.save_all import SavedAll
    from mapsave.evacuation.save_run import Request

_log = logging.getLogger(__name__)

# Seconds. A healthy service answers /v1/health at once.
_HEALTH = 5.0
# A service that is saving may take longer for an answer.
_ANSWER = 15.0
_PATIENCE = Patience(wait=2.0, reconnect=10.0)
# What a service was at is recovered first; what takes longer than this, beside the saves.
_HEAD_START = 5.0
# How long another save-all is waited for where there is no deadline, and how often it is looked at.
_OTHERS = 60.0
_AGAIN = 0.2
_LEAST = 0.1


class _Clock:
    """What is left of the deadline, which counts from when the command began."""

    def __init__(self, request: Request) -> None:
        self._began = time.monotonic()
        self._request = request

    def left(self) -> float | None:
        """Return the seconds until the deadline; None where there is none."""
        if self._request.deadline is None:
            return None
        return max(self._request.deadline - (time.monotonic() - self._began), _LEAST)

    def request(self) -> Request:
        """Return the request, with what time is left."""
        return dataclasses.replace(self._request, deadline=self.left())

    def waits(self) -> bool:
        """Return whether there is still time to wait for another process."""
        limit = _OTHERS if self._request.deadline is None else self._request.deadline
        return time.monotonic() - self._began < limit


def save_all(given: Globals, request: Request, report: Report) -> SavedAll:
    """Save all guests and return the summary.

    A service that does not answer within seconds, is stopping, or is lost is reported on standard
    error; what it left is recovered, and the guests are saved here. Where the configuration is
    wrong, a service that has it in force from before saves by that. Raises ConfigError,
    ConfigMissing where there is no such service, and as ``save_all`` does. With ``--host`` nothing
    can be done here instead.
    """
    clock = _Clock(request)
    if given.host is not None:
        return _by_service(hosts.needed_service(given), given.client_config(), clock, report)
    try:
        config = given.client_config()
    except errors.UsageError as broken:
        return _by_what_is_in_force(given, broken, clock, report)
    try:
        client = hosts.service(given, config, _HEALTH)
        if client is not None:
            return _by_service(client, config, clock, report)
        given.config()  # it must be readable from here on
    except (errors.ServiceUnreachable, errors.ServiceLost, errors.ServiceStopping) as error:
        if error.data.get("interrupted"):
            raise
        given.config()
        output.note(f"{error.message}; saving the guests without it")
        return local.run(_here(config, clock, report, behind_service=True), given)
    return local.run(_here(config, clock, report), given)


def _by_service(client: ServiceClient, config: Config, clock: _Clock, report: Report) -> SavedAll:
    """Have the service do it. Raises ServiceLost also where it came back without it."""
    client.timeout = _ANSWER
    try:
        return ThroughService(client, config).save_all(clock.request(), report, _PATIENCE)
    except errors.Interrupted as error:
        if "step" in error.data:  # a restarted service says so about its predecessor
            raise errors.ServiceLost(error.message) from None
        raise


def _by_what_is_in_force(
    given: Globals, broken: errors.UsageError, clock: _Clock, report: Report
) -> SavedAll:
    """Have the service do it that has the configuration as it was before it became wrong.

    It is looked for at the default socket. Raises ``broken`` where there is none.
    """
    from mapsave import config as configuration

    file = configuration.file_in_force(given.config_file, os.environ)
    assert file is not None, "the built-in defaults are never wrong"
    config = configuration.places(file, os.environ)
    client = None if given.local else _with_configuration(given, str(config.socket), file)
    if client is None:
        raise broken
    output.note(
        f"{broken.message} [{broken.id}]; the service uses the configuration it read before"
    )
    return _by_service(client, config, clock, report)


def _with_configuration(given: Globals, path: str, file: str | Path) -> ServiceClient | None:
    """Return the client of the service at ``path`` if it has read ``file``."""
    client = ServiceClient(path, given.stop, _HEALTH)
    try:
        if service_client.listens(path, _HEALTH) and service_client.same(
            client.get("/v1/health")["config"], file
        ):
            return client
    except errors.MapsaveError as error:
        output.note(error.message)
    return None


async def _here(
    config: Config, clock: _Clock, report: Report, *, behind_service: bool = False
) -> SavedAll:
    """Recover what a mapsave that died has left, and save.

    ``behind_service`` waits for the save-all of a service that still has it locked.
    """
    if clock.request().dry_run:
        return await _save(config, clock, report)
    recovering = asyncio.create_task(_recover(config))
    try:
        await asyncio.wait({recovering}, timeout=_HEAD_START)
        save = _once_free if behind_service else _save
        done = await save(config, clock, report)
        await asyncio.wait({recovering}, timeout=clock.left())
        return done
    finally:
        recovering.cancel()
        await asyncio.wait({recovering})


async def _save(config: Config, clock: _Clock, report: Report) -> SavedAll:
    from mapsave.evacuation import save_all

    return await save_all.interruptible(config, clock.request(), report)


async def _once_free(config: Config, clock: _Clock, report: Report) -> SavedAll:
    """Save as soon as no other save-all is at it. Raises Busy where the time is up before."""
    while True:
        try:
            return await _save(config, clock, report)
        except errors.Busy:
            if not clock.waits():
                raise
        await asyncio.sleep(_AGAIN)


async def _recover(config: Config) -> None:
    from mapsave.operations import recover

    try:
        done = await recover.recover(config)
    except (errors.MapsaveError, OSError) as error:
        _log.warning("cannot recover interrupted operations yet: %s", error)
        return
    for line in done["operations"]:
        words = line["outcome"] or (line["error"] and line["error"]["message"])
        _log.warning("recovered: %s of %s: %s", line["operation"], line["guest"], words)
