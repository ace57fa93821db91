"""Metrics as Prometheus reads them, by scraping the service or from a file."""

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import CollectorRegistry

import mapsave
from mapsave import blocking, errors, key_types, textfile
from mapsave.history.rows import Record
from mapsave.history.states import ENDED, State
from mapsave.operations.verified_notes import Outcome
from mapsave.service.metrics.scrape import Past, Scrape, Sources
from mapsave.service.metrics.store_usage import StoreUsage

M = TypeVar("M")

_log = logging.getLogger(__name__)

TEXT = "text/plain; version=0.0.4; charset=utf-8"
MOST_ADDRESSES = 1000
OTHER = "other"

_OPENMETRICS = "application/openmetrics-text"
_GUEST_AND_JOB = ("guest", "job")
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_DOWNTIME = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1200)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self, sources: Sources) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self._past = Past()
        self._usage = StoreUsage(sources.images, sources.state)
        self._scrape = Scrape(sources, self._past)
        self._addresses: set[str] = set()
        self._writing = asyncio.Lock()
        self._textfile_problem: str | None = None
        self._make_series(sources.kinds)
        self.registry.register(self._scrape)
        prometheus_client.ProcessCollector(registry=self.registry)
        build = Gauge(
            "mapsave_build_info",
            "Version of mapsave; always 1.",
            ["version"],
            registry=self.registry,
        )
        build.labels(mapsave.__version__).set(1)

    def _make_series(self, kinds: Collection[str]) -> None:
        def made(
            kind: Callable[..., M], name: str, words: str, labels: Sequence[str], **how: object
        ) -> M:
            return kind(f"mapsave_{name}", words, labels, registry=self.registry, **how)

        self._begun = made(Counter, "operations_begun_total", "Operations started.", ["kind"])
        self._ended = made(Counter, "operations_total", "Operations finished.", ["kind", "outcome"])
        self._failures = made(
            Counter, "failures_total", "Operations that failed, by error id.", ["kind", "error"]
        )
        words = "How long saves took, hooks not included."
        self._save_seconds = made(
            Histogram, "save_duration_seconds", words, _GUEST_AND_JOB, buckets=_SECONDS
        )
        self._save_bytes = made(
            Counter, "save_bytes_total", "Bytes of guests' data that saves wrote.", _GUEST_AND_JOB
        )
        words = "Write rate of the last save."
        self._save_rate = made(Gauge, "save_rate_bytes_per_second", words, _GUEST_AND_JOB)
        words = "How long saves kept running guests paused."
        self._downtime = made(
            Histogram, "save_downtime_seconds", words, _GUEST_AND_JOB, buckets=_DOWNTIME
        )
        words = "How long restores took."
        self._restore_seconds = made(
            Histogram, "restore_duration_seconds", words, [], buckets=_SECONDS
        )
        self._digested = made(
            Counter,
            "image_digests_total",
            "Images whose digests the service was to take, by outcome.",
            ["outcome"],
        )
        self._digest_bytes = made(
            Counter, "image_digest_bytes_total", "Bytes of images read to take digests.", []
        )
        for outcome in ("done", "failed"):
            self._digested.labels(outcome)
        self._scrubbed = made(
            Counter, "image_scrub_looks_total", "Images that scrubs looked at.", ["outcome"]
        )
        self._scrub_bytes = made(
            Counter, "image_scrub_bytes_total", "Bytes of images that scrubs read.", []
        )
        for each in Outcome:
            self._scrubbed.labels(each.value)
        # A rate() sees the first event only where the series was there, at 0, before it.
        for kind in kinds:
            self._begun.labels(kind)
            for outcome in ENDED:
                self._ended.labels(kind, outcome)

    def seed(
        self,
        successes: Iterable[tuple[str, str | None, float]],
        runs: Iterable[tuple[str, float, bool]] = (),
    ) -> None:
        """Take over what the history knows from before.

        ``successes`` are guest, job and when the last save was done; ``runs`` are job, when it ran
        last, and whether it saved all its guests. Times are seconds since the epoch.
        """
        for guest, job, when in successes:
            self._note_success(guest, job, when)
        for name, when, is_good in runs:
            self._past.runs[name] = (when, is_good)

    def began(self, kind: str) -> None:
        """Count an operation that is begun."""
        self._begun.labels(kind).inc()

    def digested(self, outcome: str, size: int) -> None:
        """Count an image whose digests were taken, or not, and the bytes read for them."""
        self._digested.labels(outcome).inc()
        self._digest_bytes.inc(size)

    def scrubbed(self, outcome: str, size: int) -> None:
        """Count the bytes that a scrub read of an image, and what came of it if that is known."""
        self._scrub_bytes.inc(size)
        if outcome in tuple(Outcome):
            self._scrubbed.labels(outcome).inc()

    def ended(self, record: Record) -> None:
        """Count an operation that has ended."""
        self._ended.labels(record.kind, record.state).inc()
        if record.state == State.FAILED:
            error = _why(record)
            self._failures.labels(record.kind, error).inc()
        if record.kind == "job":
            self._job_ended(record)
        elif record.state == State.DONE and record.kind == "save":
            self._saved(record)
        elif (
            record.state == State.DONE
            and record.kind == "restore"
            and (seconds := _seconds(record)) is not None
        ):
            self._restore_seconds.observe(seconds)

    def _job_ended(self, record: Record) -> None:
        when = record.started or record.ended
        if record.job and when:
            failed = _figure(record, "failed")
            self._past.runs[record.job] = (when, record.state == State.DONE and not failed)

    def _saved(self, record: Record) -> None:
        guest = str((record.result or {}).get("guest") or record.guest or "")
        labels = (self._label(guest), record.job or "")
        if (seconds := _seconds(record)) is not None:
            self._save_seconds.labels(*labels).observe(seconds)
        if (size := _figure(record, "data_bytes")) is not None:
            self._save_bytes.labels(*labels).inc(size)
        if rate := _figure(record, "bytes_per_s"):
            self._save_rate.labels(*labels).set(rate)
        if downtime := _figure(record, "downtime_s"):  # 0 is that of a guest that did not run
            self._downtime.labels(*labels).observe(downtime)
        if record.ended:
            self._note_success(guest, record.job, record.ended)

    def _note_success(self, guest: str, job: str | None, when: float) -> None:
        key = (self._label(guest), job or "")
        self._past.successes[key] = max(when, self._past.successes.get(key, 0.0))

    def _label(self, guest: str) -> str:
        """Return the guest's label. Users make up addresses, so only so many have their own."""
        if guest.startswith(key_types.ADDRESSES) and guest not in self._addresses:
            if len(self._addresses) >= MOST_ADDRESSES:
                return OTHER
            self._addresses.add(guest)
        return guest

    async def _look(self) -> None:
        usage = await self._usage.read()
        self._scrape.look(usage, self._usage.verified, self._usage.exclusive)

    async def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """Return all series and their content type, in that format of the header ``accept``.

        Prometheus' text format, or OpenMetrics where it is accepted.
        """
        await self._look()
        view = _View(self.registry)
        # In a thread: many guests make many lines, and the loop has saves to serve.
        if _takes_openmetrics(accept):
            made = await blocking.call(openmetrics.generate_latest, view)
            return made, openmetrics.CONTENT_TYPE_LATEST
        return await blocking.call(prometheus_client.generate_latest, view), TEXT

    async def write_textfile(self, path: Path) -> None:
        """Write the series to ``path`` for node_exporter; what fails is logged, once a reason.

        The series of the process are left out: node_exporter refuses what it has itself.
        """
        async with self._writing:
            await self._look()
            view = _View(self.registry, prefix="mapsave_")
            try:
                made = await blocking.call(prometheus_client.generate_latest, view)
                await blocking.call(textfile.replace, path, made)
            except OSError as error:
                problem = f"{os.fspath(path)!r}: {error.strerror}"
                if problem != self._textfile_problem:
                    _log.warning("cannot write the metrics to %s", problem)
                self._textfile_problem = problem
            else:
                if self._textfile_problem is not None:
                    _log.info("writing metrics to %r again", os.fspath(path))
                self._textfile_problem = None


class _View:
    """A registry without the times at which series were made, which nothing uses."""

    def __init__(self, registry: CollectorRegistry, prefix: str = "") -> None:
        self._registry = registry
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            if family.name.startswith(self._prefix):
                family.samples = [
                    each for each in family.samples if not each.name.endswith("_created")
                ]
                yield family


def _why(record: Record) -> str:
    """Return the id of the error; of an operation on several guests, that of the first one's."""
    if record.error is not None:
        return record.error["id"]
    result = record.result or {}
    lines = result.get("guests", result.get("images"))
    for line in lines if isinstance(lines, list) else ():
        if line["error"]:
            return str(line["error"]["id"])
    return errors.MapsaveError.id


def _figure(record: Record, name: str) -> float | None:
    """Return a number of the operation's result; None where it has none of that name."""
    found = (record.result or {}).get(name)
    return float(found) if isinstance(found, int | float) else None


def _seconds(record: Record) -> float | None:
    """Return how long a save or restore took: by its own clock, else from start to end."""
    if (seconds := _figure(record, "duration_s")) is not None:
        return seconds
    if record.started is not None and record.ended is not None:
        return max(0.0, record.ended - record.started)
    return None


def _takes_openmetrics(accept: str | None) -> bool:
    """Return whether an Accept header (RFC 9110, 12.5.1) names OpenMetrics, and not with q=0."""
    for each in (accept or "").split(","):
        media, *parameters = (part.strip().lower() for part in each.split(";"))
        if media == _OPENMETRICS:
            weights = [part[2:].strip("0.") for part in parameters if part.startswith("q=")]
            return weights != [""]
    return False
