"""The states of an operation, as the API, the history and the metrics name them."""

import enum


class State(enum.StrEnum):
    """The state of an operation; the last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMMITTING = "committing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset((State.DONE, State.FAILED, State.CANCELLED))
