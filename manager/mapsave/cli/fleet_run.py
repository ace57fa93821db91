"""``mapsave fleet run JOB``."""

import click

from mapsave.cli import fleet_asking, fleet_options
from mapsave.cli.fleet_options import FleetCommand
from mapsave.cli.options import Globals, pass_globals

wait_option = click.option(
    "--wait", is_flag=True, help="Wait until it has ended; exit with the worst code of its tasks."
)


@click.command("run", cls=FleetCommand)
@click.argument("job", shell_complete=fleet_options.JOBS)
@click.option("--in-window", is_flag=True, help="Have its saves wait for the window of the job.")
@wait_option
@pass_globals
def command(given: Globals, /, job: str, in_window: bool, wait: bool) -> int:
    """Run a job of fleet.yaml now: each of its guests that runs gets a task.

    A guest with a save that is not finished gets none, and is counted as left out.
    """
    what = {"job": job, "in_window": in_window}
    return fleet_asking.ask(given, "run", what, wait=wait)
