"""A save job's YAML file as pydantic models: what is wrong with a file, and the schema of one."""

from __future__ import annotations

import datetime
import uuid
import zoneinfo
from typing import Annotated, Any

import pydantic
from pydantic import Field

from mapsave import units, yaml_errors
from mapsave.config_models import Duration, Hook, Model, Name, SaveModel, Text, Truth
from mapsave.jobs import cron, template
from mapsave.jobs.schedule import named_zone

MOST_JITTER = 86400.0  # seconds


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
        raise ValueError("must be longer than 0; omit it for no limit")
    return seconds


def _time_zone(value: str) -> str:
    try:
        named_zone(value)
    except ValueError as error:
        guess = yaml_errors.nearest(value, sorted(zoneinfo.available_timezones()))
        raise ValueError(f"{error}{guess}") from None
    return value


def _jitter(value: float) -> float:
    if value > MOST_JITTER:
        raise ValueError("must be at most a day")
    return value


def _mapping(value: Any) -> Any:
    """Return the mapping that a schedule given by its times alone means."""
    return value if value is None or isinstance(value, dict) else {"cron": value}


Times = Annotated[str, pydantic.AfterValidator(cron.check)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class JobSaveModel(SaveModel):
    """How the job saves; what is not given is as the configuration's ``save`` says."""

    image: Annotated[Text, pydantic.AfterValidator(_image)] | None = Field(
        None, description="Name of the image; {guest}, {job}, {uuid}, {time:%Y...} are filled in."
    )
    replace: Truth | None = Field(
        None, description="Whether an existing image of that name may be replaced (default: no)."
    )


class KeepModel(Model):
    """How many images of each guest to keep; older ones are removed."""

    last: Count | None = Field(None, description="How many of the latest images to keep.")
    hourly: Count | None = Field(
        None, description="For how many hours to keep the latest image of each."
    )
    daily: Count | None = Field(
        None, description="For how many days to keep the latest image of each."
    )
    weekly: Count | None = Field(
        None, description="For how many weeks to keep the latest image of each."
    )
    monthly: Count | None = Field(
        None, description="For how many months to keep the latest image of each."
    )

    @pydantic.model_validator(mode="after")
    def _keeps(self) -> KeepModel:
        if not self.model_dump(exclude_none=True):
            raise ValueError("must keep something: last, hourly, daily, weekly or monthly")
        return self


class ScheduleModel(Model):
    """When the job runs; its times alone may be given instead of the mapping."""

    cron: Times = Field(description="Five fields as in crontab(5), or a name such as @daily.")
    time_zone: Annotated[Text, pydantic.AfterValidator(_time_zone)] | None = Field(
        None, description="Time zone of the schedule, such as Europe/Berlin (default: the host's)."
    )
    persistent: Truth = Field(
        True, description="Whether to make up for missed runs, once (default: yes)."
    )
    jitter: Annotated[Duration, pydantic.AfterValidator(_jitter)] = Field(
        0.0, description="Delay each run by a random time below this (default: no delay)."
    )


class RetriesModel(Model):
    """More tries for a save that could not begin."""

    times: Annotated[int, Field(ge=1, le=100)] = Field(
        description="How many more attempts, at most."
    )
    wait: Duration = Field(60.0, description="How long to wait before each (default: 1m).")


class JobHooksModel(Model):
    """Hooks of the job, run after those of the configuration."""

    before_save: list[Hook] | None = Field(None, description="Before a guest is touched.")
    after_save: list[Hook] | None = Field(None, description="Once the image is committed.")
    on_failure: list[Hook] | None = Field(None, description="Once a save has failed.")

    def given(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the hooks, by moment."""
        return {moment: tuple(names) for moment, names in self if names}


class JobModel(Model):
    """A save job of mapsave."""

    job: Name = Field(description="The job's name.")
    guests: list[Text] = Field(min_length=1, description="Names of guests, or patterns like db*.")
    save: JobSaveModel | None = Field(None, description="How to save.")
    schedule: (
        Annotated[
            ScheduleModel,
            pydantic.BeforeValidator(_mapping, json_schema_input_type=str | ScheduleModel),
        ]
        | None
    ) = Field(None, description="When to run: times as in crontab(5), or a name such as @daily.")
    keep: KeepModel | None = Field(None, description="How many images to keep.")
    concurrency: Count = Field(1, description="How many guests to save in parallel.")
    timeout: (
        Annotated[
            float,
            pydantic.PlainValidator(_timeout, json_schema_input_type=str | int | float),
        ]
        | None
    ) = Field(None, description="How long each save may take, such as 15m.")
    retries: RetriesModel | None = Field(
        None, description="Further attempts where nothing was changed."
    )
    hooks: JobHooksModel | None = Field(
        None, description="Executables run before and after each operation."
    )
