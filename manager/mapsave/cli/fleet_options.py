"""What the commands of ``mapsave fleet`` share: ``--fleet``, the file in force, the database."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mapsave.cli.options import Globals, Group, LocalCommand, set_global

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection
    from mapsave.fleet.settings import Settings

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

T = TypeVar("T")


class FleetCommand(LocalCommand):
    """A command of the fleet: it takes ``--fleet`` beside the global options."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.append(_option())


class FleetGroup(Group):
    """The group of these commands: it takes ``--fleet`` as well."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.append(_option())


def _option() -> click.Option:
    return click.Option(
        ["--fleet", "fleet_file"],
        type=click.Path(path_type=Path, readable=False),  # reading it says what refuses
        metavar="FILE",
        expose_value=False,
        callback=set_global,
        help="The fleet's file instead of $MAPSAVE_FLEET or /etc/mapsave/fleet.yaml.",
    )


def settings(given: Globals) -> Settings:
    """Return fleet.yaml in force. Raises ConfigMissing, NotPermitted, ConfigError."""
    from mapsave.fleet import settings

    return settings.load(settings.place(given.fleet_file, os.environ))


def run(
    given: Globals,
    found: Settings,
    work: Callable[[Connection], Awaitable[T]],
    *,
    interrupted: str = "nothing was changed",
) -> T:
    """Return what ``work`` returns of a connection to the database of the fleet.

    Raises Interrupted, which says ``interrupted`` too, and what ``database.connected`` does.
    """
    import asyncio

    from mapsave import errors
    from mapsave.cli import local
    from mapsave.fleet import database

    async def connected() -> T:
        try:
            async with database.connected(found.database, "command") as connection:
                return await work(connection)
        except asyncio.CancelledError:
            name = given.stop.name or "cancellation"
            raise errors.Interrupted(f"interrupted by {name}; {interrupted}") from None

    return local.run(connected(), given)


def _completer(names: Callable[[Settings], dict[str, str]]) -> Completer:
    def complete(
        context: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        found = names(settings(context.ensure_object(Globals)))
        return [
            CompletionItem(name, help=text)
            for name, text in found.items()
            if name.startswith(incomplete)
        ]

    return complete


def _jobs(found: Settings) -> dict[str, str]:
    return {name: f"job, {', '.join(job.guests)}" for name, job in found.jobs.items()}


def _hosts(found: Settings) -> dict[str, str]:
    from mapsave.fleet import patterns

    # Those of a pattern are in the database, which completion does not ask.
    return {
        name: f"host, images on {host.target}"
        for name, host in found.hosts.items()
        if not patterns.is_wild(name)
    }


JOBS = _completer(_jobs)
HOSTS = _completer(_hosts)


def _at_hosts(found: Settings) -> dict[str, str]:
    return {f"*@{name}": text for name, text in _hosts(found).items()}


GUESTS_AT = _completer(_at_hosts)
