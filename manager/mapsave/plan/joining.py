"""How long the gaps between used pages may be that a save fills, so that a restore is faster.

A filled gap saves the restore a request and costs it zeros, which also become resident in the
destination: so gaps are filled only as far as that gains time, and many times the data never.
"""

import math

from mapsave.image import gaps
from mapsave.image.gaps import Gaps
from mapsave.plan import cost
from mapsave.plan.probe import Probe

# Seconds that a page of a hole takes within a long read: it is cleared, and a page of memory taken.
_ZERO_PAGE = 1e-6
# Seconds that a restore must gain by it.
_WORTH = 0.05
# Zeros that are read at most for each used page.
_MOST_ZEROS = 3


def may_gain(used_pages: int, probe: Probe) -> bool:
    """Return whether an image has enough pages for gaps to matter, whatever they are like."""
    return used_pages * cost.read_request(probe) >= _WORTH


def longest(found: Gaps, used_pages: int, probe: Probe) -> int:
    """Return how many pages a gap may have to be filled; 0 where none is worth it."""
    request = cost.read_request(probe)
    best, most = 0, _WORTH
    for length, number, pages in zip(gaps.LENGTHS, found.number, found.pages, strict=True):
        gain = number * request - pages * _ZERO_PAGE
        if gain > most and not math.isclose(gain, most) and pages <= used_pages * _MOST_ZEROS:
            best, most = length, gain
    return best
