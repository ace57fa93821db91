"""What several outcomes come to together: an exit code, and for people words and a level."""

import enum
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# What is worst to the one who reads the exit code: a lost or damaged thing before a refused one.
_WORST_FIRST = (1, 4, 5, 6, 7, 9, 8, 3, 2, 0)
# Kinds of operations that are about several guests.
_OF_SEVERAL = ("job", "save-all", "restore-all", "clone")
# Numbers of guests in their results, and what people read.
_GOOD = {"saved": "saved", "restored": "restored", "cloned": "cloned"}
_BAD = {"failed": "FAILED", "no_time": "WITHOUT TIME"}
# Numbers of images in the result of a scrub.
_BAD_IMAGES = {"damaged": "DAMAGED", "unreadable": "UNREADABLE"}
_OTHER_IMAGES = {
    "without_digests": "without digests",
    "skipped": "skipped",
    "left": "left for the next run",
}


class Level(enum.StrEnum):
    """How bad an outcome is: all is well, something failed, nothing came of it."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Whole(NamedTuple):
    """What came of an operation on several guests: ``words`` such as "4 saved, 2 FAILED"."""

    words: str
    level: Level


def worst(codes: Iterable[int]) -> int:
    """Return the worst of the exit codes of several operations; 0 if there is none."""
    found = {0, *codes}
    return next(code for code in _WORST_FIRST if code in found)


def whole(kind: str, result: Mapping[str, Any] | None) -> Whole | None:
    """Return what ``result`` of an operation of ``kind`` comes to; None where it is about one.

    An error where guests failed and none was saved, restored or cloned, a warning where some were.
    Of a scrub an error where an image is bad.
    """
    if kind not in _OF_SEVERAL or result is None or result.get("dry_run"):
        return None
    if result.get("kind") == "scrub":
        return _of_scrub(result)
    good = {word: result[key] for key, word in _GOOD.items() if key in result}
    bad = {word: result[key] for key, word in _BAD.items() if result.get(key)}
    words = [f"{count} {word}" for word, count in (good | bad).items()]
    level = Level.INFO
    if bad:
        level = Level.WARNING if any(good.values()) else Level.ERROR
    elif result.get("exit_code"):
        level = Level.WARNING
        if kind == "job":
            words.append("old images NOT removed")
    return Whole(", ".join(words), level)


def _of_scrub(result: Mapping[str, Any]) -> Whole:
    bad = {word: result[key] for key, word in _BAD_IMAGES.items() if result[key]}
    rest = {word: result[key] for key, word in _OTHER_IMAGES.items() if result[key]}
    words = [
        f"{count} {word}" for word, count in ({"verified": result["verified"]} | bad | rest).items()
    ]
    return Whole(", ".join(words), Level.ERROR if bad else Level.INFO)
