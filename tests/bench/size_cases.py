"""What does not grow with the number of images, guests and listeners, or grows with it only."""

import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import many, measure, service_cases
from tests.bench.cases import MB, Bench, Row
from tests.bench.measure import Series
from tests.kit import cli, service, tree
from tests.kit.service import Service

_IMAGES, _GUESTS, _LISTENERS = 20_000, 20_000, 2_000
_PART = 10  # a tenth of all with --quick, and for what is compared with the whole
_LIST, _CONFIG, _ANSWER = 1.0, 3.0, 0.05  # seconds
_MORE = 20 * MB
_LINEAR = 1.5  # the time of an image among all of them, in that of one among a tenth
_OPERATIONS = 20
_LOST = 0.01  # seconds that an operation may take longer for those who listen
_REST = 15.0  # seconds; pages are kept for ten


def rows(bench: Bench) -> Iterator[Row]:
    """Yield the rows; a smaller ``bench`` has a tenth of all."""
    part = 1 if bench.dense > 1 << 30 else _PART
    directory = bench.site.directory
    yield from _listed(cli.Site(directory / "listed"), _IMAGES // part, bench.rounds)
    yield from _pruned(directory, _IMAGES // part)
    yield from _configured(cli.Site(directory / "configured"), _GUESTS // part, bench.rounds)
    yield from _listened(cli.Site(directory / "listened"), _LISTENERS // part)


def _fill(directory: Path, count: int, *more: str) -> None:
    command = [sys.executable, "-m", "tests.bench.many", str(directory), str(count), *more]
    subprocess.run(command, cwd=tree.ROOT, check=True)


def _command(site: cli.Site, *words: str) -> list[str]:
    return [*measure.MAPSAVE, "--config", str(site.config), *words]


def _within(what: str, series: Series, limit: float | None = None) -> Iterator[Row]:
    """Yield rows for the time, and for that of the processor alone."""
    target = "" if limit is None else f"<= {limit} s"
    met = None if limit is None else series.seconds <= limit
    yield Row(what, f"{series.seconds:.2f} s", target=target, met=met)
    yield Row("    of the processor", f"{series.busy:.2f} s")


def _listed(site: cli.Site, count: int, rounds: int) -> Iterator[Row]:
    """List the images, by the command alone and through the service, which answers beside it."""
    _fill(site.images, count)
    time.sleep(2.5)  # what was changed a moment ago is read again
    local = _command(site, "--local", "list")
    first = Series([measure.run(local, tree.ROOT)])
    yield from _within(f"list, {count} images, for the first time", first)
    again = measure.repeated(rounds, lambda: measure.run(local, tree.ROOT))
    assert again.runs[0].output.count("\n") == count + 1
    yield from _within(f"list, {count} images", again, _LIST)
    site.settings = {"jobs": str(_job(site))}
    site.write()
    with service.running(site) as mapsaved:
        mapsaved.get("/v1/images?limit=1")
        time.sleep(_REST)
        before = service_cases.memory(mapsaved.pid, "VmRSS")
        with service_cases.asking(mapsaved, "/v1/health") as answers:
            words = _command(site, "list")
            through = measure.repeated(rounds, lambda: measure.run(words, tree.ROOT))
            assert through.runs[0].output.count("\n") == count + 1
            shutil.rmtree(site.state / "listings")  # so that all are read again
            measure.run(words, tree.ROOT)
            pruned = mapsaved.ended(mapsaved.begin(kind="prune", job=many.JOB)["id"], timeout=1800)
        assert pruned["result"]["removed"] > count // 2, pruned
        time.sleep(_REST)
        more = service_cases.memory(mapsaved.pid, "VmRSS") - before
    yield from _within(f"list, {count} images, through the service", through, _LIST)
    yield from _answers("    health beside lists and prune", answers)
    what = "    memory of the service after all that"
    target = f"<= +{_MORE // MB} MB"
    yield Row(what, f"{more / MB:+.1f} MB", target=target, met=more <= _MORE)


def _answers(what: str, answers: list[float]) -> Iterator[Row]:
    median, worst = statistics.median(answers), max(answers)
    yield Row(f"{what}, median of {len(answers)}", f"{median * 1000:.1f} ms")
    target = f"<= {_ANSWER * 1000:.0f} ms"
    yield Row(f"{what}, slowest", f"{worst * 1000:.1f} ms", target=target, met=worst <= _ANSWER)


def _job(site: cli.Site) -> Path:
    """Write the job that the images are of, which keeps three of each guest; return its place."""
    jobs = site.directory / "jobs.d"
    jobs.mkdir()
    job = {"job": many.JOB, "guests": ["guest*"], "keep": {"last": 3}, "save": {"then": "resume"}}
    (jobs / "job.yaml").write_text(json.dumps(job))
    site.guests = {
        f"guest{number:03d}": {"qmp": f"/nowhere/{number}.qmp"} for number in range(many.GUESTS)
    }
    return jobs


def _pruned(directory: Path, count: int) -> Iterator[Row]:
    """Prune images that are all damaged, and a tenth as many."""
    each: list[float] = []
    for images in (count // _PART, count):
        site = cli.Site(directory / f"damaged{images}")
        site.settings = {"jobs": str(_job(site))}
        site.write()
        _fill(site.images, images, "damaged")
        run = measure.run(_command(site, "--local", "job", "prune", many.JOB), tree.ROOT)
        each.append(run.busy / images)
        yield from _within(f"prune, {images} damaged images", Series([run]))
        shutil.rmtree(site.directory)
    ratio = each[1] / each[0]
    what = "    of the processor, for an image"
    shown = (f"{each[1] * 1000:.2f} ms", f"{each[0] * 1000:.2f} ms", f"{ratio:.2f}")
    yield Row(what, *shown, f"<= {_LINEAR} x a tenth", ratio <= _LINEAR)


def _configured(site: cli.Site, count: int, rounds: int) -> Iterator[Row]:
    """Read a configuration of many guests."""
    lines = [site.config.read_text(), "guests:"]
    for number in range(count):
        name = f"guest{number:05d}"
        lines += [f"  {name}:", f"    qmp: /run/qemu/{name}.qmp", f"    priority: {number % 9}"]
    site.config.write_text("\n".join(lines))
    command = _command(site, "--local", "list")
    series = measure.repeated(rounds, lambda: measure.run(command, tree.ROOT))
    yield from _within(f"any command, {count} guests in YAML", series, _CONFIG)


def _listened(site: cli.Site, count: int) -> Iterator[Row]:
    """Time operations beside listeners that do not read."""
    many.fill(site.images, 1)
    image = next(site.images.iterdir()).name
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def timed(mapsaved: Service) -> float:
        busy = []
        for _ in range(_OPERATIONS):
            begun = service_cases.processor(mapsaved.pid)
            mapsaved.done(kind="verify", image=image)
            busy.append(service_cases.processor(mapsaved.pid) - begun)
        return sum(busy) / len(busy)

    with service.running(site) as mapsaved, contextlib.ExitStack() as stack:
        timed(mapsaved)
        alone = timed(mapsaved)
        for _ in range(count):
            sock = stack.enter_context(service.connect(site.socket))
            sock.sendall(b"GET /v1/events HTTP/1.0\r\n\r\n")
        time.sleep(2.0)
        beside = timed(mapsaved)
    what = f"operation, {count} silent listeners; processor"
    shown = (f"{beside * 1000:.1f} ms", f"{alone * 1000:.1f} ms", f"{beside / alone:.2f}")
    yield Row(what, *shown, f"<= +{_LOST * 1000:.0f} ms", beside - alone <= _LOST)
