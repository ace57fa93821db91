"""The host as the service works on it: requests to its API, and what it can be asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, cast

from mapsave import errors
from mapsave.cli import here
from mapsave.cli.here import Options, Result
from mapsave.client import connection, delegate
from mapsave.client.connection import Client
from mapsave.client.delegate import Patience
from mapsave.migration import progress
from mapsave.migration.progress import Report

if TYPE_CHECKING:
    from mapsave.config import Config, Guest
    from mapsave.evacuation import restore_all, save_run
    from mapsave.evacuation.restore_all import RestoredAll
    from mapsave.evacuation.save_all import SavedAll
    from mapsave.jobs.engine import Run
    from mapsave.jobs.retention import Pruned
    from mapsave.operations.images import Listing
    from mapsave.operations.preview import Preview
    from mapsave.operations.recover import Recovered
    from mapsave.operations.results import RestoreResult, SaveResult

_PAGE = 1000  # images; what the service returns at most
_PARTIAL = ".partial"  # image.PARTIAL_SUFFIX, without what that module loads


class ThroughService:
    """Does as ``here.Here`` does, with images, policies and jobs that the service knows."""

    def __init__(self, client: Client, config: Config) -> None:
        self._client = client
        self._config = config

    def save(self, guest: Guest, options: Options, report: Report) -> SaveResult:
        import msgspec

        from mapsave.operations import results

        done = self._perform("save", report, guest=_address(guest), save=self._save(options))
        return msgspec.convert(done, results.SaveResult)

    def restore(self, image: str, options: Options, report: Report) -> RestoreResult:
        import msgspec

        from mapsave.operations import results

        into = options["into"] and os.path.abspath(options["into"])
        asked = _given({**options, "into": into})
        done = self._perform("restore", report, image=self._name(image), restore=asked)
        return msgspec.convert(done, results.RestoreResult)

    def check(self, guest: Guest, options: Options) -> tuple[Preview, errors.MapsaveError | None]:
        found = self._perform("check", guest=_address(guest), check=self._save(options))
        error = found.pop("error")
        return cast("Preview", found), None if error is None else errors.from_dict(error)

    def has_image(self, image: str) -> bool:
        with contextlib.suppress(errors.ImageNotFound):
            self.inspect(image)
            return True
        return False

    def inspect(self, image: str) -> Result:
        return self._client.get(f"/v1/images/{connection.quoted(self._name(image))}")

    def verify(self, image: str) -> Result:
        return self._perform("verify", image=self._name(image))

    def discard(self, image: str, *, unrestored: bool) -> Result:
        return self._perform("discard", image=self._name(image), unrestored=unrestored)

    def images(self) -> Listing:
        """Return all images, page by page."""
        page = self._client.get("/v1/images", limit=_PAGE)
        found: Listing = {"directory": page["directory"], "images": page["images"]}
        while page["next"] is not None:
            page = self._client.get("/v1/images", limit=_PAGE, before=page["next"])
            found["images"] += page["images"]
        return found

    def recover(self, *, dry_run: bool) -> Recovered:
        return cast("Recovered", self._perform("recover", dry_run=dry_run))

    def save_all(self, request: save_run.Request, report: Report, patience: Patience) -> SavedAll:
        """Save all guests. Raises as ``delegate.perform`` does."""
        body = {"kind": "save-all", **_given(dataclasses.asdict(request))}
        return cast("SavedAll", delegate.perform(self._client, body, report, patience))

    def restore_all(self, request: restore_all.Request, report: Report) -> RestoredAll:
        asked = _given(dataclasses.asdict(request))
        return cast("RestoredAll", self._perform("restore-all", report, **asked))

    def run_job(self, job: str) -> Run:
        return cast("Run", self._perform("job", job=self._job(job)["name"]))

    def check_job(self, job: str) -> Run:
        return cast("Run", self._perform("check", job=self._job(job)["name"]))

    def prune(self, job: str, *, dry_run: bool) -> tuple[Pruned, bool]:
        known = self._job(job)
        done = self._perform("prune", job=known["name"], dry_run=dry_run)
        return cast("Pruned", done), known["keep"] is None

    def jobs(self) -> Result:
        return self._client.get("/v1/jobs")

    def _perform(self, kind: str, report: Report = progress.silent, /, **asked: object) -> Result:
        return delegate.perform(self._client, {"kind": kind, **asked}, report)

    def _name(self, image: str) -> str:
        name = image_name(self._config, image)
        assert name is not None, "the service was chosen for an image that it does not know"
        return name

    def _save(self, options: Options) -> Result:
        image = options["image"] and name_to_be(self._config, options["image"])
        return _given({**options, "image": image})

    def _job(self, job: str) -> Result:
        """Return what the service says of a job. Raises UnknownJob, and what is wrong with it."""
        if not here.is_job_file(job):
            return self._client.get(f"/v1/jobs/{connection.quoted(job)}")
        found = self._client.get("/v1/jobs")
        for known in found["jobs"]:
            if connection.same(known["file"], job):
                return dict(known)
        for broken in found["broken"]:
            if connection.same(broken["file"], job):
                raise errors.from_dict(broken["error"])
        if not os.path.lexists(job):
            here.load_job(self._config, job)  # says what is wrong with any file
        raise errors.UnknownJob(
            f"the service has not loaded the job in {job!r} yet",
            hint="let the service read its files: systemctl reload mapsaved; or use --local",
        )


def image_name(config: Config, image: str) -> str | None:
    """Return the name of an image of the image directory; None for any other.

    It may also lie in the current directory. What cannot be the name of an image is one of the
    others: this process says what is wrong with it.
    """
    if "/" in image or os.path.lexists(image):
        return name_to_be(config, os.path.abspath(image))
    return name_to_be(config, image)


def name_to_be(config: Config, image: str) -> str | None:
    """Do as ``image_name`` does for an image that is to be made: a bare name is always one."""
    directory, name = os.path.split(image)
    if directory:
        directory, name = os.path.split(os.path.abspath(image))
        if not connection.same(directory, config.images):
            return None
    wrong = name in ("", ".", "..") or name.endswith(_PARTIAL) or len(os.fsencode(name)) > 255
    return None if wrong else name


def knows_policy(policy: str | None) -> bool:
    """Return whether the service can look up a policy: it does so by name, not by any path."""
    from mapsave.labels import policy as policies

    return policy is None or not policies.is_path(policy)


def may_know_job(config: Config, job: str) -> bool:
    """Return whether a job may be one of the service: a name, or a file of the jobs directory."""
    return not here.is_job_file(job) or here.is_in_jobs_directory(config, job)


def _address(guest: Guest) -> str:
    """Return a guest's name or address as the service, which runs elsewhere, understands it."""
    kind, _, path = guest.name.partition(":")
    return f"qmp:{os.path.abspath(path)}" if kind == "qmp" and path else guest.name


def _given(options: Options) -> Result:
    return {name: value for name, value in options.items() if value is not None}
