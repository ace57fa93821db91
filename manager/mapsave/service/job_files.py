"""The jobs directory: every ``*.yaml`` in it, those that are wrong listed with their error."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import structs

from mapsave import errors, keys
from mapsave.config import Config
from mapsave.image import ownership
from mapsave.jobs import loading
from mapsave.jobs.job import Job
from mapsave.jobs.loading import AnyJob
from mapsave.jobs.schedule import Schedule
from mapsave.operations import trust
from mapsave.strict_json import Facts


@dataclasses.dataclass(frozen=True)
class Broken:
    """A file that is no job, and why; or the jobs directory itself, which cannot be read.

    ``name`` is that of its job, None where the file does not say it.
    """

    path: Path
    error: errors.MapsaveError
    name: str | None = None
    is_directory: bool = False

    def may_be(self, name: str) -> bool:
        """Return whether the job ``name`` may be in there, by its name or the file's."""
        return self.is_directory or name in (self.name, self.path.stem)

    def line(self) -> Facts:
        """Return it as the API and ``mapsave job list`` show it."""
        return {"file": str(self.path), "error": self.error.as_dict()}


class Jobs:
    """The jobs by name, and the files that could not be loaded.

    ``guests`` are those that each job saves, by its name, as it was loaded: with thousands of them
    it takes long to find which ones a pattern means.
    """

    def __init__(
        self,
        found: dict[str, AnyJob],
        guests: Mapping[str, list[str]],
        broken: tuple[Broken, ...] = (),
    ) -> None:
        self._found = found
        self.guests = guests
        self.broken = broken

    def __iter__(self) -> Iterator[AnyJob]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def get(self, name: str) -> AnyJob:
        """Return a job. Raises UnknownJob; for a file that is broken, or a directory that cannot be
        read, its error."""
        if name in self._found:
            return self._found[name]
        for broken in self.broken:
            if broken.may_be(name):
                raise broken.error.with_traceback(None)  # it is raised for each who asks
        raise errors.UnknownJob(
            f"no job {name!r}",
            hint=keys.did_you_mean(name, self._found) or "'mapsave job list' lists them",
        )


def load(config: Config) -> Jobs:
    """Return the jobs of the directory, in the order of their files; a missing one holds none.

    A job whose guests do not exist, or whose name another file has, is broken too.
    """
    found: dict[str, AnyJob] = {}
    guests: dict[str, list[str]] = {}
    broken: list[Broken] = []
    try:
        paths = sorted(path for path in config.jobs.iterdir() if path.suffix in (".yaml", ".yml"))
    except FileNotFoundError:
        return Jobs({}, {})
    except OSError as error:
        words = f"cannot read the jobs directory {str(config.jobs)!r}: {error.strerror}"
        why = errors.of_os_error(error, words, config.jobs, otherwise=errors.ConfigMissing)
        return Jobs({}, {}, (Broken(config.jobs, why, is_directory=True),))
    for path in paths:
        if path.name.startswith("."):
            continue
        name = None
        try:
            job = loading.load(path)
            name = job.name
            names = []
            if isinstance(job, Job):
                names = job.resolve(config)
                if "policy" in job.given:
                    _check_writers(path)
            if job.name in found:
                raise errors.ConfigError(
                    f"{path}: the job {job.name!r} is already defined in {found[job.name].source}"
                )
        except errors.MapsaveError as error:
            broken.append(Broken(path, error, name))
        else:
            found[job.name], guests[job.name] = job, names
    return Jobs(found, guests, tuple(broken))


def _check_writers(path: Path) -> None:
    """Raise NotPermitted where others than root and the service could have written a job's file.

    Its label policy goes before that of its guests, which only root may change.
    """
    try:
        with path.open("rb") as file:
            found = ownership.of_file(str(path), file.fileno(), trust.users())
    except OSError as error:
        raise errors.ConfigMissing(f"cannot read {str(path)!r}: {error.strerror}") from None
    if found:
        raise errors.NotPermitted(
            f"the job {str(path)!r} sets a label policy, and others than root and the service's "
            f"user could have written it: {'; '.join(found)}",
            hint="chown and chmod go-w the files named, or omit 'policy' from the job",
        )


def line(job: AnyJob, guests: list[str]) -> Facts:
    """Return a job, of those ``guests``, as the API and ``mapsave job list`` show it."""
    found = {
        "name": job.name,
        "kind": job.kind,
        "file": str(job.source),
        "guests": guests,
        "schedule": None if job.schedule is None else _schedule(job.schedule),
        "timeout_s": job.timeout,
    }
    if isinstance(job, Job):
        keep = structs.asdict(job.keep) if job.keep is not None else None
        return {**found, "keep": keep, "concurrency": job.concurrency}
    return {
        **found,
        "images": list(job.images),
        "images_of": list(job.guests),
        "every_s": job.every,
        "rate_bytes_per_s": job.rate,
        "limit_bytes": job.limit,
    }


def _schedule(schedule: Schedule) -> Facts:
    found = structs.asdict(schedule)
    found["jitter_s"] = found.pop("jitter")
    return found
