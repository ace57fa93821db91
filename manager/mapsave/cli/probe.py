"""``mapsave probe [DIRECTORY]``."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click

from mapsave import units
from mapsave.cli import local, output
from mapsave.cli.options import Globals, LocalCommand, pass_globals


@click.command("probe", cls=LocalCommand)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@pass_globals
def command(given: Globals, /, directory: Path | None) -> None:
    """Measure how fast a directory takes data, for the plans of later saves.

    Takes about a second and 256 MiB of space, of at least 1 GiB that is free. The figures are
    kept for 30 days in the state directory, for the whole file system.
    """
    from mapsave.image import store
    from mapsave.operations import learning
    from mapsave.plan import probe

    config = given.config()
    with store.directory(directory or config.images) as held:
        found = local.run(learning.measured(config.state, held), given)
    kinds = {
        "direct writes into holes": found.holes,
        "direct writes, preallocated": found.preallocated,
        "direct reads": found.reads,
    }
    rates = [
        {"kind": kind, "request_bytes": size, "in_flight": depth, "bytes_per_s": size / seconds}
        for kind, costs in kinds.items()
        for size, by_depth in costs.items()
        for depth, seconds in by_depth.items()
    ]
    data = {
        "directory": held.path,
        "measured": units.timestamp(found.measured),
        "direct": rates,
        "cached_writes_bytes_per_s": 1 / found.buffered,
        "cached_reads_bytes_per_s": 1 / found.cached_reads,
    }
    rows = [
        (kind, units.format_size(size), *(_rates(size, costs[size], probe.DEPTHS)))
        for kind, costs in kinds.items()
        for size in costs
    ]
    header = ("", "of", *(f"{depth} in flight" for depth in probe.DEPTHS))
    lines = [output.table(rows, header)] if rows else ["no direct I/O there"]
    lines.append(
        f"through the page cache: writes {_rate(1 / found.buffered)}, reads "
        f"{_rate(1 / found.cached_reads)}"
    )
    output.result(given, data, "\n".join(lines))


def _rates(size: int, costs: Mapping[int, float], depths: Iterable[int]) -> Iterator[str]:
    for depth in depths:
        yield _rate(size / costs[depth]) if depth in costs else "-"


def _rate(bytes_per_second: float) -> str:
    return f"{units.format_size(round(bytes_per_second))}/s"
