"""The Tab key: what it offers of each kind, by whole processes, where there are many of each."""

import asyncio
from collections.abc import Iterator

from tests.bench import measure
from tests.bench.cases import Bench, Row, limited
from tests.bench.service_cases import fill
from tests.kit import cli, emulated, service, tree

_LIMIT = 0.15  # seconds
_GUESTS, _IMAGES, _JOBS, _OPERATIONS = 200, 1000, 50, 10_000
# The words up to the cursor, and how many names are offered at least.
_WORDS = {
    "guests": (("save", "guest"), _GUESTS),
    "images": (("inspect", "image"), _IMAGES),
    "jobs": (("job", "run", "job"), _JOBS),
    "policies": (("save", "guest000", "--policy", ""), 2),
    "operations": (("logs", ""), 1000),
}


def rows(bench: Bench) -> Iterator[Row]:
    """Yield a row for each kind; a service runs, which is asked for operations."""
    site = cli.Site(bench.site.directory / "completion")
    names = [f"guest{number:03d}" for number in range(_GUESTS)]
    site.guests = {name: {"qmp": str(emulated.socket_of(site, name))} for name in names}
    site.write()
    for number in range(_JOBS):
        site.add_job(f"job{number:02d}", guests=["guest*"], keep={"last": 7})
    for number in range(_IMAGES):
        (site.images / f"image{number:04d}.mapsave").touch()
    asyncio.run(fill(site.state / "journal.db", _OPERATIONS))
    with service.running(site):
        for kind, (words, least) in _WORDS.items():
            command = [*measure.MAPSAVE, "__complete", "zsh", "mapsave"]
            command += ["--config", str(site.config), *words]
            series = measure.repeated(
                4 * bench.rounds + 1, lambda line=command: measure.run(line, tree.ROOT)
            )
            offered = series.runs[0].output.count("\n") - 1  # the first line says how to use them
            assert offered >= least, series.runs[0].output
            yield limited(f"completion of {kind}, {offered} offered", series.seconds, _LIMIT)
            yield Row("    of the processor", f"{series.busy:.3f} s")
