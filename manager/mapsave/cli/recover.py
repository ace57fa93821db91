"""``mapsave recover``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals

if TYPE_CHECKING:
    from mapsave.operations.pending import Pending
    from mapsave.operations.recover import Recovered

_IN_PROGRESS = 8  # the exit code of errors.Busy
_INTERRUPTED = 9  # that of errors.Interrupted


@click.command("recover", cls=Command)
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@click.option(
    "--pending",
    is_flag=True,
    help="Only list the operations in progress (exit code 8) or interrupted (9); ask no guest.",
)
@pass_globals
def command(given: Globals, /, dry_run: bool, pending: bool) -> int:
    """Complete or roll back what an interrupted mapsave left, and remove partial images without an
    owner.

    Afterwards each guest is in the state it had, or its image is committed. Operations that are
    still running are left alone. Exits with the code of the first operation that cannot be
    recovered yet.
    """
    if pending:
        given.refuse_host("'mapsave recover --pending'")
        return _list_pending(given)
    done = hosts.choose(given, given.client_config()).recover(dry_run=dry_run)
    output.result(given, done, text(done))
    failed = [line["error"]["exit_code"] for line in done["operations"] if line["error"]]
    return int(failed[0]) if failed else 0


def _list_pending(given: Globals) -> int:
    """Print what is pending, from the journals of this host, and return the exit code."""
    from mapsave.operations import pending

    found = pending.pending(given.config().state)
    output.result(given, {"pending": found}, "\n".join(map(_pending_line, found)))
    if any(each["in_progress"] for each in found):
        return _IN_PROGRESS
    return _INTERRUPTED if found else 0


def _pending_line(found: Pending) -> str:
    at = f"in progress, at {found['step']!r}" if found["in_progress"] else "interrupted"
    if not found["in_progress"] and found["step"]:
        at += f" at {found['step']!r}"
    image = f", image {found['image']}" if found["image"] else ""
    guest = f" of {found['guest']}" if found["guest"] else ""
    return f"{found['operation']}{guest}: {at}{image}; journal {found['journal']}"


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
