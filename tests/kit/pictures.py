"""Compare what a page looks like with a picture of it that was stored.

Browsers draw letters a little differently from one version to the next; so what is compared are
averages, of small pieces each: a word or a button that is missing, moved or of another colour
changes some of them by far more than a new version changes any.
"""

import io
from pathlib import Path

from PIL import Image, ImageChops

_PIECE = 16  # pixels, across and down
_MOST = 22  # of 255, by which the average of a piece may differ
_COLOURS = 48  # of a stored picture: flat colours and the edges of letters
LARGEST = 60_000  # bytes of a stored picture


def difference(taken: bytes, stored: Path) -> str | None:
    """Return where a picture differs from the stored one, or None where it does not."""
    new, old = (Image.open(each).convert("RGB") for each in (io.BytesIO(taken), stored))
    if new.size != old.size:
        return f"{new.size[0]}x{new.size[1]} pixels, not {old.size[0]}x{old.size[1]}"
    pieces = ImageChops.difference(new.reduce(_PIECE), old.reduce(_PIECE))
    worst = max(high for _, high in pieces.getextrema())
    if worst <= _MOST:
        return None
    marked = pieces.convert("RGB").point(lambda value: 255 if value > _MOST else 0)
    left, upper, right, lower = (each * _PIECE for each in marked.getbbox() or (0, 0, 0, 0))
    return f"by {worst} of 255 between {left},{upper} and {right},{lower}"


def store(taken: bytes, place: Path) -> None:
    """Store a picture in few colours."""
    few = Image.open(io.BytesIO(taken)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    few.save(place, optimize=True)
