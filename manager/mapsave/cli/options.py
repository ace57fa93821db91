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
    from mapsave.config import Config


T = TypeVar("T")


@dataclasses.dataclass
class Globals:
    """The global options in force, wherever on the command line they stood."""

    config_file: Path | None = None
    json: bool = False
    debug: bool = False
    local: bool = False
    quiet: bool = False
    # How a signal stops the command.
    stop: interruption.Stop = dataclasses.field(default_factory=interruption.Stop)
    # What is to be done in the main thread, where alone Python handles signals; set by a command.
    in_main_thread: Callable[[], int | None] | None = None

    def config(self) -> Config:
        """Return the configuration in force. Raises ConfigMissing, ConfigError."""
        from mapsave import config

        return config.load(self.config_file, os.environ)


# Gives a command the global options as its first argument, before its own.
pass_globals = click.make_pass_decorator(Globals, ensure=True)


def _set(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value and option.name is not None:
        setattr(context.ensure_object(Globals), option.name, value)


def global_options() -> list[click.Parameter]:
    """Return the global options, to be appended to a command's own."""

    def flag(name: str, text: str) -> click.Option:
        return click.Option(
            [f"--{name}"],
            is_flag=True,
            is_eager=True,  # so that an error in another option is already reported as requested
            expose_value=False,
            callback=_set,
            help=text,
        )

    return [
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path, readable=False),  # reading it says what refuses
            metavar="FILE",
            expose_value=False,
            callback=_set,
            help="Configuration file.",
        ),
        flag("json", "Print one JSON object on stdout."),
        flag("debug", "Log each step, and show tracebacks."),
        flag("local", "Run here, even if the service is running."),
        flag("quiet", "No progress."),
    ]


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self._lazy:
            super().format_commands(ctx, formatter)
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])
