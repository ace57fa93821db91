"""Warm an image: read its working set into the page cache, or learn it from guests that live on it.

For one that is to be restored instantly soon. What was read stays until the kernel needs the memory
for something else.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TypedDict

from mapsave import errors
from mapsave.config import Config
from mapsave.image import descriptors, image
from mapsave.migration import progress
from mapsave.operations import answering, in_use, warming, working_sets
from mapsave.operations.warming import Warmed
from mapsave.restore_settings import Warm


class Done(TypedDict):
    """What ``mapsave warm --json`` prints: what was read, or learned and from whom."""

    image: str
    working_set_bytes: int | None
    learned_from: list[dict[str, object]]
    warm: Warmed | None


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of it. ``rate`` in bytes per second; without one as restores are configured."""

    learn: bool = False
    all: bool = False
    rate: int | None = None
    timeout: float | None = None

    @property
    def way(self) -> Warm:
        """What is read."""
        return "all" if self.all else "working-set"


async def warm(
    config: Config, path: str, request: Request, report: progress.Report = progress.silent
) -> Done:
    """Do what was asked for the image at ``path``.

    Raises ImageNotFound, InvalidImage or one of its kin, Refused where there is no working set, or
    no guest to learn one from, NotPermitted, UnreadableImage where nothing is read any more.
    """
    directory = os.path.dirname(path)
    if request.learn:
        return await answering.within(directory, _learn, config, path)
    with warming.beside(config.state) as reading:
        known = await answering.within(directory, _begin, config, path, request, reading)
        with descriptors.reading(path):
            found = await reading.finished(report, config.restore.stall)
    return {"image": path, "working_set_bytes": known, "learned_from": [], "warm": found}


def _learn(config: Config, path: str) -> Done:
    with image.opened(path) as opened:
        users = in_use.of_image(in_use.everyone(config.state), opened)
        if not users:
            raise errors.Refused(
                f"no guest lives on {path!r}",
                hint="a guest does that was restored with its RAM mapped: 'mapsave restore "
                "--instant on'",
            )
        work = f"see what of its memory guest {users[0].guest!r} has touched"
        with errors.explained(work, f"/proc/{users[0].pid}/pagemap", otherwise=errors.Refused):
            found = working_sets.learned(config.state, users, opened, "learn")
        where = working_sets.path(config.state, found.uuid)
        with errors.explained(
            f"record the working set {str(where)!r}", where, os.W_OK, otherwise=errors.Refused
        ):
            working_sets.record(config.state, found)
        return {
            "image": path,
            "working_set_bytes": found.total_bytes,
            "learned_from": [user.shown() for user in users],
            "warm": None,
        }


def _begin(config: Config, path: str, request: Request, reading: warming.Warming) -> int | None:
    """Begin to read the image; return how large its working set is, None where there is none."""
    with image.opened(path) as opened:
        contents = opened.validate()
        known = working_sets.read(config.state, opened.block.uuid)
        if known is None and request.way == "working-set":
            raise errors.Refused(
                f"no working set is recorded of {path!r}",
                hint="'mapsave warm --learn' records it while a guest lives on the image, so does "
                "each save of such a guest; --all reads all of the image",
            )
        wanted = warming.Wanted(
            request.way,
            request.rate if request.rate is not None else config.restore.warm_rate,
            request.timeout if request.timeout is not None else math.inf,
        )
        with descriptors.reading(path):
            reading.begin(opened, contents.stream, wanted)
        return known.total_bytes if known is not None else None
