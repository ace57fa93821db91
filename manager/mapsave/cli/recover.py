"""``mapsave recover``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.recover import Recovered


@click.command("recover", cls=Command)
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@pass_globals
def command(given: Globals, /, dry_run: bool) -> int:
    """Complete or roll back what an interrupted mapsave left, and remove partial images without an
    owner.

    Afterwards each guest is in the state it had, or its image is committed. Operations that are
    still running are left alone. Exits with the code of the first operation that cannot be
    recovered yet.
    """
    done = hosts.choose(given, given.config()).recover(dry_run=dry_run)
    output.result(given, done, text(done))
    failed = [line["error"]["exit_code"] for line in done["operations"] if line["error"]]
    return int(failed[0]) if failed else 0


def text(done: Recovered) -> str:
    """Return what was done for people."""
    lines = []
    for line in done["operations"]:
        words = line["outcome"]
        if line["error"]:
            words = f"cannot be recovered yet: {line['error']['message']}"
        at = line["interrupted_at"]
        lines.append(f"{line['operation']} of {line['guest']}, interrupted at {at!r}: {words}")
    for line in done["operations"]:
        lines += output.warnings(line["warnings"])
    lines += output.warnings(done["warnings"])
    lines += [f"damaged journal: {path}; inspect it, then remove it" for path in done["damaged"]]
    verb = "would be removed" if done["dry_run"] else "removed"
    lines += [f"partial image without an owner {verb}: {path}" for path in done["swept"]]
    return "\n".join(lines) or "nothing to recover"
