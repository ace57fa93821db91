"""``mapsave config show|schema|policies``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mapsave import keys
from mapsave.cli import output
from mapsave.cli.options import Globals, Group, LocalCommand, pass_globals
from mapsave.keys import Keys

if TYPE_CHECKING:
    from mapsave.config import Config


@click.group("config", cls=Group)
def command() -> None:
    """Show the effective configuration, its schema, or where label policies are."""


@command.command("show", cls=LocalCommand)
@pass_globals
def show(given: Globals, /) -> None:
    """Print the effective configuration, as YAML or, with --json, as JSON."""
    shown = text(given.config())
    if given.json:
        import yaml

        shown = json.dumps(yaml.safe_load(shown), indent=2) + "\n"
    output.say(shown)


@command.command("schema", cls=LocalCommand)
@click.argument("kind", type=click.Choice(["manager", "job", "policy"]), default="manager")
@pass_globals
def schema(_: Globals, /, kind: str) -> None:
    """Print the JSON Schema of manager.yaml, a job or a label policy, for editors."""
    from mapsave import config
    from mapsave.jobs import loading
    from mapsave.labels import policy

    if kind == "job":
        found = loading.schema()
    else:
        found = keys.schema({"manager": config.Config, "policy": policy.Policy}[kind])
    output.say(json.dumps(found, indent=2) + "\n")


@command.command("policies", cls=LocalCommand)
@pass_globals
def policies(given: Globals, /) -> None:
    """Print the directory of the label policies, SELinux modules and AppArmor profiles shipped."""
    from mapsave.labels import policy

    directory = str(policy.shipped_directory())
    output.result(given, {"directory": directory, "policies": policy.shipped()}, directory)


def text(config: Config) -> str:
    """Return what is in force as a configuration file that means the same."""
    import yaml

    origin = ascii(str(config.source)) if config.source else "built-in defaults, without a file"
    return f"# from {origin}\n" + yaml.safe_dump(
        _plain(config), sort_keys=False, allow_unicode=True
    )


def _plain(value: object) -> object:
    """Return keys as dicts without what is None or empty, paths as text."""
    if isinstance(value, Keys):
        # What is not given is as another place says, and must stay so.
        given = getattr(value, "given", None)
        pairs = ((key, getattr(value, it.name)) for key, it in keys.fields(type(value)).items())
        return {
            key: _plain(item)
            for key, item in pairs
            if item is not None and item != () and (given is None or key in given)
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # seconds, as people write them
    return str(value) if isinstance(value, Path) else value
