"""What every command shares: the global options, accepted before and after its name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mapsave.cli import interruption

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mapsave.config import Config
    from mapsave.service_settings import Remote


T = TypeVar("T")


@dataclasses.dataclass
class Globals:
    """The global options in force, wherever on the command line they stood."""

    config_file: Path | None = None
    json: bool = False
    debug: bool = False
    local: bool = False
    quiet: bool = False
    host: str | None = None
    progress: str = "auto"
    fleet_file: Path | None = None
    # How a signal stops the command.
    stop: interruption.Stop = dataclasses.field(default_factory=interruption.Stop)
    # What is to be done in the main thread, where alone Python handles signals; set by a command.
    in_main_thread: Callable[[], int | None] | None = None

    def config(self) -> Config:
        """Return the configuration in force. Raises ConfigMissing, NotPermitted, ConfigError."""
        from mapsave import config

        return config.load(self.config_file, os.environ)

    def client_config(self) -> Config:
        """Return the same for what the service may do: the system's file need not be readable."""
        from mapsave import config

        if self.host is not None:
            self.remote()
            return config.Config(is_unread=True)
        return config.load(self.config_file, os.environ, for_client=not self.local)

    def remote(self) -> Remote:
        """Return how ``host`` is reached. Raises UsageError where it is not configured."""
        from mapsave import config, errors, service_settings

        if self.local:
            raise errors.UsageError("--host is about another host; --local does not go with it")
        assert self.host is not None
        hosts = config.load(self.config_file, os.environ, for_client=True).hosts
        return service_settings.host(hosts, self.host)

    def refuse_host(self, what: str) -> None:
        """Raise UsageError with ``--host``: ``what`` works on this host only."""
        if self.host is not None:
            from mapsave import errors

            raise errors.UsageError(f"{what} works on this host only, not with --host")


# Gives a command the global options as its first argument, before its own.
pass_globals = click.make_pass_decorator(Globals, ensure=True)


def set_global(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Have ``Globals`` say what an option says; the callback of the global options."""
    # Not what is empty, which is an error: --host "" must not mean this host.
    if value is not None and value is not False and option.name is not None:
        setattr(context.ensure_object(Globals), option.name, value)


def _hosts(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return what completes ``--host``."""
    from mapsave import config

    given = context.ensure_object(Globals)
    hosts = config.load(given.config_file, os.environ, for_client=True).hosts
    return [name for name in hosts if name.startswith(incomplete)]


def global_options() -> list[click.Parameter]:
    """Return the global options, to be appended to a command's own."""

    def flag(name: str, text: str) -> click.Option:
        return click.Option(
            [f"--{name}"],
            is_flag=True,
            is_eager=True,  # so that an error in another option is already reported as requested
            expose_value=False,
            callback=set_global,
            help=text,
        )

    return [
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path, readable=False),  # reading it says what refuses
            metavar="FILE",
            expose_value=False,
            callback=set_global,
            help="Configuration file.",
        ),
        click.Option(
            ["--host"],
            metavar="NAME",
            expose_value=False,
            callback=set_global,
            shell_complete=_hosts,
            help="Work with the service of another host, one of 'hosts:' in the configuration.",
        ),
        flag("json", "Print one JSON object on stdout."),
        flag("debug", "Log each step, and show tracebacks."),
        flag("local", "Run here, even if the service is running."),
        flag("quiet", "No progress."),
        click.Option(
            ["--progress"],
            type=click.Choice(["auto", "json"]),
            expose_value=False,
            callback=set_global,
            help="How to show progress on stderr: a bar or lines (default), or an object a line.",
        ),
    ]


no_wait = click.option(
    "--no-wait", is_flag=True, help="Have the service do it; print the operation's id and exit."
)


picture = click.option(
    "--picture",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE.svg",
    help="Write a picture of it (SVG) to a file, in place of text.",
)


class Parsed(click.ParamType[T]):
    """What ``parse`` makes of a word; it raises ValueError where that is no ``name``."""

    def __init__(self, name: str, parse: Callable[[Any], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Command(click.Command):
    """A command that takes the global options as well."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.extend(global_options())


class LocalCommand(Command):
    """A command that the service cannot do: with ``--host`` it is refused."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Globals).refuse_host(f"'{ctx.command_path}'")
        return super().invoke(ctx)


class Group(click.Group):
    """A group whose commands are imported when they are run, so that --help is quick.

    ``lazy`` maps a command's name to its module and the first line of its help.
    """

    command_class = Command

    def __init__(
        self, *arguments: Any, lazy: dict[str, tuple[str, str]] | None = None, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self._lazy = lazy or {}
        self.params.extend(global_options())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._lazy:
            import importlib

            module = importlib.import_module(self._lazy[cmd_name][0])
            command = module.command
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(error.message + meant, ctx) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        if not self._lazy:
            return super().shell_complete(ctx, incomplete)
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=text)
            for name, (_, text) in self._lazy.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self._lazy:
            super().format_commands(ctx, formatter)
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])
