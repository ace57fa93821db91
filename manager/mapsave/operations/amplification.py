"""By what factor the writes of a guest are amplified whose RAM is a shared file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapsave import units
from mapsave.monitor import folios, pagemap

if TYPE_CHECKING:
    from mapsave.operations.facts import Facts
    from mapsave.operations.shared_ram import SharedRam

_MUCH = 1.5


def shown(found: Facts, shared: SharedRam) -> str:
    """Return how much RAM an image shares, and what is written of what the guest changes."""
    size = units.format_size
    text = f"{size(shared.bytes)} shared, {size(shared.written)} written"
    blocks = [(found.blocks[part.block], part.length) for part in shared.parts]
    parts = [
        range(block.address, block.address + length)
        for block, length in blocks
        if block.address is not None
    ]
    mean = folios.mean_bytes(found.pid, parts) if found.pid is not None else None
    if mean is None:
        return f"{text}; how much is written for each page that changes is not known"
    factor = mean / pagemap.PAGE
    if factor < _MUCH:
        return f"{text}; for each page that changes, that page is written"
    return (
        f"{text}; for each page that changes, {size(round(mean))} are written ({factor:.0f} "
        "times as much), by the folios of its RAM file: 'mapsave setup memory' says how to have "
        "one with small folios"
    )
