"""What is asked of a restore."""

import dataclasses
from typing import Literal

from mapsave.key_types import Switch


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a restore.

    ``into`` is the path of a waiting QEMU's QMP socket, ``xml`` a domain XML that takes the place
    of the image's. With ``trust_image`` it does not matter who could have written the image, nor
    what its XML names. ``for_operator``: what root has set of guests and policies is binding.
    With ``through_libvirt`` libvirt reads the image by its path itself. ``without_metadata``
    restores an image whose metadata are lost by its stream and by what is asked.
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
    direct_io: Switch = "auto"
    channels: int | None = None
    policy: str | None = None
    again: bool = False
    force: bool = False
    without_metadata: bool = False
    timeout: float | None = None
