"""``mapsave config show|schema|policies``."""

import json

import click

from mapsave.cli import output
from mapsave.cli.options import Command, Globals, Group, pass_globals


@click.group("config", cls=Group)
def command() -> None:
    """Show the effective configuration, its schema, or where label policies are."""


@command.command("show", cls=Command)
@pass_globals
def show(given: Globals, /) -> None:
    """Print the effective configuration, as YAML or, with --json, as JSON."""
    from mapsave import config

    shown = config.show(given.config())
    if given.json:
        import yaml

        shown = json.dumps(yaml.safe_load(shown), indent=2) + "\n"
    output.say(shown)


@command.command("schema", cls=Command)
@click.argument("kind", type=click.Choice(["manager", "job", "policy"]), default="manager")
@pass_globals
def schema(_: Globals, /, kind: str) -> None:
    """Print the JSON Schema of manager.yaml, a job or a label policy, for editors."""
    from mapsave import config, keys
    from mapsave.jobs import job
    from mapsave.labels import policy

    kinds = {"manager": config.Config, "job": job.Job, "policy": policy.Policy}
    output.say(json.dumps(keys.schema(kinds[kind]), indent=2) + "\n")


@command.command("policies", cls=Command)
@pass_globals
def policies(given: Globals, /) -> None:
    """Print the directory of the label policies, SELinux modules and AppArmor profiles shipped."""
    from mapsave.labels import policy

    directory = str(policy.shipped_directory())
    output.result(given, {"directory": directory, "policies": policy.shipped()}, directory)
