"""What the database of a small fleet could know: for metrics."""

import datetime

from mapsave.fleet.metrics import Facts

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
AGO = NOW - datetime.timedelta(seconds=90)
_HOST = {"target": "nas1", "saves": 2, "version": "1", "service": None, "guests": 3, "queued": 2}

SOME = Facts(
    queue={
        "later": 4,
        "todo": 2,
        "doing": 1,
        "oldest": AGO,
        "now": NOW,
        "term": 7,
        "requests": 1,
        "is_led": True,
    },
    hosts=[
        {**_HOST, "host": "rack1-a", "last_word": AGO, "is_silent": False, "running": 1},
        {**_HOST, "host": "rack1-b", "last_word": AGO, "is_silent": True, "running": 0},
        {**_HOST, "host": 'odd"\\', "last_word": None, "is_silent": None, "running": 0},
    ],
    jobs=[
        {
            "job": "nightly",
            "run": 3,
            "last_run": AGO,
            "ended": NOW,
            "last_success": AGO,
            "counts": {"succeeded": 5, "failed": 2},
            "last_due": AGO,
            "cancelled": False,
        },
        {
            "job": "new",
            "run": None,
            "last_run": None,
            "ended": None,
            "last_success": None,
            "counts": None,
            "last_due": AGO,
            "cancelled": None,
        },
    ],
    targets=[
        {"target": "nas1", "saves": 4, "bandwidth": None, "used": 1, "waiting": 1}
        | {"waiting_since": AGO},
        {"target": "nas2", "saves": 8, "bandwidth": 1 << 30, "used": 0, "waiting": 0}
        | {"waiting_since": None},
    ],
    next_runs={"new": 1767312000.5},
)
