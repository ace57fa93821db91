"""``mapsave setup systemd|apparmor|selinux|memory``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mapsave.cli import candidates, local, output
from mapsave.cli.options import Globals, Group, LocalCommand, pass_globals

if TYPE_CHECKING:
    from mapsave.host_setup import Plan
    from mapsave.operations.setup_memory import Advice

_undo = click.option("--undo", is_flag=True, help="Remove what it has put there.")
_dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
_root = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    default="/",
    metavar="DIR",
    help="The directory that is to be a host's root.",
)


@click.group("setup", cls=Group)
def command() -> None:
    """Install units, an AppArmor profile or SELinux rules on this host; prepare a guest.

    For mapsave installed by pip or pipx; a package of the distribution has installed the units.
    Each file that is written and each command that is run is shown.
    """


@command.command("systemd", cls=LocalCommand)
@click.option("--libvirt", is_flag=True, help="With the drop-ins for libvirt guests.")
@_root
@_undo
@_dry_run
@pass_globals
def systemd(given: Globals, /, libvirt: bool, root: Path, undo: bool, dry_run: bool) -> None:
    """Install the units of systemd, the group mapsave and its directories.

    Units are not enabled: what is to be run for that is shown.
    """
    from mapsave import host_setup

    # What was put down with the drop-ins is removed with them.
    plan = host_setup.systemd(root, libvirt=libvirt or undo)
    _carry_out(given, plan, root, undo=undo, dry_run=dry_run)


@command.command("apparmor", cls=LocalCommand)
@_root
@_undo
@_dry_run
@pass_globals
def apparmor(given: Globals, /, root: Path, undo: bool, dry_run: bool) -> None:
    """Confine mapsave by its AppArmor profile, and install the abstraction for guests."""
    from mapsave import host_setup

    _carry_out(given, host_setup.apparmor(root), root, undo=undo, dry_run=dry_run)


@command.command("selinux", cls=LocalCommand)
@click.option("--tcg", is_flag=True, help="With the rule for guests without KVM.")
@_undo
@_dry_run
@pass_globals
def selinux(given: Globals, /, tcg: bool, undo: bool, dry_run: bool) -> None:
    """Add the rules of mapsave to the policy of SELinux."""
    from mapsave import host_setup

    _carry_out(given, host_setup.selinux(tcg=tcg), Path("/"), undo=undo, dry_run=dry_run)


@command.command("memory", cls=LocalCommand)
@click.argument("guest", shell_complete=candidates.GUESTS)
@pass_globals
def memory(given: Globals, /, guest: str) -> None:
    """Show what to change so that checkpoints can be taken of a guest; nothing is changed.

    That is in its launch: in the configuration, or in the XML of its domain.
    """
    from mapsave.operations import setup_memory

    config = given.config()
    found = local.run(setup_memory.advise(config, config.guest(guest)), given)
    output.result(given, {**found}, _advice(found))


def _advice(found: Advice) -> str:
    system = found["file_system"] or "a file system that shares nothing"
    lines = [f"images are in {found['directory']!r}, on {system}"]
    lines += [f"in the way: {each}" for each in found["obstacles"]]
    where = ""
    for step in found["steps"]:
        if step["where"] != where:
            where = step["where"]
            lines.append(f"in the {where}:")
        lines += [f"  - {step['before']}"] if step["before"] else []
        lines += [f"  + {step['after']}"] if step["after"] else []
    if not found["steps"] and not found["obstacles"]:
        lines.append(f"nothing to change: checkpoints can be taken of guest {found['guest']!r}")
    return "\n".join([*lines, *(f"note: {each}" for each in found["notes"])])


def _carry_out(given: Globals, plan: Plan, root: Path, *, undo: bool, dry_run: bool) -> None:
    from mapsave import host_setup

    steps: list[str] = []

    def show(step: str) -> None:
        steps.append(step)
        if not given.json:
            output.say(f"{step}\n")

    work = host_setup.remove if undo else host_setup.install
    work(plan, root, show, dry_run=dry_run)
    then = "" if undo else plan.then
    words = "" if steps else "nothing to do"
    if then:
        words = f"then: {then}" if not words else f"{words}; then: {then}"
    output.result(given, {"steps": steps, "dry_run": dry_run, "then": then or None}, words)
