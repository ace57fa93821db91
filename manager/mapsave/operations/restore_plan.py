"""How a restore reads its image: planned before a destination is started, learned from after it."""

import dataclasses
import os

from mapsave.config import Config
from mapsave.image import descriptors
from mapsave.image.image import Image
from mapsave.image.metadata import PlanPart
from mapsave.image.validation import Contents
from mapsave.key_types import Switch
from mapsave.operations import answering, learning, limits
from mapsave.operations.restore_request import Request
from mapsave.plan import planner, sharing, strategy
from mapsave.plan.strategy import Most, ReadStrategy
from mapsave.restore_settings import RestoreSettings


@dataclasses.dataclass(frozen=True)
class Planned:
    """The ``strategy``, as ``settings`` say and as was chosen for what they leave to the plan.

    ``measured`` is when the image's file system was, as in ``probe.Probe``.
    """

    settings: RestoreSettings
    strategy: ReadStrategy
    measured: float

    def settled(self, request: Request) -> Request:
        """Return the request with nothing left to choose."""
        direct_io: Switch = "on" if self.strategy.direct_io else "off"
        return dataclasses.replace(request, direct_io=direct_io, channels=self.strategy.channels)

    def limited(self, takes: limits.Footprint) -> ReadStrategy:
        """Return the strategy with as many channels as QEMU's limits allow.

        Raises TooLittleLeft where those that were asked for do not fit, or not one.
        """
        is_demanded = self.settings.channels != "auto"
        most = limits.for_load(takes, self.strategy.channels, is_demanded=is_demanded)
        return self.strategy.limited(most)


async def plan(
    config: Config,
    settings: RestoreSettings,
    opened: Image,
    contents: Contents,
    shared: Most | None = None,
) -> Planned:
    """Plan how to read an image; nothing is written to its file system.

    ``shared``: how many channels are left where other guests are. Raises UnreadableImage,
    TruncatedImage where it has shrunk since it was validated.
    """
    directory = os.path.dirname(opened.path)
    learned = await answering.within(directory, learning.of_image, config.state, opened, contents)
    chosen = strategy.choose_read(
        settings,
        learned,
        takes_direct=descriptors.takes_direct_io(opened.fd),
        shared=shared,
    )
    return Planned(settings, chosen, learned.probe.measured)


def part(share: sharing.Share) -> Most | None:
    """Return how many channels a restore has for its part, where there are other guests."""
    return share.most(planner.READ_DEPTH)


def outcome(chosen: ReadStrategy, took: float) -> PlanPart:
    """Return what was predicted, and that it took so many seconds."""
    return {"predicted_s": round(chosen.plan.chosen.seconds, 6), "took_s": round(took, 6)}


async def learn_from(
    config: Config, opened: Image, chosen: ReadStrategy, share: sharing.Share, took: float
) -> None:
    """Correct later predictions by how long reading took, where it was done as predicted."""
    if chosen.is_as_planned and not share.was_shared:
        found = chosen.plan.chosen
        await answering.noted(learning.note, config.state, opened.fd, opened.path, found, took)
