"""A save job: which guests to save, how, when, and how many images to keep."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
from pydantic import Field

from manager import config, errors, units, yaml_errors, yaml_file
from manager.config_models import Model, Name, SaveModel, Text, Truth
from manager.jobs import cron, template

if TYPE_CHECKING:
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
class Job:
    """One save job. ``timeout`` is in seconds for each guest; None means no limit."""

    name: str
    guests: tuple[str, ...]
    image: template.Template
    replace: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    keep: Keep | None = None
    concurrency: int = 1
    timeout: float | None = None
    document: yaml_file.Document | None = field(default=None, repr=False, compare=False)

    @property
    def source(self) -> Path | None:
        """The file that the job stands in."""
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
            raise self._error(("save", "image"), words, hint="put {guest} into it")
        return list(names)

    def image_name(
        self, guest: str, when: datetime.datetime, unique: uuid.UUID | None = None
    ) -> str:
        """Return the file name of the image of ``guest`` that is saved at ``when``.

        ``unique`` stands for ``{uuid}``; without it each call makes one. Raises ConfigError if
        what comes out is no file name, for example because the guest's name is too long for it.
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
    model = document.validate(JobModel)
    save = model.save or JobSaveModel.model_validate({})
    return Job(
        name=model.job,
        guests=tuple(model.guests),
        image=template.parse(save.image or template.DEFAULT),
        replace=bool(save.replace),
        given=save.given(),
        schedule=model.schedule,
        keep=Keep(**model.keep.model_dump(exclude_none=True)) if model.keep else None,
        concurrency=model.concurrency,
        timeout=model.timeout,
        document=document,
    )


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a save job, for editors."""
    return JobModel.model_json_schema()


def _image(value: str) -> str:
    """Return ``value`` if it renders; what depends on the guest is checked with the guest."""
    sample = uuid.UUID(int=0)
    template.parse(value).render("guest", "job", datetime.datetime.now(datetime.UTC), sample)
    return value


def _timeout(value: Any) -> float:
    if not isinstance(value, (str, int, float)):
        raise ValueError("not a duration (write 30s, 15m, 1h30m)")
    seconds = units.parse_duration(value)
    if seconds == 0:
        raise ValueError("must be longer than 0; leave it out for no limit")
    return seconds


Count = Annotated[int, Field(ge=1, le=1_000_000)]


class JobSaveModel(SaveModel):
    """How the job saves; what is not given is as the configuration's ``save`` says."""

    image: Annotated[Text, pydantic.AfterValidator(_image)] | None = Field(
        None, description="Name of the image; {guest}, {job}, {uuid}, {time:%Y...} are filled in."
    )
    replace: Truth | None = Field(
        None, description="Whether an image of that name may be replaced (default: no)."
    )


class KeepModel(Model):
    """How many images of each guest to keep; older ones are removed."""

    last: Count | None = Field(None, description="The last ones, whenever they were made.")
    hourly: Count | None = Field(None, description="The last one of each of so many hours.")
    daily: Count | None = Field(None, description="The last one of each of so many days.")
    weekly: Count | None = Field(None, description="The last one of each of so many weeks.")
    monthly: Count | None = Field(None, description="The last one of each of so many months.")

    @pydantic.model_validator(mode="after")
    def _keeps(self) -> KeepModel:
        if not self.model_dump(exclude_none=True):
            raise ValueError("must keep something: last, hourly, daily, weekly or monthly")
        return self


class JobModel(Model):
    """A save job of mapsave."""

    job: Name = Field(description="The job's name.")
    guests: list[Text] = Field(min_length=1, description="Names of guests, or patterns like db*.")
    save: JobSaveModel | None = Field(None, description="How to save.")
    schedule: Annotated[str, pydantic.AfterValidator(cron.check)] | None = Field(
        None, description="When: five fields as in crontab(5), or a word such as @daily."
    )
    keep: KeepModel | None = Field(None, description="How many images to keep.")
    concurrency: Count = Field(1, description="How many guests to save side by side.")
    timeout: (
        Annotated[
            float,
            pydantic.PlainValidator(_timeout, json_schema_input_type=str | int | float),
        ]
        | None
    ) = Field(None, description="How long each save may take, such as 15m.")
