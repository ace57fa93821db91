"""``mapsave probe [DIRECTORY]``."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click
import msgspec

from mapsave import units
from mapsave.cli import local, output
from mapsave.cli.options import Command, Globals, pass_globals


@click.command("probe", cls=Command)
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
    rows = [
        (what, units.format_size(size), *(_rates(size, costs[size], probe.DEPTHS)))
        for what, costs in (
            ("direct writes into holes", found.holes),
            ("direct writes, preallocated", found.preallocated),
            ("direct reads", found.reads),
        )
        for size in costs
    ]
    header = ("", "of", *(f"{depth} in flight" for depth in probe.DEPTHS))
    lines = [output.table(rows, header)] if rows else ["no direct I/O there"]
    lines.append(
        f"through the page cache: writes {_rate(1 / found.buffered)}, reads "
        f"{_rate(1 / found.cached_reads)}"
    )
    data = {"directory": held.path, **msgspec.to_builtins(found, str_keys=True)}
    output.result(given, data, "\n".join(lines))


def _rates(size: int, costs: Mapping[int, float], depths: Iterable[int]) -> Iterator[str]:
    for depth in depths:
        yield _rate(size / costs[depth]) if depth in costs else "-"


def _rate(bytes_per_second: float) -> str:
    return f"{units.format_size(round(bytes_per_second))}/s"
