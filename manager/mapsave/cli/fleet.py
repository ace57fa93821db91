"""``mapsave fleet``: many hosts."""

import click

from mapsave.cli import fleet_options

# By the command's name: its module, and the first line of its help.
COMMANDS = {
    "hosts": ("mapsave.cli.fleet_hosts", "List the hosts, and how each is."),
    "guests": ("mapsave.cli.fleet_guests", "List the guests of the hosts."),
    "images": ("mapsave.cli.fleet_images", "List the images of the hosts."),
    "ps": ("mapsave.cli.fleet_ps", "List the tasks of the fleet."),
    "run": ("mapsave.cli.fleet_run", "Run a job of fleet.yaml."),
    "evacuate": ("mapsave.cli.fleet_evacuate", "Save and shut down the guests of a host."),
    "return": ("mapsave.cli.fleet_return", "Restore what was evacuated from a host."),
    "cancel": ("mapsave.cli.fleet_cancel", "Cancel a run or a task."),
    "wait": ("mapsave.cli.fleet_wait", "Wait for runs or tasks."),
    "logs": ("mapsave.cli.fleet_logs", "Show what happened to a task, or in the fleet."),
    "status": ("mapsave.cli.fleet_status", "Show the state of the fleet, or its metrics."),
    "check": ("mapsave.cli.fleet_check", "Say what is wrong in fleet.yaml."),
    "schema": ("mapsave.cli.fleet_schema", "Print the JSON Schema of fleet.yaml."),
    "agent": ("mapsave.cli.fleet_agent", "Do what the fleet asks of this host."),
    "scheduler": ("mapsave.cli.fleet_scheduler", "Run a scheduler."),
    "init": ("mapsave.cli.fleet_init", "Make the schema of a fleet in a database."),
    "migrate": ("mapsave.cli.fleet_migrate", "Upgrade the schema of the fleet."),
    "host": ("mapsave.cli.fleet_host", "Add a host to the fleet, or remove it."),
    "operator": ("mapsave.cli.fleet_operator", "Add a person who may ask, or remove one."),
}


@click.group("fleet", cls=fleet_options.FleetGroup, lazy=COMMANDS)
def command() -> None:
    """Work with many hosts that share a database, as fleet.yaml says.

    The file is that of --fleet, else of $MAPSAVE_FLEET, else /etc/mapsave/fleet.yaml. Of a person
    who only asks, it needs no more than 'database:'.
    """
