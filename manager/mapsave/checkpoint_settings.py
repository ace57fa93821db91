"""For how long a checkpoint may pause its guest, and what is done where it would be longer."""

from typing import Annotated, Literal

from mapsave.key_types import Duration
from mapsave.keys import Keys, help

Above = Literal["take", "again", "live", "refuse"]


class CheckpointSettings(Keys, frozen=True):
    """Limits of checkpoints of guests that run on."""

    pause: Annotated[
        Duration,
        help("What is dirty is written before the pause until that is predicted to be shorter."),
    ] = 0.1
    above: Annotated[
        Above,
        help(
            "If it is predicted to be longer: take the checkpoint, try again for `patience` and "
            "then refuse, save the guest live, or refuse."
        ),
    ] = "take"
    patience: Annotated[
        Duration, help("For how long it is tried again, while the guest runs; see `above`.")
    ] = 60.0
