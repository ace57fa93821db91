"""How to restore: keys of manager.yaml, for all guests and for one."""

from typing import Annotated, Any, Literal

from mapsave.key_types import Channels, Duration, Size, Switch, Truth
from mapsave.keys import Keys, help

Warm = Literal["working-set", "none", "all"]


class RestoreSettings(Keys, frozen=True):
    """How to restore; ``auto`` leaves the choice to the plan."""

    direct_io: Annotated[Switch, help("Whether to bypass the page cache.")] = "auto"
    channels: Annotated[Channels, help("Number of multifd channels.")] = "auto"
    instant: Annotated[
        Switch,
        help(
            "Whether RAM is mapped from the image instead of read; `auto`: where that works, but "
            "not of libvirt guests."
        ),
    ] = "auto"
    verify_data: Annotated[
        Truth,
        help(
            "Whether all data of the image is compared with its digests: before, or beside an "
            "instant restore."
        ),
    ] = False
    warm: Annotated[
        Warm,
        help(
            "What is read into the page cache beside an instant restore: the pages that the guest "
            "touched after the last one, nothing, or these and then all others."
        ),
    ] = "working-set"
    warm_rate: Annotated[
        Size | None, help("Most bytes per second that are read so; by default as the disk allows.")
    ] = None
    warm_time: Annotated[
        Duration, help("How long a restore goes on to read so, the guest running already.")
    ] = 10.0
    stall: Annotated[
        Duration, help("How long a load may make no progress before the restore fails.")
    ] = 30.0


class RestoreOptions(RestoreSettings, frozen=True):
    """How to restore one guest: what is not ``given`` is as for all guests."""

    given: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return the fields of RestoreSettings that are given."""
        return {name: getattr(self, name) for name in self.given}
