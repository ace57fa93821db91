"""What is asked of a QEMU while something is done: a count of every command and its arguments."""

import collections
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from mapsave.monitor.session import Session

# What changes while a guest is saved, or must be known as it is at that moment.
OF_THE_MOMENT = frozenset(
    ("query-status", "query-fdsets", "query-migrate", "query-yank", "x-query-ramblock")
) | frozenset(("query-migrate-capabilities", "query-migrate-parameters"))


@contextmanager
def counted(transport: type[Session]) -> Iterator[collections.Counter[str]]:
    """Yield a count of the queries that sessions of ``transport`` are given, as JSON."""
    count: collections.Counter[str] = collections.Counter()
    plain = transport.execute

    async def execute(
        self: Session,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        if "query-" in command or command.startswith("qom-"):
            count[json.dumps([command, arguments])] += 1
        return await plain(self, command, arguments, timeout=timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "execute", execute)
        yield count


def asked_twice(count: collections.Counter[str]) -> list[str]:
    """Return the queries that were made more than once, and need not have been."""
    return [
        query
        for query, number in count.items()
        if number > 1 and json.loads(query)[0] not in OF_THE_MOMENT
    ]
