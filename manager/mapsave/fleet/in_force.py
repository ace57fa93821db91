"""Bring what fleet.yaml says of hosts and targets into the database, which budgets are kept by.

Only what differs is written, and hosts apart from targets: ``take_slot`` locks a host, then its
target.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mapsave.fleet import tidying
from mapsave.fleet.settings import Settings

if TYPE_CHECKING:
    from mapsave.fleet.leading import Term

_log = logging.getLogger(__name__)


async def apply(term: Term, settings: Settings) -> int:
    """Have the database say of each host and target what ``settings`` says; return the changes.

    A host that no key of ``hosts`` means gets no target, and does nothing. A target that is not in
    the file any more has no slots, and is removed once nothing names it. Raises NotLeading and
    psycopg.Error.
    """
    targets = await _targets(term, settings)
    hosts = await _hosts(term, settings)
    if hosts:
        async with term.transaction() as connection:
            await tidying.follow_targets(connection)
    if targets or hosts:
        _log.info("fleet.yaml: %s targets and %s hosts changed", targets, hosts)
    return targets + hosts


async def _targets(term: Term, settings: Settings) -> int:
    async with term.transaction() as connection:
        cursor = await connection.execute("SELECT name, saves, bandwidth FROM targets")
        known = {row["name"]: (row["saves"], row["bandwidth"]) async for row in cursor}
        wanted = {name: (each.saves, each.bandwidth) for name, each in settings.targets.items()}
        changed = {name: each for name, each in wanted.items() if known.get(name) != each}
        gone = [name for name in known if name not in wanted]
        if changed:
            await connection.execute(
                """INSERT INTO targets (name, saves, bandwidth)
                SELECT * FROM unnest(%s::text[], %s::int[], %s::bigint[])
                ON CONFLICT (name) DO UPDATE
                SET saves = excluded.saves, bandwidth = excluded.bandwidth""",
                [
                    list(changed),
                    [saves for saves, _ in changed.values()],
                    [bandwidth for _, bandwidth in changed.values()],
                ],
            )
    closed = [name for name in gone if known[name][0]]
    if closed:
        async with term.transaction() as connection:
            await connection.execute("UPDATE targets SET saves = 0 WHERE name = ANY(%s)", [closed])
    if gone:
        async with term.transaction() as connection:
            await connection.execute(
                """DELETE FROM targets g WHERE name = ANY(%s)
                AND NOT EXISTS (SELECT FROM hosts h WHERE h.target = g.name)
                AND NOT EXISTS (SELECT FROM tasks t WHERE t.target = g.name)
                AND NOT EXISTS (SELECT FROM slots s WHERE s.target = g.name)""",
                [gone],
            )
    return len(changed) + len(closed)


async def _hosts(term: Term, settings: Settings) -> int:
    async with term.transaction() as connection:
        cursor = await connection.execute("SELECT name, saves, target FROM hosts")
        changed = []
        async for row in cursor:
            found = settings.host(row["name"])
            wanted = (0, None) if found is None else (found.saves, found.target)
            if wanted != (row["saves"], row["target"]):
                changed.append((row["name"], *wanted))
        if changed:
            names, saves, targets = (list(each) for each in zip(*changed, strict=True))
            await connection.execute(
                """UPDATE hosts h SET saves = w.saves, target = w.target
                FROM unnest(%s::text[], %s::int[], %s::text[]) AS w (name, saves, target)
                WHERE h.name = w.name""",
                [names, saves, targets],
            )
    return len(changed)
