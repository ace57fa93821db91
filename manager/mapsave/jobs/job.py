"""A save job: which guests to save, how, when, and how many images to keep."""

from __future__ import annotations

import datetime
import fnmatch
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, field, structs

from mapsave import config, errors, keys, yaml_file
from mapsave.jobs import schedule, template
from mapsave.key_types import Duration, Name, Text, Truth
from mapsave.keys import Check, Keys, help
from mapsave.service_settings import Executables

Count = Annotated[int, Meta(ge=1, le=1_000_000)]


def _image(value: str) -> str:
    """Return ``value`` if it renders; what depends on the guest is checked with the guest."""
    sample = uuid.UUID(int=0)
    template.parse(value).render("guest", "job", datetime.datetime.now(datetime.UTC), sample)
    return value


class JobSave(config.SaveOptions, frozen=True):
    """How the job saves; keys left out are as the configuration's `save` says."""

    image: Annotated[
        Text,
        Check(_image),
        help("Name of the image; {guest}, {job}, {uuid}, {time:%Y...} are filled in."),
    ] = template.DEFAULT
    replace: Annotated[Truth, help("Whether an existing image of that name may be replaced.")] = (
        False
    )
    in_use: Annotated[Truth, help("Whether that may be an image that a guest lives on.")] = False


class Keep(Keys, frozen=True):
    """How many images of each guest to keep; older ones are removed."""

    last: Annotated[Count, help("How many of the latest images to keep.")] = 0
    hourly: Annotated[Count, help("For how many hours to keep the latest image of each.")] = 0
    daily: Annotated[Count, help("For how many days to keep the latest image of each.")] = 0
    weekly: Annotated[
        Count, help("For how many weeks (from Monday) to keep the latest image of each.")
    ] = 0
    monthly: Annotated[Count, help("For how many months to keep the latest image of each.")] = 0


def _keeps(keep: Keep) -> Keep:
    if keep == Keep():
        raise ValueError("must keep something: last, hourly, daily, weekly or monthly")
    return keep


class Retries(Keys, frozen=True):
    """More tries for a save that could not begin."""

    times: Annotated[int, Meta(ge=1, le=100), help("How many more attempts, at most.")]
    wait: Annotated[Duration, help("How long to wait before each.")] = 60.0


class JobHooks(Keys, frozen=True):
    """Hooks of the job, run after those of the configuration."""

    before_save: Annotated[Executables, help("Run before a guest is touched.")] = ()
    after_save: Annotated[Executables, help("Run after the image is committed.")] = ()
    on_failure: Annotated[Executables, help("Run after a save has failed.")] = ()


class Job(Keys, frozen=True):
    """A save job of mapsave. ``document`` is the file that it is from."""

    name: Annotated[Name, help("The job's name.")] = field(name="job")
    guests: Annotated[
        tuple[Text, ...], Meta(min_length=1), help("Names of guests, or patterns such as `db*`.")
    ]
    save: Annotated[JobSave, help("How to save.")] = JobSave()
    kind: Annotated[Literal["save"], help("What the job does; `scrub` jobs have other keys.")] = (
        "save"
    )
    schedule: schedule.When = None
    keep: Annotated[
        Annotated[Keep, Check(_keeps)] | None, help("How many images to keep; by default all.")
    ] = None
    concurrency: Annotated[Count, help("How many guests to save in parallel.")] = 1
    timeout: Annotated[
        Duration | None, help("How long each save may take; by default there is no limit.")
    ] = None
    retries: Annotated[
        Retries, help("Further attempts where nothing was changed; by default none.")
    ] = Retries(0)
    own_hooks: Annotated[JobHooks, help("Executables run before and after each operation.")] = (
        field(name="hooks", default=JobHooks())
    )
    document: yaml_file.Document = field(default_factory=lambda: yaml_file.Document(Path(), {}))

    @property
    def image(self) -> template.Template:
        """The template of its images' names."""
        return template.parse(self.save.image)

    @property
    def given(self) -> dict[str, Any]:
        """The settings of SaveSettings that the file has."""
        return self.save.settings()

    @property
    def hooks(self) -> dict[str, tuple[str, ...]]:
        """The names of its hooks, by moment."""
        return {moment: names for moment, names in structs.asdict(self.own_hooks).items() if names}

    @property
    def zone(self) -> datetime.tzinfo:
        """The time zone of its schedule, which its hours, days and weeks are counted in as well.

        Raises ConfigError where that is the host's and is not known.
        """
        return self.schedule.zone if self.schedule else schedule.local_zone()

    @property
    def source(self) -> Path:
        """The file that the job is from."""
        return self.document.path

    def settings(self, configured: config.Config) -> config.SaveSettings:
        """Return how to save: what the job says, else what the configuration says."""
        return structs.replace(configured.save, **self.given)

    def resolve(self, configured: config.Config) -> list[str]:
        """Return the names of the guests to save, in the order of the job, each once.

        A word that is the name of a guest means that guest, any other is a pattern of fnmatch(3).
        Raises ConfigError if a word means no guest, or if two guests would get one image name.
        """
        names: dict[str, None] = {}
        for index, word in enumerate(self.guests):
            known = configured.guests
            matching = (
                [word] if word in known else [n for n in known if fnmatch.fnmatchcase(n, word)]
            )
            if not matching:
                raise self._no_guest(index, word, configured)
            names.update(dict.fromkeys(matching))
        if len(names) > 1 and not self.image.distinguishes_guests:
            message = f"save.image: {len(names)} guests would get the same image name"
            raise self.document.error(("save", "image"), message, hint="add {guest} to it")
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
            raise self.document.error(("save", "image"), f"save.image: {exc}") from None

    def _no_guest(self, index: int, word: str, configured: config.Config) -> errors.ConfigError:
        where = configured.source or "the built-in defaults"
        guess = keys.nearest(word, configured.guests)
        kind = "matches the pattern" if set(word) & set("*?[") else "is called"
        words = f"guests[{index}]: no guest in {where} {kind} {word!r}{guess}"
        return self.document.error(("guests", index), words)


def load(path: Path) -> Job:
    """Return the save job in the YAML file at ``path``.

    Raises ConfigMissing if it cannot be read, ConfigError with file and line for each mistake.
    """
    return of_document(yaml_file.read(path))


def of_document(document: yaml_file.Document) -> Job:
    """Do as ``load`` with a file that is read."""
    found = structs.replace(document.validate(Job), document=document)
    if found.schedule is not None:
        _ = found.schedule.zone  # one that is not known is reported now, not when the job is due
    return found
