"""One service under load: many guests at once, many operations in a row, a long journal."""

import asyncio
import contextlib
import json
import os
import secrets
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapsave.history import history

from tests.bench import measure
from tests.bench.cases import MB, Bench, Row
from tests.kit import cli, service, tree
from tests.kit.service import Service

_GUESTS, _AT_ONCE, _MEMORY = 200, 8, "8M"
_QUICK_GUESTS = 40
_OPERATIONS, _WARM = 1000, 200
_ROWS = 10_000
_PAUSE = 0.05  # seconds between two requests that are timed
_PS, _CLIENT = 0.1, 0.07
_ANSWER = 0.1
_PEAK = 200 * MB
_GROWTH = 8 * MB  # of a process that allocates and frees all the time


def rows(bench: Bench) -> Iterator[Row]:
    """Yield the rows; a smaller ``bench`` has fewer guests and operations."""
    part = 1 if bench.dense > 1 << 30 else _GUESTS // _QUICK_GUESTS
    directory = bench.site.directory
    yield from _many_guests(cli.Site(directory / "many"), _GUESTS // part)
    yield from _many_operations(cli.Site(directory / "row"), _OPERATIONS // part, _WARM // part)
    yield from _long_journal(cli.Site(directory / "long"), bench.rounds)


def _many_guests(site: cli.Site, count: int) -> Iterator[Row]:
    """Save all guests by one job, and see that each is an image that is whole, and is gone."""
    names = [f"guest{number:03d}" for number in range(count)]
    site.guests = {name: {"emulator": {"memory": _MEMORY, "pattern": "random"}} for name in names}
    limits = {"concurrency": _AT_ONCE, "per_file_system": _AT_ONCE}
    _job(site, {"job": "all", "guests": ["guest*"], "concurrency": count}, limits)
    with service.running(site) as mapsaved:
        begun = time.monotonic()
        number = mapsaved.begin(kind="job", job="all")["id"]
        with asking(mapsaved, "/v1/operations?limit=50") as answers:
            done = mapsaved.ended(number, timeout=1200)["result"]
        seconds = time.monotonic() - begun
        peak = memory(mapsaved.pid, "VmHWM")
        whole = sum(_is_whole(mapsaved, line) for line in done["guests"])
        left = len(list(site.state.glob("emulated/*.qmp")))
    what = f"{count} emulated guests of {_MEMORY}, {_AT_ONCE} at once"
    yield Row(what, f"{seconds:.1f} s")
    yield Row(
        "    images committed and verified", f"{whole}", target=f"= {count}", met=whole == count
    )
    lost = count - whole - left
    yield Row(
        "    guests that neither run nor are an image", f"{lost}", target="= 0", met=lost <= 0
    )
    median, worst = statistics.median(answers), max(answers)
    yield Row(
        f"    answer meanwhile, median of {len(answers)}",
        f"{median * 1000:.1f} ms",
        target=f"<= {_ANSWER * 1000:.0f} ms",
        met=median <= _ANSWER,
    )
    yield Row("    answer meanwhile, slowest", f"{worst * 1000:.1f} ms")
    yield Row(
        "    peak memory of the service",
        f"{peak / MB:.0f} MB",
        target=f"<= {_PEAK // MB} MB",
        met=peak <= _PEAK,
    )


def _is_whole(mapsaved: Service, line: dict[str, Any]) -> bool:
    if line["error"] is not None:
        return False
    image = Path(line["result"]["image"]).name
    return bool(mapsaved.done(kind="verify", image=image)["valid"])


def _many_operations(site: cli.Site, count: int, warm: int) -> Iterator[Row]:
    """Do operations in a row; what the service holds after a few, it holds after many."""
    site.add_guest("toy", emulator={"memory": _MEMORY, "pattern": "random"})
    with service.running(site) as mapsaved:
        held: list[tuple[int, int, int]] = []
        for number in range(count):
            kind = ("save", "verify", "check", "save")[number % 4]
            if kind == "save":
                options = {"image": "toy", "replace": True, "then": "resume"}
                mapsaved.done(kind="save", guest="toy", save=options)
            elif kind == "verify":
                mapsaved.done(kind="verify", image="toy")
            else:
                mapsaved.done(kind="check", guest="toy")
            if number + 1 in (warm, count):
                held.append(_held(mapsaved))
    (files, tasks, memory), (files_after, tasks_after, memory_after) = held
    what = f"{count} operations in a row, beyond the first {warm}:"
    for name, more, limit in (
        ("descriptors", files_after - files, 0),
        ("tasks", tasks_after - tasks, 0),
    ):
        yield Row(f"{what} {name}", f"{more:+d}", target=f"<= +{limit}", met=more <= limit)
    growth = memory_after - memory
    yield Row(
        f"{what} memory",
        f"{growth / MB:+.1f} MB",
        target=f"<= +{_GROWTH // MB} MB",
        met=growth <= _GROWTH,
    )


def _held(mapsaved: Service) -> tuple[int, int, int]:
    """Return descriptors, tasks and bytes of memory of the service at rest."""
    time.sleep(1.0)  # connections of the last requests are closed by then
    tasks = mapsaved.get("/v1/health")["tasks"]
    files = len(list(Path(f"/proc/{mapsaved.pid}/fd").iterdir()))
    return files, tasks, memory(mapsaved.pid, "VmRSS")


def _long_journal(site: cli.Site, rounds: int) -> Iterator[Row]:
    """Time ``mapsave ps`` as a whole process, with many operations in the journal."""
    asyncio.run(fill(site.state / "journal.db", _ROWS))
    with service.running(site) as mapsaved:
        for words in (("ps",), ("ps", "--all")):
            command = [*measure.MAPSAVE, "--config", str(site.config), *words, "--json"]
            series = measure.repeated(
                4 * rounds + 1, lambda line=command: measure.run(line, tree.ROOT)
            )
            shown = len(json.loads(series.runs[0].output)["operations"])
            yield Row(
                f"mapsave {' '.join(words)}, {_ROWS} rows, {shown} shown",
                f"{series.seconds:.3f} s",
                target=f"<= {_PS} s",
                met=series.seconds <= _PS,
            )
            yield Row(
                "    of the processor",
                f"{series.busy:.3f} s",
                target=f"<= {_CLIENT} s",
                met=series.busy <= _CLIENT,
            )
        assert mapsaved.process.poll() is None


async def fill(path: Path, count: int) -> None:
    """Record as many saves in a history, one a second until now."""
    async with history.opened(path) as kept:
        now = time.time()
        for number in range(count):
            record = history.Record(
                id=secrets.token_hex(6),
                kind="save",
                state="pending",
                guest=f"guest{number % 200}",
                job="nightly",
                parent=None,
                image=f"/images/{number}",
                user="root",
                request={},
                created=now - count + number,
            )
            await kept.begin(record)
            kept.step(record.id, "migrate", {})
            await kept.end(record.id, "done", result={"image": record.image})


@contextlib.contextmanager
def asking(mapsaved: Service, path: str) -> Iterator[list[float]]:
    """Get ``path`` again and again in the meantime; yield the seconds that each answer took."""
    seconds: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(_PAUSE):
            begun = time.monotonic()
            mapsaved.get(path)
            seconds.append(time.monotonic() - begun)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield seconds
    finally:
        stop.set()
        asking.join()


def _job(site: cli.Site, job: dict[str, Any], limits: dict[str, Any]) -> None:
    jobs = site.directory / "jobs.d"
    jobs.mkdir()
    (jobs / "job.yaml").write_text(json.dumps(job))
    site.settings = {"jobs": str(jobs), "service": limits}
    site.write()


def memory(pid: int, field: str) -> int:
    """Return bytes of a field of /proc/PID/status (proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} of process {pid}")


def processor(pid: int) -> float:
    """Return the seconds of the processor that a process has taken (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
