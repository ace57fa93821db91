"""Write the RAM of a checkpoint afresh where its file is in so many extents that they take long.

Then the RAM file shares what was written, which is in few extents (``image/rejoining.py``): the
checkpoints after it are as quick as the first.
"""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

from mapsave import units
from mapsave.image import composing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapsave.image import store
    from mapsave.image.mapped_ram import RamBlock
    from mapsave.image.reflink import Mirror

# Extents, which take the kernel some 0.1 ms each outside of the pause; and of small guests so many
# bytes of RAM for each.
_MOST, _LEAST = 500_000, 4000
_EACH = 8 * units.KIB
# How much of the RAM must be free: the image's own, what the guest dirties, and some besides.
_ROOM = 2.2


@dataclasses.dataclass
class FreshRam:
    """How the blocks are put into the image: shared, or written where that ``is_wanted``.

    ``after`` is in how many extents the RAM files are once they share what was written.
    """

    mirrors: Mapping[str, Mirror]
    extents: int
    is_wanted: bool
    why_not: str | None = None
    after: int | None = None
    _places: list[tuple[Mirror, int]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(
        cls, mirrors: Mapping[str, Mirror], extents: int, ram: int, held: store.Directory
    ) -> FreshRam:
        """Return what is done with RAM of so many bytes in so many extents. Raises OSError."""
        found = cls(mirrors, extents, extents > max(_LEAST, min(_MOST, ram // _EACH)))
        if found.is_wanted and held.free_bytes() < ram * _ROOM:
            found.is_wanted = False
            found.why_not = "there is too little room to write its RAM afresh"
        return found

    def put(self, fd: int, block: RamBlock, copy: int) -> None:
        """Put a block into the image, whose other file is ``copy``. Raises OSError."""
        if not self.is_wanted:
            composing.share_file(fd, block, copy)
            return
        mirror = self.mirrors[block.name]
        mirror.copy_to(fd, block.pages_offset)
        self._places.append((mirror, block.pages_offset))

    def rejoin(self, fd: int) -> None:
        """Have the RAM files share what was written, if anything was; where they cannot, note it.

        The image is whole without that. Raises OSError only where it is cancelled.
        """
        if not self._places:
            return
        try:
            self.after = sum(mirror.rejoin(fd, at) for mirror, at in self._places)
        except OSError as error:
            if error.errno == errno.ECANCELED:
                raise
            self.why_not = f"its RAM file cannot share what was written: {error.strerror}"

    def warning(self) -> str | None:
        """Return what the user should know."""
        many = f"the guest's RAM file was in {self.extents:,} extents, and each takes time"
        if self.after is not None:
            return (
                f"{many}: the image was written afresh, and the file shares it, in "
                f"{self.after:,} extents"
            )
        if self.why_not is not None:
            return f"{many}, but {self.why_not}: save the guest and restore it when convenient"
        return None
