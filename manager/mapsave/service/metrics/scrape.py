"""The series that are looked up when they are asked for, so that none is ever stale."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from prometheus_client import metrics_core

from mapsave.service.metrics.store_usage import STATES, Usage
from mapsave.service.metrics.verified import Verified

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class JobState:
    """A configured job: when it runs next (None: never by itself), and the guests it saves."""

    next_run: float | None
    guests: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the service is asked at each scrape, on the thread of its loop; none may block.

    ``kinds`` are those of operations, each with series of its own from the start. ``running`` is
    how many operations of each kind run, ``pending`` how many wait for their turn,
    ``journal_bytes`` the size of the history, ``images`` the image directory, ``jobs`` the jobs
    that are configured, by name, ``listeners`` how many clients listen to events, ``degraded``
    whether an operator has to look, ``state`` the state directory.
    """

    kinds: Collection[str]
    running: Callable[[], Mapping[str, int]]
    pending: Callable[[], int]
    journal_bytes: Callable[[], int]
    images: Callable[[], Path]
    jobs: Callable[[], Mapping[str, JobState]]
    listeners: Callable[[], int]
    degraded: Callable[[], bool] = lambda: False
    state: Callable[[], Path | None] = lambda: None


@dataclasses.dataclass
class Past:
    """What has to survive a restart: last successes by guest and job, last runs by job."""

    successes: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    runs: dict[str, tuple[float, bool]] = dataclasses.field(default_factory=dict)


class Scrape:
    """A collector of what ``look`` saw last."""

    def __init__(self, sources: Sources, past: Past) -> None:
        self._sources = sources
        self._past = past
        self._families: list[metrics_core.Metric] = []
        self._jobs: Mapping[str, JobState] = {}
        self._successes: Mapping[tuple[str, str], float] = {}
        self._failing: set[str] = set()

    def collect(self) -> Iterator[metrics_core.Metric]:
        """Yield the families; called by whichever thread renders them.

        That with a line for each guest is made here, and does not hold up the loop.
        """
        yield from self._families
        yield _last_success(self._jobs, self._successes)

    def look(
        self,
        usage: Usage | None,
        verified: Verified | None = None,
        exclusive: Mapping[str, int] | None = None,
    ) -> None:
        """Ask all sources; ``usage`` is that of the image directory, ``verified`` what is known of
        its images' data, ``exclusive`` what they share with no one: None where it is unknown."""
        self._jobs = self._ask("jobs", self._sources.jobs) or {}
        self._successes = dict(self._past.successes)
        self._families = [
            self._running(),
            *self._single(),
            *_images(usage, exclusive or {}),
            *(_verified(verified) if usage is not None and verified is not None else ()),
            *self._job_runs(self._jobs),
        ]

    def _ask(self, name: str, source: Callable[[], T]) -> T | None:
        """Return what a source says; None where it fails, which must not cost the other series."""
        try:
            found = source()
        except Exception:
            if name not in self._failing:
                _log.exception("no metrics about %s", name)
            self._failing.add(name)
            return None
        self._failing.discard(name)
        return found

    def _running(self) -> metrics_core.Metric:
        found = self._ask("running", self._sources.running)
        counts = {} if found is None else {**dict.fromkeys(self._sources.kinds, 0), **found}
        return _gauge(
            "operations_running",
            "Operations running.",
            [((kind,), count) for kind, count in counts.items()],
            ["kind"],
        )

    def _single(self) -> Iterator[metrics_core.Metric]:
        for name, words, source in (
            ("operations_pending", "Operations waiting for a slot.", self._sources.pending),
            (
                "journal_bytes",
                "Size of the history database, including its write-ahead log.",
                self._sources.journal_bytes,
            ),
            ("event_listeners", "Clients that listen to events.", self._sources.listeners),
            ("degraded", "Whether /v1/health says degraded: 1 or 0.", self._sources.degraded),
        ):
            value = self._ask(name, source)
            yield _gauge(name, words, [] if value is None else [((), value)])

    def _job_runs(self, jobs: Mapping[str, JobState]) -> Iterator[metrics_core.Metric]:
        due = [((name,), job.next_run) for name, job in jobs.items() if job.next_run is not None]
        yield _gauge("job_next_run_timestamp_seconds", "Time of the job's next run.", due, ["job"])
        runs = {name: run for name, run in self._past.runs.items() if name in jobs}
        yield _gauge(
            "job_last_run_timestamp_seconds",
            "Time of the job's last run.",
            [((name,), when) for name, (when, _) in runs.items()],
            ["job"],
        )
        yield _gauge(
            "job_last_run_success",
            "Whether the last run of the job saved all its guests: 1 or 0.",
            [((name,), int(is_good)) for name, (_, is_good) in runs.items()],
            ["job"],
        )


def _last_success(
    jobs: Mapping[str, JobState], successes: Mapping[tuple[str, str], float]
) -> metrics_core.Metric:
    of_jobs = dict.fromkeys((guest, name) for name, job in jobs.items() for guest in job.guests)
    # A job that is due but has never saved a guest has to be seen, or no alert could fire.
    due = {each: 0.0 for each in of_jobs if jobs[each[1]].next_run is not None}
    # And a guest that is no longer a job's would be late forever.
    known = {each: when for each, when in successes.items() if not each[1] or each in of_jobs}
    return _gauge(
        "last_success_timestamp_seconds",
        "Time of the guest's last successful save by the job; 0 if the job is due but has "
        "never saved it.",
        list({**due, **known}.items()),
        ["guest", "job"],
    )


def _images(usage: Usage | None, exclusive: Mapping[str, int]) -> Iterator[metrics_core.Metric]:
    found = usage or {}
    counts = [((state,), found[state][0]) for state in STATES if state in found]
    sizes = [((state,), found[state][1]) for state in STATES if state in found]
    yield _gauge("images", "Images in the image directory.", counts, ["state"])
    words = "Disk space used by the images in the image directory, in bytes."
    yield _gauge("image_store_bytes", words, sizes, ["state"])
    alone = [
        ((state,), exclusive[state]) for state in STATES if state in found and state in exclusive
    ]
    words = "Those of them that no other file shares, as the images of checkpoints do."
    yield _gauge("image_store_exclusive_bytes", words, alone, ["state"])


def _verified(found: Verified) -> Iterator[metrics_core.Metric]:
    counts = [((outcome,), count) for outcome, count in found.counts.items()]
    words = "Images in the image directory, by the outcome of their last verification."
    yield _gauge("image_scrub_images", words, counts, ["outcome"])
    yield _gauge(
        "image_scrub_oldest_timestamp_seconds",
        "Time of the oldest verification that counts: that of the image verified least recently.",
        [] if found.oldest is None else [((), found.oldest)],
    )


def _gauge(
    name: str,
    words: str,
    values: Sequence[tuple[Sequence[str], float]],
    labels: Sequence[str] = (),
) -> metrics_core.Metric:
    family = metrics_core.GaugeMetricFamily(f"mapsave_{name}", words, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
