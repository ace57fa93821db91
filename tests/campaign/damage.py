"""Damage what is on the disk: a journal between crash and recovery, or an image's structure."""

import os
import random
from pathlib import Path

from mapsave.image import image

_SLOTS = 8192  # the two superblock slots


def database(path: Path, rng: random.Random) -> str:
    """Damage a database at random; return what was done."""
    content = bytearray(path.read_bytes())
    way = rng.choice(("garbage", "cut", "first page", "flips"))
    if way == "garbage":
        content = bytearray(rng.randbytes(8192))
    elif way == "cut":
        del content[rng.randrange(len(content)) :]
    elif way == "first page":
        content[:100] = rng.randbytes(100)
    else:
        for _ in range(40):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    for suffix in ("-wal", "-shm"):  # SQLite would mend the database by its log
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return way


def journal(path: Path, rng: random.Random) -> str:
    """Damage a journal at random; return what was done."""
    content = bytearray(path.read_bytes())
    lines = bytes(content).splitlines(keepends=True)
    ways = ["flip", "cut", "garbage line", "garbage first", "zeros", "no line"]
    way = rng.choice(ways if content else ["garbage line"])
    if way == "flip":
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
        way = f"flip at {place}"
    elif way == "cut":
        place = rng.randrange(len(content))
        del content[place:]
        way = f"cut at {place}"
    elif way == "garbage line":
        content += rng.choice((b"garbage\n", b"[" * 100_000 + b"\n", b'{"step": 7}\n', b"\xff\xfe"))
    elif way == "garbage first":
        content[: len(lines[0])] = rng.choice((b"garbage\n", b"{}\n", b"[" * 100_000 + b"\n"))
    elif way == "zeros":
        first = rng.randrange(len(content))
        content[first : first + 512] = bytes(len(content[first : first + 512]))
        way = f"zeros from {first}"
    else:
        gone = rng.randrange(len(lines))
        content = bytearray(b"".join(lines[:gone] + lines[gone + 1 :]))
        way = f"line {gone} gone"
    path.write_bytes(content)
    return way


def structure(path: Path, rng: random.Random) -> str:
    """Change a byte of an image that is not a page's content; return which."""
    with image.opened(path) as opened:
        found = opened.validate()
        metadata = opened.block.stream_offset
        pages = sorted(
            (block.pages_offset, block.pages_offset + block.used_length)
            for block in found.stream.blocks
        )
        size = opened.size
    stretches = [(0, _SLOTS), (_SLOTS, min(metadata, _SLOTS + 8192))]
    place = metadata
    for first, last in pages:
        # Between a bitmap and its pages is a hole, which no one reads.
        stretches.append((place, min(first, place + 8192)))
        place = last
    stretches.append((place, size))
    first, last = rng.choice([each for each in stretches if each[0] < each[1]])
    at = rng.randrange(first, last)
    with path.open("r+b") as file:
        old = os.pread(file.fileno(), 1, at)
        new = bytes((old[0] ^ (1 << rng.randrange(8)),))
        os.pwrite(file.fileno(), new, at)
    return f"byte {at:#x} of {size:#x} (in {first:#x}-{last:#x}): {old.hex()} to {new.hex()}"
