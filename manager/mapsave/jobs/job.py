"""A save job: which guests to save, how, when, and how many images to keep."""

from __future__ import annotations

import dataclasses
import fnmatch
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mapsave import config, errors, yaml_errors, yaml_file
from mapsave.jobs import job_models, schedule, template

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Keep:
    """How many images of a guest to keep: the last ones, and the last one of each hour, day, ..."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


@dataclass(frozen=True)
class Retries:
    """How many more tries a save gets that could not begin, and the seconds between them."""

    times: int = 0
    wait: float = 60.0


@dataclass(frozen=True)
class Job:
    """One save job. ``timeout`` is in seconds for each save; None means no limit.

    ``hooks`` has, for each moment, the names of those that run after the configuration's.
    """

    name: str
    guests: tuple[str, ...]
    image: template.Template
    replace: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    schedule: schedule.Schedule | None = None
    keep: Keep | None = None
    concurrency: int = 1
    timeout: float | None = None
    retries: Retries = Retries()
    hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    document: yaml_file.Document | None = field(default=None, repr=False, compare=False)

    @property
    def zone(self) -> datetime.tzinfo:
        """The time zone of its schedule, which its hours, days and weeks are counted in as well.

        Raises ConfigError where that is the host's and is not known.
        """
        return self.schedule.zone if self.schedule else schedule.local_zone()

    @property
    def source(self) -> Path | None:
        """The file of the job."""
        return self.document.path if self.document else None

    def settings(self, configured: config.Config) -> config.SaveSettings:
        """Return how to save: what the job says, else what the configuration says."""
        return dataclasses.replace(configured.save, **self.given)

    def resolve(self, configured: config.Config) -> list[str]:
        """Return the names of the guests to save, in the order of the job, each once.

        A word that is the name of a guest means that guest, any other is a pattern of fnmatch(3).
        Raises ConfigError if a word means no guest, or if two guests would get one image name.
        """
        names: dict[str, None] = {}
        for index, word in enumerate(self.guests):
            known = configured.guests
            found = [word] if word in known else [n for n in known if fnmatch.fnmatchcase(n, word)]
            if not found:
                raise self._no_guest(index, word, configured)
            names.update(dict.fromkeys(found))
        if len(names) > 1 and not self.image.tells_guests_apart:
            words = f"save.image: {len(names)} guests would get the same image name"
            raise self._error(("save", "image"), words, hint="add {guest} to it")
        return list(names)

    def image_name(
        self, guest: str, when: datetime.datetime, unique: uuid.UUID | None = None
    ) -> str:
        """Return the file name of the image of ``guest`` that is saved at ``when``.

        ``unique`` is the ``{uuid}``; without it each call makes one. Raises ConfigError if what
        comes out is no file name, for example because the guest's name is too long for it.
        """
        try:
            return self.image.render(guest, self.name, when, unique or uuid.uuid4())
        except ValueError as exc:
            raise self._error(("save", "image"), f"save.image: {exc}") from None

    def _no_guest(self, index: int, word: str, configured: config.Config) -> errors.ConfigError:
        where = configured.source or "the built-in defaults"
        guess = yaml_errors.nearest(word, configured.guests)
        kind = "matches the pattern" if set(word) & set("*?[") else "is called"
        words = f"guests[{index}]: no guest in {where} {kind} {word!r}{guess}"
        return self._error(("guests", index), words)

    def _error(
        self, loc: yaml_file.Loc, message: str, hint: str | None = None
    ) -> errors.ConfigError:
        if self.document is None:
            return errors.ConfigError(f"job {self.name}: {message}", hint=hint)
        return self.document.error(loc, message, hint)


def load(path: Path) -> Job:
    """Return the save job in the YAML file at ``path``.

    Raises ConfigMissing if it cannot be read, ConfigError with file and line for each mistake.
    """
    document = yaml_file.read(path)
    model = document.validate(job_models.JobModel)
    save = model.save or job_models.JobSaveModel.model_validate({})
    if model.schedule and model.schedule.time_zone is None:
        schedule.local_zone()  # reported now, not when the job is due
    return Job(
        name=model.job,
        guests=tuple(model.guests),
        image=template.parse(save.image or template.DEFAULT),
        replace=bool(save.replace),
        given=save.given(),
        schedule=schedule.Schedule(**dict(model.schedule)) if model.schedule else None,
        keep=Keep(**model.keep.model_dump(exclude_none=True)) if model.keep else None,
        concurrency=model.concurrency,
        timeout=model.timeout,
        retries=Retries(**dict(model.retries)) if model.retries else Retries(),
        hooks=model.hooks.given() if model.hooks else {},
        document=document,
    )


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a save job, for editors."""
    return job_models.JobModel.model_json_schema()
