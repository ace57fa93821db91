"""Commands about several images: what fails with one does not keep them from the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from mapsave import errors
from mapsave.cli import candidates, hosts, output
from mapsave.cli.here import Result
from mapsave.cli.hosts import Host
from mapsave.cli.options import Globals

if TYPE_CHECKING:
    from mapsave.config import Config

images_argument = click.argument(
    "images",
    nargs=-1,
    required=True,
    metavar="IMAGE...",
    shell_complete=candidates.IMAGES,
)


def report(
    given: Globals,
    names: tuple[str, ...],
    work: Callable[[Host, str], Result],
    text: Callable[[list[Result]], str],
    *,
    marked: Callable[[Result], Result] = lambda each: each,
) -> int:
    """Do ``work`` for each image and print the ``text`` about all; return the exit code.

    It is that of the first that failed, whose result has its path as ``image``, and the ``error``.
    ``marked`` adds to each result what it is known by. With a single image its error is raised, and
    the object of ``--json`` is its result. Raises Interrupted: images that it had not come to are
    left alone.
    """
    config = given.client_config()
    found: list[Result] = []
    code = 0
    for name in names:
        try:
            result = work(hosts.choose(given, config, image=name), name)
        except errors.MapsaveError as error:
            if len(names) == 1 or isinstance(error, errors.Interrupted):
                raise
            code = code or error.exit_code
            place = name if given.host is not None else _path(name, config)
            result = {"image": place, "error": error.as_dict()}
        found.append(marked(result))
    data = found[0] if len(names) == 1 else {"images": found}
    output.result(given, data, text(found))
    return code


def lines(line: Callable[[Result], str]) -> Callable[[list[Result]], str]:
    """Return what makes a text of a ``line`` for each image."""
    return lambda found: "\n".join(map(line, found))


def _path(name: str, config: Config) -> str:
    from mapsave.operations import images

    return images.resolve(name, config)
