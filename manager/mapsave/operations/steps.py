"""The steps of operations, as the crash journal records them: each before it is taken."""

import enum


class Step(enum.StrEnum):
    """A step of a save or a restore, or of what is done around them."""

    BEGIN = "begin"
    TIDY = "tidy"  # the outcome is settled: only labels and files are left to put right

    # Of a save.
    RULES = "rules"  # let QEMU's profile have the partial image
    LABEL = "label"  # of a restore as well
    HAND_OVER = "hand-over"
    PAUSE = "pause"
    MIGRATE = "migrate"
    COMPLETE = "complete"  # QEMU has written its stream
    RESUME = "resume"  # the guest, before its image is committed
    COMMIT = "commit"
    COMMITTED = "committed"

    # Of a restore.
    ATTACH = "attach"
    LAUNCH = "launch"
    LINK = "link"  # by which a QEMU of libvirt's opens the image
    LOAD = "load"
    LOADED = "loaded"  # by libvirt itself
    MARK = "mark"  # the image as restored
    RUN = "run"

    # Around an operation.
    BEHIND = "behind"  # run the hooks that come after it
