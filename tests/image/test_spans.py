"""Set operations on parts of files and on extents."""

import itertools
import random

from mapsave.image import spans


def test_joined() -> None:
    assert spans.joined([(5, 7), (0, 2), (2, 3), (6, 9), (20, 21)]) == [(0, 3), (5, 9), (20, 21)]


def test_what_is_left_is_as_byte_by_byte() -> None:
    """Against a map of each byte, for extents in any pieces."""
    chance = random.Random(7)
    for _ in range(300):
        extents, at = [], 0
        while at < 200:
            at += chance.randrange(5)
            length = chance.randrange(1, 12)
            extents.append((at, chance.choice((at + 1000, chance.randrange(9999))), length))
            at += length
        starts = [chance.randrange(220) for _ in range(chance.randrange(6))]
        parts = spans.joined((start, start + chance.randrange(1, 30)) for start in starts)
        places = {
            logical + byte: physical + byte
            for logical, physical, length in extents
            for byte in range(length)
        }
        for start, end in parts:
            for byte in range(start, end):
                places.pop(byte, None)
        left = spans.without(extents, parts)
        assert places == {
            logical + byte: physical + byte
            for logical, physical, length in left
            for byte in range(length)
        }
        for (logical, physical, length), after in itertools.pairwise(left):
            assert (logical + length, physical + length) != after[:2]


def test_the_same_in_other_pieces_is_the_same() -> None:
    whole = [(0, 1000, 100)]
    pieces = [(0, 1000, 10), (10, 5555, 5), (15, 1015, 85)]
    assert spans.without(whole, [(10, 15)]) == spans.without(pieces, [(10, 15)])
    assert spans.without(whole, [(10, 14)]) != spans.without(pieces, [(10, 14)])
