"""Which job is meant on the command line, and whether the service or we do what is asked of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.client import connection

if TYPE_CHECKING:
    from mapsave.cli.options import Globals
    from mapsave.client.connection import Client
    from mapsave.config import Config
    from mapsave.jobs.job import Job

_SUFFIXES = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class Known:
    """A job that the service knows; ``line`` is what it says of it."""

    client: Client
    name: str
    line: dict[str, Any]


def known(given: Globals, config: Config, job: str) -> Known | None:
    """Return the job of the service that ``job``, a name or a file, is; None to work here.

    Raises UnknownJob, and what is wrong with a file of the jobs directory.
    """
    is_file = _is_file(job)
    if is_file and not _is_of_directory(job, config):
        return None
    client = connection.service(given, config)
    if client is None:
        return None
    if not is_file:
        return Known(client, job, client.get(f"/v1/jobs/{connection.quoted(job)}"))
    found = client.get("/v1/jobs")
    for line in found["jobs"]:
        if _same(line["file"], job):
            return Known(client, line["name"], line)
    for line in found["broken"]:
        if _same(line["file"], job):
            raise errors.from_dict(line["error"])
    if not os.path.lexists(job):
        return None  # reported as for any file
    raise errors.UnknownJob(
        f"the service has not loaded the job in {job!r} yet",
        hint="let the service read its files: systemctl reload mapsaved; or use --local",
    )


def load(config: Config, job: str) -> Job:
    """Return the job that a name of the jobs directory, or a file, means.

    Raises UnknownJob, ConfigMissing, ConfigError.
    """
    if _is_file(job):
        from mapsave.jobs import job as jobs

        return jobs.load(Path(job))
    from mapsave.service import job_files

    return job_files.load(config).get(job)


def listing(given: Globals, config: Config) -> dict[str, Any]:
    """Return the jobs as the service lists them; without it, those of the directory."""
    client = connection.service(given, config)
    if client is not None:
        return client.get("/v1/jobs")
    from mapsave.service import job_files

    found = job_files.load(config)
    unknown = {"next_run": None, "last_run": None}
    return {
        "jobs": [{**job_files.line(each, config), **unknown} for each in found],
        "broken": [each.line() for each in found.broken],
    }


def _is_file(job: str) -> bool:
    return "/" in job or job.endswith(_SUFFIXES) or os.path.lexists(job)


def _is_of_directory(job: str, config: Config) -> bool:
    """Return whether a file is one of those that the service reads."""
    directory = os.path.dirname(os.path.abspath(job))
    return job.endswith(_SUFFIXES) and _same(directory, config.jobs)


def _same(one: Any, other: Any) -> bool:
    return os.path.realpath(str(one)) == os.path.realpath(str(other))
