"""Which host a command works with: this process, or the service of this or another host."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from mapsave import errors
from mapsave.cli import remote, service_client, through_service
from mapsave.cli.here import Here
from mapsave.cli.options import Globals
from mapsave.cli.remote import Remote
from mapsave.cli.service_client import ServiceClient
from mapsave.cli.through_service import ThroughService

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
    the jobs directory: ``image`` is to be read, ``image_to_be`` to be made. With ``--host`` it is
    that host's service, whatever it can do. Raises NotPermitted, ServiceUnreachable, and as
    ``remote.client`` does.
    """
    if given.host is not None:
        return Remote(remote.client(given), config)
    if (
        (image is None or through_service.image_name(config, image) is not None)
        and (image_to_be is None or through_service.name_to_be(config, image_to_be) is not None)
        and through_service.knows_policy(policy)
        and (job is None or through_service.may_know_job(config, job))
        and (client := service(given, config)) is not None
    ):
        return ThroughService(client, config)
    if config.is_unread:
        _refuse_unread(given, config)
    return Here(given, config)


def background(host: Host) -> ThroughService:
    """Return the service, which works on after the command has exited. Raises UsageError."""
    if isinstance(host, Here):
        raise errors.UsageError(
            "--no-wait needs the service, which does not run or cannot do this",
            hint="start it, or leave out --no-wait; it takes only images of the image directory, "
            "policies by name and jobs of the jobs directory",
        )
    return host


def _refuse_unread(given: Globals, config: Config) -> NoReturn:
    """Raise NotPermitted: the service does not do the work, and the file cannot be read."""
    try:
        given.config()
    except errors.NotPermitted as error:
        error.hint = (
            f"{error.hint}; " if error.hint else ""
        ) + f"the service at {str(config.socket)!r} does not do this, or does not run"
        raise
    raise errors.NotPermitted(f"cannot read {str(config.source)!r}")


def service(given: Globals, config: Config, timeout: float | None = None) -> ServiceClient | None:
    """Return the client of the service; None with ``--local``, and where ``found`` has none.

    Raises NotPermitted, ServiceUnreachable.
    """
    return None if given.local else service_client.found(config, given.stop, timeout)


def needed_service(given: Globals) -> ServiceClient:
    """Return the client of the service, for commands that are about nothing else.

    Raises UsageError with ``--local``, ServiceUnreachable where none runs, and as ``remote.client``
    does.
    """
    if given.host is not None:
        return remote.client(given)
    if given.local:
        raise errors.UsageError("this command needs the service; --local does not")
    return service_client.needed(given.client_config(), given.stop)
