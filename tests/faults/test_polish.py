"""The file system fails while an image is polished, or mapsave is killed: nothing is lost."""

import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from mapsave.image import image

from tests.faults import struck
from tests.kit import cli, inject, patterns, qemu, ram
from tests.kit.outcomes import COMMITTED
from tests.kit.patterns import MIB, PAGE

pytestmark = pytest.mark.usefixtures("images_in_memory")

IMAGE = "it.mapsave"
NAME = "web01"
# The first RAM block's bitmap lies before its pages, in the first MiB of the stream.
BITMAP = {"path": ".partial", "first": MIB, "last": 2 * MIB - 1}
HEADER = {"path": ".partial", "last": MIB - 1}


@dataclass(frozen=True)
class Work:
    """What there is to polish: ``pattern`` is in the RAM of a guest saved with ``zero_pages``."""

    pattern: patterns.Pattern
    zero_pages: str


FILL = Work(patterns.fragmented(1), "multifd")
DIG = Work(patterns.islands(1024, 1024), "none")


def holds(path: Path, before: ram.Snapshot) -> None:
    """Fail unless the image holds the RAM, page by page as its bitmaps have it."""
    with image.opened(path) as opened:
        for block in opened.validate().stream.blocks:
            raw = os.pread(opened.fd, block.bitmap_bytes, block.bitmap_offset)
            content = os.pread(opened.fd, block.used_length, block.pages_offset)
            was = before.files[block.name].read_bytes()
            for page in range(block.pages):
                place = slice(page * PAGE, (page + 1) * PAGE)
                is_set = raw[page >> 3] >> (page & 7) & 1
                assert (content[place] if is_set else bytes(PAGE)) == was[place], page


def image_of(site: cli.Site) -> Path:
    return Path(site.settings["images"]) / IMAGE


def save(site: cli.Site, work: Work, *rules: inject.Rule) -> cli.Result:
    words = ("save", NAME, "--image", IMAGE, "--direct-io", "off", "--zero-pages", work.zero_pages)
    return site.run(*words, "--json", env=inject.environment(*rules))


@pytest.mark.parametrize(
    ("work", "rule"),
    [
        (FILL, inject.Rule("pwrite", "errno", errno.EIO, **BITMAP)),
        (FILL, inject.Rule("pwrite", "errno", errno.ENOSPC, skip=3, **HEADER)),
        (DIG, inject.Rule("pwrite", "errno", errno.ENOSPC, skip=1, **BITMAP)),
        (DIG, inject.Rule("fallocate", "errno", errno.EIO, path=".partial", skip=1)),
    ],
)
def test_the_image_is_committed_all_the_same(
    site: cli.Site, tmp_path: Path, work: Work, rule: inject.Rule
) -> None:
    with qemu.guest(site, NAME, machine="none", memory="32M", ram=work.pattern) as guest:
        before = guest.snapshot_ram(tmp_path / "ram")
        done = save(site, work, rule)
        assert done.returncode == 0, done
        (warning,) = done.json()["warnings"]
        assert "could not be made faster to restore" in warning
        assert os.strerror(rule.argument) in warning
        guest.wait()
    assert site.run("verify", IMAGE, "--json", check=0).json()["warnings"] == []
    holds(image_of(site), before)


def test_a_file_system_that_makes_no_holes(site: cli.Site, tmp_path: Path) -> None:
    """What is dug is not read by a restore at least."""
    rule = inject.Rule("fallocate", "errno", errno.EOPNOTSUPP, path=".partial", count=-1)
    with qemu.guest(site, NAME, machine="none", memory="32M", ram=DIG.pattern) as guest:
        before = guest.snapshot_ram(tmp_path / "ram")
        done = save(site, DIG, rule).json()
        assert (done["warnings"], done["data_bytes"]) == ([], 16 * MIB)
    holds(image_of(site), before)


def test_what_is_polished_must_reach_the_disk(site: cli.Site) -> None:
    rule = inject.Rule("fsync", "errno", errno.EIO, path=".partial", skip=1)
    with qemu.guest(site, NAME, machine="none", memory="32M", ram=FILL.pattern) as guest:
        result = save(site, FILL, rule)
        assert result.returncode == 4, result
        result.error("save.commit")
        assert guest.alive()
        assert not list(image_of(site).parent.iterdir())
        assert not struck.journals(site)


@pytest.mark.parametrize(
    ("work", "rule", "is_gone"),
    [
        (FILL, inject.Rule("fsync", "kill", signal.SIGKILL, path=".partial", skip=1), False),
        (FILL, inject.Rule("rename", "kill", signal.SIGKILL, path=".partial"), True),
        (DIG, inject.Rule("fallocate", "kill", signal.SIGKILL, path=".partial", skip=1), True),
    ],
    ids=["filled", "complete", "dug in part"],
)
def test_recovery_commits_what_was_polished(
    site: cli.Site, tmp_path: Path, work: Work, rule: inject.Rule, is_gone: bool
) -> None:
    with qemu.guest(site, NAME, machine="none", memory="32M", ram=work.pattern) as guest:
        before = guest.snapshot_ram(tmp_path / "ram")
        assert save(site, work, rule).returncode == -signal.SIGKILL
        if is_gone:
            guest.kill()
            guest.wait()
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert line["outcome"].startswith(COMMITTED), line
    found = site.run("verify", IMAGE, "--json", check=0).json()
    assert (found["warnings"], found["written"]["holes"]) == ([], "checked")
    filled = site.run("inspect", IMAGE, "--json", check=0).json()["filled_bytes"]
    assert (filled > 15 * MIB) is (work is FILL)
    holds(image_of(site), before)
