"""Of what the RAM of guests is that mapsave starts: keys of manager.yaml, for all and for one."""

from typing import Annotated, Any

from mapsave.key_types import Switch
from mapsave.keys import Keys, help


class MemorySettings(Keys, frozen=True):
    """Of what the RAM of guests is that a restore starts by a command."""

    shared_file: Annotated[
        Switch,
        help(
            "Whether a guest that is restored by its `launch` gets its RAM as a shared file beside "
            "the images, so that checkpoints can be taken of it; `auto`: where that works, and "
            "not clones."
        ),
    ] = "off"


class MemoryOptions(MemorySettings, frozen=True):
    """The same of one guest: what is not ``given`` is as for all guests."""

    given: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return the fields of MemorySettings that are given."""
        return {name: getattr(self, name) for name in self.given}
