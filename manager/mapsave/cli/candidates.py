"""What may be in the place of an argument or an option's value: names that are there just now.

For ``shell_complete`` of click. Only what is at hand: no guest and no libvirt daemon is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from mapsave.cli.options import Globals
from mapsave.image import partial_names

if TYPE_CHECKING:
    from mapsave.client.client import Client
    from mapsave.config import Config

    Item = CompletionItem[str]
    Completer = Callable[[click.Context, click.Parameter, str], list[Item]]

_YAML = (".yaml", ".yml")
_MOST = 1000
_PATIENCE = 1.0  # seconds that the service may take for an answer


def _completer(*finders: Callable[[Globals, Config], Iterable[Item]]) -> Completer:
    """Return what completes with all that begins as the word does; ``/`` begins no name."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[Item]:
        given = context.ensure_object(Globals)
        config = given.client_config()
        taken: set[str] = set()
        for value in context.params.values():
            taken.update(value if isinstance(value, tuple) else ())
        return [
            item
            for finder in finders
            for item in finder(given, config)
            if item.value.startswith(incomplete) and item.value not in taken
        ]

    return complete


def _or_files(complete: Completer) -> Completer:
    """Return what completes paths as the shell does, and anything else by ``complete``."""

    def either(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Item]:
        if incomplete.startswith((".", "~")) or "/" in incomplete:
            return [CompletionItem(incomplete, type="file")]
        return complete(context, parameter, incomplete)

    return either


def _guests(given: Globals, config: Config) -> Iterator[Item]:
    if config.is_unread:
        for line in _service(given, config).get("/v1/guests")["guests"]:
            yield CompletionItem(line["name"], help=f"{line['kind']} guest")
    for guest in config.guests.values():
        kind = "libvirt" if guest.libvirt else "emulated" if guest.emulator else "qmp"
        yield CompletionItem(guest.name, help=f"{kind} guest")


def _images(given: Globals, config: Config) -> Iterable[Item]:
    """Yield the images of the image directory, by the service where only that may read it."""
    if (names := None if given.host is not None else _listed(config.images)) is None:
        found = _service(given, config).get("/v1/images", limit=_MOST)["images"]
        names = [line["name"] for line in found]
    return (CompletionItem(name, help="image") for name in sorted(names) if _is_image(name))


def _listed(directory: Path) -> list[str] | None:
    """Return the names in a directory; None where it may not be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return None


def _is_image(name: str) -> bool:
    return not name.startswith(".") and not partial_names.is_partial_name(name)


def _jobs(given: Globals, config: Config) -> Iterator[Item]:
    from mapsave import errors, yaml_file

    if given.host is not None:
        for line in _service(given, config).get("/v1/jobs")["jobs"]:
            yield CompletionItem(line["name"], help=f"job in {line['file']}")
        return
    for path in sorted(config.jobs.iterdir()):
        if path.suffix not in _YAML or path.name.startswith("."):
            continue
        try:
            name = yaml_file.read(path).data.get("job")
        except errors.MapsaveError:
            continue
        if isinstance(name, str):
            yield CompletionItem(name, help=f"job in {path.name}")


def _policies(_: Globals, config: Config) -> Iterator[Item]:
    from mapsave.labels import policy

    own: tuple[Path, ...] = () if config.policies is None else (config.policies,)
    for name in policy.known(own):
        yield CompletionItem(name, help="label policy")


def _active(given: Globals, config: Config) -> Iterator[Item]:
    return _operations(given, config, active="true")


def _all_operations(given: Globals, config: Config) -> Iterator[Item]:
    return _operations(given, config)


def _operations(given: Globals, config: Config, **wanted: str) -> Iterator[Item]:
    found = _service(given, config).get("/v1/operations", limit=_MOST, **wanted)["operations"]
    for each in found:
        what = each["guest"] or each["job"] or each["image"] or ""
        yield CompletionItem(each["id"], help=f"{each['kind']} {what}, {each['state']}")


def _service(given: Globals, config: Config) -> Client:
    from mapsave.client.client import Client

    if given.host is not None:
        from mapsave.cli import remote

        return remote.client(given, _PATIENCE)
    return Client(str(config.socket), timeout=_PATIENCE)


GUESTS = _completer(_guests)
IMAGES = _or_files(_completer(_images))
GUESTS_AND_IMAGES = _or_files(_completer(_guests, _images))
JOBS = _or_files(_completer(_jobs))
JOB_NAMES = _completer(_jobs)
POLICIES = _or_files(_completer(_policies))
ACTIVE = _completer(_active)
OPERATIONS = _completer(_all_operations)
