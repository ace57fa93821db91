"""How the guests are, asked for all clients together: their monitors serve one client at a time."""

import asyncio
from collections.abc import Callable

from mapsave.config import Config
from mapsave.evacuation import guest_list
from mapsave.evacuation.guest_list import Asked


class GuestStates:
    """Asks the guests of the configuration in force."""

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._asking: asyncio.Task[Asked] | None = None
        self._next: asyncio.Task[Asked] | None = None

    async def ask(self) -> Asked:
        """Return what the guests answer from now on.

        Those who come while the guests are being asked share the next time: what was answered by
        then may be older than what they know of, such as the end of a restore.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="guests")
            return await asyncio.shield(self._asking)
        if self._next is None:
            self._next = asyncio.create_task(self._ask_behind(self._asking), name="guests")
        return await asyncio.shield(self._next)

    async def _ask(self) -> Asked:
        return await guest_list.ask(self._config())

    async def _ask_behind(self, before: asyncio.Task[Asked]) -> Asked:
        await asyncio.wait([before])
        self._asking, self._next = self._next, None
        return await self._ask()
