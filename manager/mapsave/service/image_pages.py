"""The images of the image directory, page by page.

The pages after the first are of the same look at the directory, which is kept for a moment: so they
fit together, and cost no further look. After that the memory is free again.
"""

import asyncio
import bisect
from collections.abc import Callable
from typing import TypedDict

from mapsave.config import Config
from mapsave.image import store
from mapsave.operations import (
    exclusive,
    image_index,
    in_use,
    pins,
    restored_notes,
    trust,
    verified_notes,
)
from mapsave.operations.image_index import Images, Listed
from mapsave.service.reader_pool import Looking
from mapsave.strict_json import Facts

_KEPT = 10.0  # seconds from one page to the next


class Page(TypedDict):
    """Some images, and what to ask for the next ones with; see ``client.responses.Images``."""

    directory: str
    images: list[Facts]
    next: str | None


class ImagePages:
    """Looks at the images of a directory for clients, in the threads for that."""

    def __init__(self, config: Callable[[], Config], looking: Looking) -> None:
        self._config = config
        self._looking = looking
        self._last: Images | None = None
        self._forgetting: asyncio.TimerHandle | None = None

    async def page(
        self, before: str | None, limit: int, guest: str | None = None, *, latest: bool = False
    ) -> Page:
        """Return ``limit`` images, those after the page whose ``next`` is ``before``.

        ``guest`` and ``latest`` are as for ``image_index.Images.chosen``, and the same for each
        page. Raises ServiceBusy, BadDirectory, NotPermitted.
        """
        found = self._last if before is not None else None
        if found is None:
            found = await self._looking.run(self._look)
        listed = found.chosen(guest, latest=latest)
        start = 0
        if before is not None:
            modified, inode = map(int, before.split("."))
            start = bisect.bisect_right(listed, (-modified, inode), key=lambda each: each.place)
        end = start + limit
        while 0 < end < len(listed) and listed[end].place == listed[end - 1].place:
            end += 1  # two names of one file
        part, is_last = listed[start:end], end >= len(listed)
        self._keep(None if is_last else found)
        lines = await self._looking.run(self._lines, found, part)
        following = None if is_last else f"{-part[-1].place[0]}.{part[-1].place[1]}"
        return {"directory": found.path, "images": lines, "next": following}

    async def chosen(self, guest: str | None = None, *, latest: bool = False) -> list[Facts]:
        """Return all images that ``page`` would with these; raises as it does."""

        def look() -> list[Facts]:
            found = self._look()
            return self._lines(found, found.chosen(guest, latest=latest))

        return await self._looking.run(look)

    def _keep(self, found: Images | None) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting, self._last = None, found
        if found is not None:
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(_KEPT, self._keep, None)

    def _look(self) -> Images:
        config = self._config()
        with store.directory(config.images, create=True) as held:
            return image_index.look(held, config.state, trust.users(), with_managed=True)

    def _lines(self, found: Images, part: list[Listed]) -> list[Facts]:
        state = self._config().state
        noted, pinned = restored_notes.noted(state), pins.shown(state)
        users, verified = in_use.shown(state), verified_notes.Known(state)
        budget = exclusive.Budget()
        return [found.line(each, noted, pinned, users, verified, budget) for each in part]
