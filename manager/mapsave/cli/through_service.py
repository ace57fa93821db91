"""The host as the service works on it: requests to its API, and what it can be asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from mapsave import errors
from mapsave.cli import here, service_client
from mapsave.cli.here import Options, Result
from mapsave.cli.service_client import ServiceClient
from mapsave.client import calls, exchange
from mapsave.client.delegate import Patience
from mapsave.client.exchange import Call
from mapsave.image import partial_names
from mapsave.migration.progress import Report

if TYPE_CHECKING:
    from mapsave.config import Config, Guest
    from mapsave.evacuation import restore_all, save_run
    from mapsave.evacuation.clones import Cloned
    from mapsave.evacuation.restore_all import RestoredAll
    from mapsave.evacuation.save_all import SavedAll
    from mapsave.jobs.engine import Run
    from mapsave.jobs.retention import Pruned
    from mapsave.jobs.scrub import Scrubbed
    from mapsave.operations.images import Listing
    from mapsave.operations.preview import Preview
    from mapsave.operations.recover import Recovered
    from mapsave.operations.results import RestoreResult, SaveResult

P = ParamSpec("P")
T = TypeVar("T")


class ThroughService:
    """Does as ``here.Here`` does, with images, policies and jobs that the service knows."""

    def __init__(self, client: ServiceClient, config: Config) -> None:
        self._client = client
        self._config = config

    def save(self, guest: Guest, options: Options, report: Report) -> SaveResult:
        asked = self._save(options)
        return self._perform(calls.save, _address(guest), asked, report=report)

    def begin_save(self, guest: Guest, options: Options) -> Result:
        """Begin what ``save`` does; return the operation. ``begin_restore`` etc. too."""
        return self._begin("save", guest=_address(guest), save=self._save(options))

    def restore(self, image: str, options: Options, report: Report) -> RestoreResult:
        asked = self._restore(options)
        return self._perform(calls.restore, self._name(image), asked, report=report)

    def begin_restore(self, image: str, options: Options) -> Result:
        return self._begin("restore", image=self._name(image), restore=self._restore(options))

    def clone(self, image: str, options: Options, report: Report) -> Cloned:
        return self._perform(calls.clone, self._name(image), _given(options), report=report)

    def begin_clone(self, image: str, options: Options) -> Result:
        return self._begin("clone", image=self._name(image), clone=_given(options))

    def check(self, guest: Guest, options: Options) -> tuple[Preview, errors.MapsaveError | None]:
        return self._perform(calls.check, _address(guest), self._save(options))

    def has_image(self, image: str) -> bool:
        with contextlib.suppress(errors.ImageNotFound):
            self.inspect(image)
            return True
        return False

    def inspect(self, image: str) -> Result:
        return self._client.image(self._name(image))

    def picture(self, image: str) -> str:
        return self._client.image_picture(self._name(image))

    def verify(self, image: str, report: Report, *, data: bool, add_digests: bool) -> Result:
        name = self._name(image)
        return self._perform(calls.verify, name, data=data, add_digests=add_digests, report=report)

    def discard(self, image: str, *, unrestored: bool, in_use: bool) -> Result:
        name = self._name(image)
        return self._perform(calls.discard, name, unrestored=unrestored, in_use=in_use)

    def pin(self, image: str) -> Result:
        return self._perform(calls.pin, self._name(image))

    def unpin(self, image: str) -> Result:
        return self._perform(calls.unpin, self._name(image))

    def warm(self, image: str, options: Options, report: Report) -> Result:
        done = self._perform(calls.warm, self._name(image), **options, report=report)
        return {**done}

    def images(self, guest: str | None = None, *, latest: bool = False) -> Listing:
        found = self._client.call(calls.all_images(guest, latest=latest))
        return {"directory": found["directory"], "images": found["images"]}

    def latest(self, guest: str) -> str:
        from mapsave.operations import images

        found = images.latest(self.images(guest, latest=True), guest)
        return str(self._config.images / str(found["name"]))  # no file here is mistaken for it

    def guests(self) -> Result:
        return self._client.get("/v1/guests", look="true")

    def recover(self, *, dry_run: bool) -> Recovered:
        return self._perform(calls.recover, dry_run=dry_run)

    def save_all(self, request: save_run.Request, report: Report, patience: Patience) -> SavedAll:
        """Save all guests. Raises as ``delegate.run`` does."""
        asked = _given(dataclasses.asdict(request))
        return self._perform(calls.save_all, asked, report=report, patience=patience)

    def restore_all(self, request: restore_all.Request, report: Report) -> RestoredAll:
        asked = _given(dataclasses.asdict(request))
        return self._perform(calls.restore_all, asked, report=report)

    def run_job(self, job: str, report: Report) -> Run | Scrubbed:
        return self._perform(calls.run_job, self._job(job)["name"], report=report)

    def begin_job(self, job: str) -> Result:
        return self._begin("job", job=self._job(job)["name"])

    def check_job(self, job: str) -> Run | Scrubbed:
        return self._perform(calls.check_job, self._job(job)["name"])

    def prune(self, job: str, *, dry_run: bool, in_use: bool) -> tuple[Pruned, bool]:
        known = self._job(job)
        done = self._perform(calls.prune, known["name"], dry_run=dry_run, in_use=in_use)
        return done, known.get("keep") is None

    def jobs(self) -> Result:
        return self._client.get("/v1/jobs")

    def _perform(self, call: Callable[P, Call[T]], /, *arguments: P.args, **named: P.kwargs) -> T:
        """Run a call, with an id for its operation, until it has ended or a signal stops it."""
        return self._client.perform(
            lambda number: call(*arguments, **{**named, "operation": number})  # type: ignore[arg-type]
        )

    def _begin(self, kind: str, **asked: object) -> Result:
        return self._client.start({"kind": kind, **asked})

    def _name(self, image: str) -> str:
        name = image_name(self._config, image)
        assert name is not None, "the service was chosen for an image that it does not know"
        return name

    def _restore(self, options: Options) -> Result:
        into = options["into"] and os.path.abspath(options["into"])
        return _given({**options, "into": into})

    def _save(self, options: Options) -> Result:
        image = options["image"] and self._name_to_be(options["image"])
        return _given({**options, "image": image})

    def _name_to_be(self, image: str) -> str | None:
        return name_to_be(self._config, image)

    def _job(self, job: str) -> Result:
        """Return what the service says of a job. Raises UnknownJob, and what is wrong with it."""
        if not here.is_job_file(job):
            return self._job_named(job)
        found = self._client.get("/v1/jobs")
        for known in found["jobs"]:
            if service_client.same(known["file"], job):
                return dict(known)
        for broken in found["broken"]:
            if service_client.same(broken["file"], job):
                raise errors.from_dict(broken["error"])
        if not os.path.lexists(job):
            here.load_job(self._config, job)  # says what is wrong with any file
        raise errors.UnknownJob(
            f"the service has not loaded the job in {job!r} yet",
            hint="let the service read its files: systemctl reload mapsaved; or use --local",
        )

    def _job_named(self, job: str) -> Result:
        return self._client.get(f"/v1/jobs/{exchange.quoted(job)}")


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
        if not service_client.same(directory, config.images):
            return None
    return name if is_image_name(name) else None


def is_image_name(name: str) -> bool:
    """Return whether an image in the image directory may have that name."""
    is_long = len(os.fsencode(name)) > 255
    return name not in ("", ".", "..") and not partial_names.is_partial_name(name) and not is_long


def knows_policy(policy: str | None) -> bool:
    """Return whether the service can look up a policy: it does so by name, not by any path."""
    if policy is None:
        return True
    from mapsave.labels import policy as policies

    return not policies.is_path(policy)


def may_know_job(config: Config, job: str) -> bool:
    """Return whether a job may be one of the service: a name, or a file of the jobs directory."""
    return not here.is_job_file(job) or here.is_in_jobs_directory(config, job)


def _address(guest: Guest) -> str:
    """Return a guest's name or address as the service, which runs elsewhere, understands it."""
    kind, _, path = guest.name.partition(":")
    return f"qmp:{os.path.abspath(path)}" if kind == "qmp" and path else guest.name


def _given(options: Options) -> Result:
    return {name: value for name, value in options.items() if value is not None}
