"""fleet.yaml: the hosts, what is saved on them when, within which budgets, and who may ask for it.

What no definition of a single key can refuse, such as the name of a target that is not there, is
refused here as well, with its line.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, field, structs

from mapsave import config, database_settings, keys, yaml_file
from mapsave.database_settings import Database
from mapsave.fleet import patterns, windows
from mapsave.jobs import schedule, template
from mapsave.key_types import AtOnce, Duration, Name, Note, Place, Size, Text, Truth
from mapsave.keys import Check, Keys, Mistake, help
from mapsave.service_settings import DAY

SYSTEM_FILE = Path("/etc/mapsave/fleet.yaml")
VARIABLE = "MAPSAVE_FLEET"
HOUR = 3600.0

_HOST = re.compile(r"[A-Za-z0-9*?\[][A-Za-z0-9._*?\[\]!-]*")
# Procrastinate notifies a host's queue on the channel "procrastinate_queue_v1#HOST", for which
# PostgreSQL has NAMEDATALEN - 1 bytes (src/backend/commands/async.c).
HOST_BYTES = 63 - len("procrastinate_queue_v1#")
_ROLE_BYTES = 63

Count = Annotated[int, Meta(ge=1, le=1_000_000)]


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a host, nor a pattern such as 'rack1-*'")
    if not patterns.is_wild(value) and len(value) > HOST_BYTES:
        raise ValueError(f"the name {value[:20]!r}... is longer than {HOST_BYTES} characters")
    return value


def _role(value: str) -> str:
    if not value.isprintable() or not 0 < len(value.encode()) <= _ROLE_BYTES:
        raise ValueError(f"{value[:20]!r} is not the name of a database role")
    return value


def _guests(value: str) -> str:
    patterns.parse(value)
    return value


def _window(value: str) -> str:
    windows.parse(value)
    return value


def _limit(seconds: float) -> float:
    if not 1 <= seconds <= DAY:  # which a host accepts of the fleet
        raise ValueError("must be from 1 second to 1 day")
    return seconds


def _image(value: str) -> str:
    found = template.parse(value)
    found.render("guest", "job", datetime.datetime.now(datetime.UTC), uuid.UUID(int=0))
    if not found.distinguishes_guests:
        raise ValueError("two guests of a host would get the same image name: add {guest} to it")
    return value


def _policy(value: str) -> str:
    from mapsave.labels import policy

    if policy.is_path(value):
        raise ValueError("must be the name of a label policy of the host, not the path of a file")
    return value


class Target(Keys, frozen=True):
    """Where several hosts keep their images, such as a server of NFS."""

    saves: Annotated[AtOnce, help("How many operations may use it at once, of all hosts.")]
    bandwidth: Annotated[
        Size | None, help("Bytes per second for all saves to it; by default no limit.")
    ] = None


class Host(Keys, frozen=True):
    """A host, or all hosts that a pattern means."""

    target: Annotated[Name, help("The storage target that its images are on.")]
    saves: Annotated[AtOnce, help("How many operations it does at once.")] = 2


class FleetSave(config.SaveOptions, frozen=True):
    """How the saves are done; keys left out are as each host's own configuration says."""

    image: Annotated[
        Text,
        Check(_image),
        help("Name of the image; {guest}, {job}, {uuid}, {time:%Y...} are filled in."),
    ] = template.DEFAULT
    policy: Annotated[
        Annotated[Name, Check(_policy)] | None, help("Label policy of the images.")
    ] = None
    note: Annotated[Note | None, help("A note for the images, which listings show.")] = None


class FleetJob(Keys, frozen=True):
    """What is saved on many hosts, and when."""

    guests: Annotated[
        tuple[Annotated[Text, Check(_guests)], ...],
        Meta(min_length=1),
        help("Patterns `GUEST@HOST`, such as `web*@rack1-*`; without `@` of any host."),
    ]
    save: Annotated[FleetSave, help("How to save.")] = FleetSave()
    schedule: schedule.When = None
    window: Annotated[
        Text | None,
        Check(_window),
        help(
            "When saves of scheduled runs may begin, such as `22:00-05:00`, in the time zone of "
            "the schedule; by default at any time."
        ),
    ] = None
    priority: Annotated[
        int, Meta(ge=-1000, le=1000), help("Tasks of a higher priority are done first.")
    ] = 0
    max_failures: Annotated[
        Count | None,
        help("After so many failures the rest of the run is cancelled; by default it goes on."),
    ] = None
    timeout: Annotated[
        Duration, Check(_limit), help("How long each save may take, at most `1d`.")
    ] = HOUR

    @property
    def zone(self) -> datetime.tzinfo:
        """The time zone of schedule and window.

        Raises ConfigError where that is the host's and is not known.
        """
        return self.schedule.zone if self.schedule else schedule.local_zone()

    def span(self, at: datetime.datetime) -> windows.Span | None:
        """Return the opening of the job's window that ``at`` is in, or the next; None without one.

        Raises ConfigError as ``zone`` does.
        """
        return windows.span(windows.parse(self.window), at, self.zone) if self.window else None


class Rights(Keys, frozen=True):
    """What a person may ask for; the database's owner may ask for everything."""

    run: Annotated[tuple[Text, ...], help("Jobs that may be run, by names or patterns.")] = ()
    evacuate: Annotated[tuple[Text, ...], help("Hosts that may be evacuated.")] = ()
    return_to: Annotated[
        tuple[Text, ...], help("Hosts whose evacuated guests may be restored.")
    ] = field(name="return", default=())
    cancel: Annotated[Truth, help("Whether others' runs may be cancelled; one's own always.")] = (
        False
    )


class Metrics(Keys, frozen=True):
    """Where the scheduler writes its metrics."""

    textfile: Annotated[
        Place | None, help("File for node_exporter's textfile collector, ending in `.prom`.")
    ] = None


class Settings(Keys, frozen=True):
    """Many hosts that share a database: fleet.yaml. ``document`` is the file that it is from."""

    database: Annotated[
        Annotated[Database, Check(database_settings.check)], help("How the database is reached.")
    ]
    targets: Annotated[Mapping[Name, Target], help("The storage targets, by name.")] = field(
        default_factory=dict
    )
    hosts: Annotated[
        Mapping[Annotated[str, Check(_host), Meta(title="a name")], Host],
        help("The hosts, by name or pattern; a name goes first, then the first pattern."),
    ] = field(default_factory=dict)
    jobs: Annotated[Mapping[Name, FleetJob], help("The jobs, by name.")] = field(
        default_factory=dict
    )
    may: Annotated[
        Mapping[Annotated[str, Check(_role), Meta(title="a name")], Rights],
        help("What people may ask for, by their database role."),
    ] = field(default_factory=dict)
    metrics: Annotated[Metrics, help("Where metrics are written.")] = Metrics()
    silent_after: Annotated[
        Duration, help("A host that said nothing for so long is reported as silent.")
    ] = 120.0
    history: Annotated[Duration, help("How long finished runs are kept.")] = 90 * DAY
    document: yaml_file.Document = field(default_factory=lambda: yaml_file.Document(Path(), {}))

    def host(self, name: str) -> Host | None:
        """Return the settings of a host: by its name, else by the first pattern that it suits."""
        if (found := self.hosts.get(name)) is not None:
            return found
        word = patterns.first(self.hosts, name)
        return None if word is None else self.hosts[word]

    def rights(self, role: str) -> Rights:
        """Return what a person may ask for, by the database role."""
        return self.may.get(role, Rights())


def place(explicit: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file in force: ``explicit``, that of ``$MAPSAVE_FLEET``, or the system's."""
    return explicit or (Path(environ[VARIABLE]) if environ.get(VARIABLE) else SYSTEM_FILE)


def load(path: Path) -> Settings:
    """Return the fleet in the YAML file at ``path``.

    Raises ConfigMissing or NotPermitted if it cannot be read, ConfigError with file, line and
    column for each mistake.
    """
    return of_document(yaml_file.read(path))


def of_document(document: yaml_file.Document) -> Settings:
    """Do as ``load`` with a file that is read."""
    found = document.validate(Settings, config.place_from(document.path))
    if mistakes := [*_mistakes(found)]:
        raise document.refused(mistakes)
    for job in found.jobs.values():
        if job.schedule is not None or job.window is not None:
            _ = job.zone  # one that is not known is reported now, not when the job is due
    return structs.replace(found, document=document)


def _mistakes(found: Settings) -> Iterator[Mistake]:
    """Yield what is wrong with names that mean something elsewhere in the file."""
    for name, host in found.hosts.items():
        if host.target not in found.targets:
            said = f"no target {host.target!r} in 'targets:'"
            yield _mistake(("hosts", name, "target"), said, host.target, found.targets)
    for name, job in found.jobs.items():
        if "managed" in job.save.given:
            loc = ("jobs", name, "save", "managed")
            said = f"{keys.path(loc)}: where images are is not for the fleet to say"
            yield Mistake(loc, said, at_key=True)
        for index, word in enumerate(job.guests):
            yield from _hosts(("jobs", name, "guests", index), patterns.parse(word).host, found)
    for role, rights in found.may.items():
        for index, word in enumerate(rights.run):
            if patterns.is_wild(word) and any(patterns.matches(word, job) for job in found.jobs):
                continue
            if word not in found.jobs:
                said = f"no job in 'jobs:' {_is(word)} {word!r}"
                yield _mistake(("may", role, "run", index), said, word, found.jobs)
        for key, words in (("evacuate", rights.evacuate), ("return", rights.return_to)):
            for index, word in enumerate(words):
                yield from _hosts(("may", role, key, index), word, found)


def _hosts(loc: keys.Loc, word: str, found: Settings) -> Iterator[Mistake]:
    """Yield what is wrong with a word that no host of the file can suit.

    Of two patterns it is not known, so with one in 'hosts:' a pattern is always accepted.
    """
    if patterns.is_wild(word):
        named = (patterns.is_wild(host) or patterns.matches(word, host) for host in found.hosts)
        is_known = any(named)
    else:
        is_known = found.host(word) is not None
    if not is_known:
        said = f"no host in 'hosts:' {_is(word)} {word!r}"
        yield _mistake(loc, said, word, found.hosts)


def _is(word: str) -> str:
    return "matches the pattern" if patterns.is_wild(word) else "is called"


def _mistake(loc: keys.Loc, said: str, word: str, known: Iterable[str]) -> Mistake:
    return Mistake(loc, f"{keys.path(loc)}: {said}{keys.nearest(word, known)}")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of fleet.yaml, for editors."""
    return keys.schema(Settings)
