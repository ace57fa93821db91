"""``mapsave guard GUEST``."""

import click

from mapsave.cli import candidates, output
from mapsave.cli.options import Globals, LocalCommand, pass_globals


@click.command("guard", cls=LocalCommand)
@click.argument("guest", shell_complete=candidates.GUESTS)
@pass_globals
def command(given: Globals, /, guest: str) -> None:
    """Report whether a guest may be started afresh, for scripts that start it.

    Exits with 3 while the guest's memory is in an image that was not restored, and says how to
    restore or discard it. Any other code but 0: that could not be found out. Asks neither the
    service nor libvirt.
    """
    from mapsave.operations import guard

    config = given.config()
    target = config.guest(guest)
    managed = guard.check(config, target)
    text = f"{target.name} may be started: its memory is in no image"
    if managed is not None:
        text = f"{target.name} may be started: libvirt restores its managed save {managed.image}"
    image = managed.image if managed is not None else None
    output.result(given, {"guest": target.name, "managed_save": image}, text)
