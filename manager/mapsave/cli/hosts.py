"""Which host a command works with: this process, or the service that runs on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.cli import through_service
from mapsave.cli.here import Here
from mapsave.cli.options import Globals
from mapsave.cli.through_service import ThroughService
from mapsave.client import connection
from mapsave.client.connection import Client

if TYPE_CHECKING:
    from mapsave.config import Config

# Commands do not care which: both have the same methods, results and errors.
Host = Here | ThroughService


def choose(
    given: Globals,
    config: Config,
    *,
    image: str | None = None,
    image_to_be: str | None = None,
    policy: str | None = None,
    job: str | None = None,
) -> Host:
    """Return the service where one runs that can do it; otherwise this process.

    The service works with the images of the image directory, label policies by name, and jobs of
    the jobs directory: ``image`` is to be read, ``image_to_be`` to be made. Raises NotPermitted,
    ServiceUnreachable.
    """
    if (
        (image is None or through_service.image_name(config, image) is not None)
        and (image_to_be is None or through_service.name_to_be(config, image_to_be) is not None)
        and through_service.knows_policy(policy)
        and (job is None or through_service.may_know_job(config, job))
        and (client := service(given, config)) is not None
    ):
        return ThroughService(client, config)
    return Here(given, config)


def service(given: Globals, config: Config, timeout: float | None = None) -> Client | None:
    """Return the client of the service; None with ``--local``, and as ``connection.service`` does.

    Raises NotPermitted, ServiceUnreachable.
    """
    return None if given.local else connection.service(config, given.stop, timeout)


def needed_service(given: Globals) -> Client:
    """Return the client of the service, for commands that are about nothing else.

    Raises UsageError with ``--local``, ServiceUnreachable where none runs.
    """
    if given.local:
        raise errors.UsageError("this command needs the service; --local does not")
    return connection.needed(given.config(), given.stop)
