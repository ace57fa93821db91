"""What several outcomes come to together."""

from __future__ import annotations

from collections.abc import Iterable

# What is worst to the one who reads the exit code: a lost or damaged thing before a refused one.
_WORST_FIRST = (1, 4, 5, 6, 7, 9, 8, 3, 2, 0)


def worst(codes: Iterable[int]) -> int:
    """Return the worst of the exit codes of several operations; 0 if there is none."""
    found = {0, *codes}
    return next(code for code in _WORST_FIRST if code in found)
