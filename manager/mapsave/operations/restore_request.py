"""What is asked of a restore."""

import dataclasses
from typing import Literal

from msgspec import structs

from mapsave.config import Config
from mapsave.key_types import Channels, Switch
from mapsave.restore_settings import RestoreSettings, Warm


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a restore.

    ``into`` is the path of a waiting QEMU's QMP socket, ``xml`` a domain XML that takes the place
    of the image's. With ``trust_image`` it does not matter who could have written the image, nor
    what its XML names. ``for_operator``: what root has set of guests and policies is binding.
    With ``through_libvirt`` libvirt reads the image by its path itself. ``without_metadata``
    restores an image whose metadata are lost by its stream and by what is asked. ``is_clone``: one
    of several guests of the image, which stays as it is for its own. ``direct_io``, ``channels``,
    ``instant``, ``warm`` and ``verify_data`` are as the configuration says where they are None.
    """

    image: str
    into: str | None = None
    guest: str | None = None
    trust_recorded_command: bool = False
    xml: str | None = None
    trust_image: bool = False
    for_operator: bool = False
    through_libvirt: bool = False
    run: Literal["as-saved", "run", "paused"] = "as-saved"
    direct_io: Switch | None = None
    channels: Channels | None = None
    instant: Switch | None = None
    verify_data: bool | None = None
    warm: Warm | None = None
    policy: str | None = None
    again: bool = False
    force: bool = False
    without_metadata: bool = False
    is_clone: bool = False
    timeout: float | None = None

    def settings(self, config: Config, guest: str | None = None) -> RestoreSettings:
        """Return how to restore, completed by the configuration of ``guest``, then the general."""
        configured = config.named(guest) if guest is not None else None
        own = configured.restore if configured is not None else None
        names = ("direct_io", "channels", "instant", "warm", "verify_data")
        asked = {name: getattr(self, name) for name in names}
        known = {name: value for name, value in asked.items() if value is not None}
        return structs.replace(config.restore, **{**(own.settings() if own else {}), **known})
