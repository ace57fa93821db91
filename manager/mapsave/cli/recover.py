"""``mapsave recover``."""

from __future__ import annotations

from typing import Any

import click

from mapsave.cli import hosts, output
from mapsave.cli.options import Command, of


@click.command("recover", cls=Command)
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@click.pass_context
def command(context: click.Context, /, dry_run: bool) -> int:
    """Complete or roll back what an interrupted mapsave left, and remove partial images without an
    owner.

    Afterwards each guest is in the state it had, or its image is committed. Operations that are
    still running are left alone. Exits with the code of the first operation that cannot be
    recovered yet.
    """
    given = of(context)
    done = hosts.choose(given, given.config()).recover(dry_run=dry_run)
    output.result(given, done, text(done))
    failed = [line["error"]["exit_code"] for line in done["operations"] if line["error"]]
    return int(failed[0]) if failed else 0


def text(done: dict[str, Any]) -> str:
    """Return what was done for people."""
    lines = [
        f"{line['operation']} of {line['guest']}, interrupted at {line['interrupted_at']!r}: "
        + (line["outcome"] or f"cannot be recovered yet: {line['error']['message']}")
        for line in done["operations"]
    ]
    lines += [f"warning: {words}" for line in done["operations"] for words in line["warnings"]]
    lines += [f"warning: {words}" for words in done["warnings"]]
    lines += [f"damaged journal: {path}; inspect it, then remove it" for path in done["damaged"]]
    verb = "would be removed" if done["dry_run"] else "removed"
    lines += [f"partial image without an owner {verb}: {path}" for path in done["swept"]]
    return "\n".join(lines) or "nothing to recover"
