"""The host as this process works on it, without the service. Modules are imported when used."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mapsave import errors
from mapsave.cli.options import Globals
from mapsave.migration.progress import Report

if TYPE_CHECKING:
    from mapsave.config import Config, Guest
    from mapsave.evacuation.clones import Cloned
    from mapsave.evacuation.restore_all import Request, RestoredAll
    from mapsave.jobs.engine import Run
    from mapsave.jobs.loading import AnyJob
    from mapsave.jobs.retention import Pruned
    from mapsave.jobs.scrub import Scrubbed
    from mapsave.operations import restore_request
    from mapsave.operations.images import Listing
    from mapsave.operations.preview import Preview
    from mapsave.operations.recover import Recovered
    from mapsave.operations.results import RestoreResult, SaveResult

# What the command prints with --json.
Result = dict[str, Any]
# Options of the command line by name; those that were not given are None.
Options = Mapping[str, Any]
T = TypeVar("T")
_JOB_SUFFIXES = (".yaml", ".yml")


class Here:
    """Does what the command of a method's name is about, and raises what that raises.

    ``image`` is a path or a name in the image directory, ``job`` a file or a name in the jobs
    directory. ``check`` also returns the error of the first check that failed, ``prune`` whether
    the job keeps all images, ``latest`` what the other methods take for a guest's last image.
    """

    def __init__(self, given: Globals, config: Config) -> None:
        self._given = given
        self._config = config

    def save(self, guest: Guest, options: Options, report: Report) -> SaveResult:
        from mapsave.hooks import around
        from mapsave.operations import save_request

        request = save_request.request(self._config, guest, **options)
        return self._run(around.save(guest, self._config, request, report))

    def restore(self, image: str, options: Options, report: Report) -> RestoreResult:
        from mapsave.hooks import around
        from mapsave.operations import restore_request

        request = restore_request.Request(image=image, **options)
        return self._run(around.restore(self._config, request, report))

    def clone(self, image: str, options: Options, report: Report) -> Cloned:
        from mapsave.evacuation import clones
        from mapsave.hooks import around

        async def restorer(wanted: restore_request.Request, told: Report) -> RestoreResult:
            return await around.restore(self._config, wanted, told)

        request = clones.Request(image=image, **options)
        return self._run(clones.clone(self._config, request, restorer, report))

    def check(self, guest: Guest, options: Options) -> tuple[Preview, errors.MapsaveError | None]:
        from mapsave.operations import preview, save_request

        request = save_request.request(self._config, guest, **options)
        return self._run(preview.preview(guest, self._config, request))

    def has_image(self, image: str) -> bool:
        try:
            os.lstat(self._path(image))
        except PermissionError:
            return True  # reading it says what refuses
        except (OSError, ValueError):
            return False
        return True

    def inspect(self, image: str) -> Result:
        from mapsave.operations import inspect

        return inspect.inspect(self._path(image), self._config)

    def picture(self, image: str) -> str:
        from mapsave.operations import pictures

        return pictures.of_image(self._path(image))

    def verify(self, image: str, report: Report, *, data: bool, add_digests: bool) -> Result:
        from mapsave.operations import inspect

        path = self._path(image)
        if not (data or add_digests):
            return inspect.verify(path, self._config)
        return self._run(inspect.verify_data(path, self._config, report, add=add_digests))

    def discard(self, image: str, *, unrestored: bool, in_use: bool) -> Result:
        from mapsave.operations import discard

        path = self._path(image)
        return discard.discard(self._config, path, unrestored=unrestored, in_use=in_use)

    def pin(self, image: str) -> Result:
        from mapsave.operations import pins

        return pins.pin(self._config, self._path(image))

    def unpin(self, image: str) -> Result:
        from mapsave.operations import pins

        return pins.unpin(self._config, self._path(image))

    def warm(self, image: str, options: Options, report: Report) -> Result:
        from mapsave.operations import warm

        request = warm.Request(**options)
        return {**self._run(warm.warm(self._config, self._path(image), request, report))}

    def images(
        self, guest: str | None = None, *, latest: bool = False, directory: Path | None = None
    ) -> Listing:
        """Return the images of ``directory``, without one those of the image directory."""
        from mapsave.image import store
        from mapsave.operations import images

        with store.directory(directory or self._config.images, create=directory is None) as held:
            return images.listing(
                held, self._config, guest, latest=latest, with_managed=directory is None
            )

    def latest(self, guest: str) -> str:
        from mapsave.operations import images

        return str(images.latest(self.images(guest, latest=True), guest)["image"])

    def guests(self) -> Result:
        from mapsave.evacuation import guest_list

        asked = self._run(guest_list.ask(self._config))
        found = [*self._config.guests.values(), *asked.clones, *asked.others]
        lines = guest_list.lines(found, asked, self.images(latest=True)["images"])
        unreachable = [each.as_dict() for each in asked.unreachable]
        return {"guests": lines, "unreachable": unreachable}

    def recover(self, *, dry_run: bool) -> Recovered:
        from mapsave.hooks import recover

        return self._run(recover.recover(self._config, dry_run=dry_run))

    def restore_all(self, request: Request, report: Report) -> RestoredAll:
        from mapsave.evacuation import restore_all

        return self._run(restore_all.restore_all(self._config, request, report))

    def run_job(self, job: str, report: Report) -> Run | Scrubbed:
        from mapsave.jobs import engine, scrub
        from mapsave.jobs.scrub_job import ScrubJob

        loaded = load_job(self._config, job)
        if isinstance(loaded, ScrubJob):
            return self._run(scrub.run(loaded, self._config, report=report))
        return self._run(engine.run(loaded, self._config, report=report))

    def check_job(self, job: str) -> Run | Scrubbed:
        from mapsave.jobs import engine, scrub
        from mapsave.jobs.scrub_job import ScrubJob

        loaded = load_job(self._config, job)
        if isinstance(loaded, ScrubJob):
            return self._run(scrub.check(loaded, self._config))
        return self._run(engine.check(loaded, self._config))

    def prune(self, job: str, *, dry_run: bool, in_use: bool) -> tuple[Pruned, bool]:
        from mapsave.jobs import loading, retention

        loaded = loading.saving(load_job(self._config, job))
        pruning = retention.prune(loaded, self._config, dry_run=dry_run, in_use=in_use)
        lines = self._run(pruning)
        return retention.summary(loaded, lines, dry_run=dry_run), loaded.keep is None

    def jobs(self) -> Result:
        from mapsave.service import job_files

        found = job_files.load(self._config)
        unknown = {"next_run": None, "last_run": None}  # the service alone knows
        return {
            "jobs": [{**job_files.line(job, found.guests[job.name]), **unknown} for job in found],
            "broken": [broken.line() for broken in found.broken],
        }

    def _run(self, work: Coroutine[object, object, T]) -> T:
        from mapsave.cli import local

        return local.run(work, self._given)

    def _path(self, image: str) -> str:
        from mapsave.operations import images

        return images.resolve(image, self._config)


def is_job_file(job: str) -> bool:
    """Return whether a file is meant, and not the name of a job."""
    return "/" in job or job.endswith(_JOB_SUFFIXES) or os.path.lexists(job)


def is_in_jobs_directory(config: Config, job: str) -> bool:
    """Return whether a file is one of those that the service reads."""
    directory = os.path.dirname(os.path.abspath(job))
    return job.endswith(_JOB_SUFFIXES) and os.path.realpath(directory) == os.path.realpath(
        config.jobs
    )


def load_job(config: Config, job: str) -> AnyJob:
    """Return the job of a file, or of that name in the jobs directory.

    Raises UnknownJob, ConfigMissing, ConfigError.
    """
    if is_job_file(job):
        from mapsave.jobs import loading

        return loading.load(Path(job))
    from mapsave.service import job_files

    return job_files.load(config).get(job)
