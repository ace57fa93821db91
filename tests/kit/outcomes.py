"""What ``mapsave recover`` reports of an operation."""

PUT_BACK = "save rolled back"
COMMITTED = "image committed"
UNDONE = "destination stopped, image as before"
NOTHING = "nothing was in progress any more"
RESTORED = "guest restored"
LOADED = (
    "guest restored and left paused because it may have been used since; resume it ('cont' or "
    "virsh resume) or shut it down; the image remains marked as restored"
)
TAKEN_OVER = (
    "image committed, but marked stale: the guest has been resumed since and was left running"
)
