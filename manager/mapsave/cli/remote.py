"""Another host, as its service works on it: nothing of this host's files is meant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.cli import through_service
from mapsave.cli.here import Result
from mapsave.cli.options import Globals
from mapsave.cli.through_service import ThroughService

if TYPE_CHECKING:
    from mapsave.cli.service_client import ServiceClient


class Remote(ThroughService):
    """Does as ``ThroughService`` does; images, policies and jobs are meant by their names."""

    def latest(self, guest: str) -> str:
        return os.path.basename(super().latest(guest))

    def _name_to_be(self, image: str) -> str:
        if "/" in image or not through_service.is_image_name(image):
            raise errors.UsageError(
                f"{image!r} is not the name of an image",
                hint="with --host an image is a name in the image directory of that host",
            )
        return image

    def _name(self, image: str) -> str:
        return self._name_to_be(image)

    def _job(self, job: str) -> Result:
        if "/" in job:
            raise errors.UsageError(
                f"{job!r} is not the name of a job",
                hint="with --host a job is a name in the jobs directory of that host",
            )
        return self._job_named(job)


def client(given: Globals, timeout: float | None = None) -> ServiceClient:
    """Return the client of the host of ``--host``; ``timeout`` is in seconds, for one answer.

    Raises UsageError, ConfigError, NotPermitted.
    """
    from mapsave.cli.service_client import ServiceClient
    from mapsave.client.address import Tls

    assert given.host is not None
    return ServiceClient(Tls(given.remote(), given.host), given.stop, timeout)
