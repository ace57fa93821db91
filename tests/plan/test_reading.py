"""Plans of restores, against what was measured by hand (docs/benchmarks.md)."""

import itertools
import os

import pytest
from mapsave import keys
from mapsave.config import Config, Guest
from mapsave.image import image
from mapsave.operations import restore_request
from mapsave.plan import cost, layout, planner, probe, strategy
from mapsave.plan.cost import ReadWay
from mapsave.plan.layout import Stored
from mapsave.plan.planner import LearnedImage, ReadPlan
from mapsave.restore_settings import RestoreOptions, RestoreSettings

from tests.image import build

_GIB_OF_PAGES = (1 << 30) // 4096
AUTO, ANY = RestoreSettings(), planner.Bounds()


def stored(run: int, cached: float = 0.0) -> Stored:
    """Return an image of 1 GiB in runs of so many pages."""
    return Stored(_GIB_OF_PAGES, _GIB_OF_PAGES / min(run, layout.READ_PAGES), cached)


def planned(
    found: Stored,
    settings: RestoreSettings = AUTO,
    figures: probe.Probe = probe.TYPICAL,
    *,
    bounds: planner.Bounds = ANY,
) -> ReadPlan:
    return planner.plan_read(settings, LearnedImage(found, figures), bounds)


@pytest.mark.parametrize(
    ("gigabytes", "run", "direct_io", "channels", "measured"),
    [
        (4, 512, True, 2, 4.5),
        (4, 512, True, 8, 3.0),
        (4, 512, True, 16, 2.7),
        (1, 1, True, 2, 16.5),
        (1, 1, True, 8, 8.0),
        (1, 1, False, 8, 6.0),
    ],
)
def test_predictions_come_near_to_what_was_measured(
    gigabytes: int, run: int, direct_io: bool, channels: int, measured: float
) -> None:
    one = stored(run)
    whole = Stored(gigabytes * one.pages, gigabytes * one.requests)
    way = ReadWay(direct_io=direct_io, channels=channels)
    found = cost.predict_read(whole, probe.TYPICAL, way).seconds
    assert measured / 2 < found < measured * 1.5


def test_the_choice_follows_the_runs() -> None:
    """Small reads need many in flight, or readahead; of large ones fewer suffice."""
    for run, direct_io, channels in ((1, False, 16), (4, True, 16), (512, True, 8)):
        expected = ReadWay(direct_io=direct_io, channels=channels)
        assert planned(stored(run)).chosen.way == expected


def test_no_alternative_is_much_faster_than_the_choice() -> None:
    for run, cached in itertools.product((1, 4, 16, 64, 512), (0.0, 0.5, 1.0)):
        found = planned(stored(run, cached))
        assert found.chosen.seconds <= found.others[0].seconds * 1.1 + 0.02


def test_what_is_in_the_page_cache_is_read_from_there() -> None:
    found = planned(stored(512, cached=1.0))
    assert not found.chosen.way.direct_io
    assert "100% in the page cache" in found.reason


def test_a_file_system_without_direct_io() -> None:
    found = planned(stored(1), bounds=planner.Bounds(takes_direct=False))
    assert not any(each.way.direct_io for each in (found.chosen, *found.others))
    found = planned(stored(1), figures=probe.Probe({}, {}, {}, 1e-9, 1e-9, 1.0))
    assert found.chosen.seconds > 0


def test_what_the_settings_say_is_so() -> None:
    settings = RestoreSettings(direct_io="off", channels=3)
    found = planned(stored(1), settings, bounds=planner.Bounds(most_channels=2))
    assert (found.chosen.way, found.others) == (ReadWay(direct_io=False, channels=3), ())


def test_what_is_asked_for_wins_over_the_configuration() -> None:
    config = Config(restore=RestoreSettings(direct_io="off", channels=3, stall=7.0))
    for asked, expected in (
        (restore_request.Request("x"), config.restore),
        (
            restore_request.Request("x", direct_io="on", channels="auto"),
            RestoreSettings(direct_io="on", channels="auto", stall=7.0),
        ),
    ):
        assert asked.settings(config) == expected


def test_what_is_set_for_a_guest_comes_between_both() -> None:
    own = keys.read({"channels": 5, "instant": "on"}, RestoreOptions)
    config = Config(
        restore=RestoreSettings(direct_io="off", channels=3),
        guests={"db": Guest("db", restore=own), "web": Guest("web")},
    )
    found = restore_request.Request("x").settings(config, "db")
    assert found == RestoreSettings(direct_io="off", channels=5, instant="on")
    asked = restore_request.Request("x", channels=7, instant="off")
    wanted = RestoreSettings(direct_io="off", channels=7, instant="off")
    assert asked.settings(config, "db") == wanted
    for other in ("web", "unknown", None):
        assert restore_request.Request("x").settings(config, other) == config.restore


def test_earlier_restores_correct_the_prediction() -> None:
    learned = LearnedImage(stored(512), probe.TYPICAL, {"direct-read": 4.0})
    found = planner.plan_read(RestoreSettings(), learned, planner.Bounds())
    assert not found.chosen.way.direct_io
    before = planned(stored(512))
    (direct,) = (each for each in found.others if each.way == before.chosen.way)
    assert direct.seconds == pytest.approx(4 * before.chosen.seconds)


def test_fewer_channels_by_the_limits_are_not_as_planned() -> None:
    learned = LearnedImage(stored(4), probe.TYPICAL)
    chosen = strategy.choose_read(RestoreSettings(), learned, takes_direct=True, shared=None)
    assert chosen.is_as_planned
    assert chosen.limited(None) is chosen
    few = chosen.limited(strategy.Most(3, "few threads left"))
    assert few.parameters() == {"direct-io": True, "multifd-channels": 3}
    assert few.reasons["channels"] == "few threads left"
    assert not few.is_as_planned


def test_an_empty_image_takes_no_time() -> None:
    assert (
        cost.predict_read(
            Stored(0, 0.0), probe.TYPICAL, ReadWay(direct_io=True, channels=8)
        ).seconds
        == 0.0
    )


@pytest.mark.parametrize(
    ("used", "requests"),
    [
        (range(0, 600, 2), 300),
        (range(600), 3),  # of 256, 256 and 88 pages
        ([0, 1, 2, *range(100, 356)], 2),
    ],
)
def test_requests_for_the_runs_of_an_image(used: range | list[int], requests: int) -> None:
    """By powers of two, so nearly."""
    made = build.Image(blocks=[build.Block("pc.ram", 1024 * 4096, tuple(used))]).built()
    with made.opened() as path, image.opened(path) as opened:
        found = layout.of_image(opened.fd, opened.validate())
    assert found.pages == len(used)
    assert found.requests == pytest.approx(requests, rel=0.3)


def test_what_of_an_image_is_in_the_page_cache() -> None:
    """A file system that does not write it to a disk holds all of it there."""
    made = build.Image(blocks=[build.Block("pc.ram", 256 * 4096, tuple(range(256)))]).built()
    with made.opened() as path, image.opened(path) as opened:
        contents = opened.validate()
        assert layout.of_image(opened.fd, contents).cached == 0
        (block,) = contents.stream.blocks
        with open(path, "r+b") as file:
            os.pwrite(file.fileno(), os.urandom(block.used_length), block.pages_offset)
        assert layout.of_image(opened.fd, contents).cached == 1
