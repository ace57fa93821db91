"""Plans against what was measured by hand (docs/benchmarks.md): layouts, ways, and their times."""

import msgspec
import pytest
from mapsave.config import SaveSettings
from mapsave.plan import cost, planner, probe, strategy
from mapsave.plan.cost import Way
from mapsave.plan.layout import WINDOW, Layout
from mapsave.plan.planner import Learned

from tests.kit.layouts import half_zero


def planned(settings: SaveSettings, layout: Layout) -> planner.Plan:
    return planner.plan(settings, Learned(layout, probe.TYPICAL), planner.Bounds())


@pytest.mark.parametrize(
    ("run", "measured"),
    [
        # Direct and multifd, direct and legacy, direct and none, page cache and multifd: seconds.
        (1, (22.8, 23, 1.5, 2.75)),
        (4, (16.9, 7.1, 2.2, 3.1)),
        (16, (12.5, 2.0, 2.0, 2.2)),
        (64, (1.0, 0.9, 2.1, 1.3)),
    ],
)
def test_predictions_come_near_to_what_was_measured(run: int, measured: tuple[float, ...]) -> None:
    ways = ((True, "multifd"), (True, "legacy"), (True, "none"), (False, "multifd"))
    for (direct, zero_pages), seconds in zip(ways, measured, strict=True):
        way = Way(direct_io=direct, zero_pages=zero_pages, channels=8, preallocate=False)
        found = cost.predict(half_zero(run), probe.TYPICAL, way)
        assert seconds / 2 < found.seconds < seconds * 1.5, way


def test_what_is_written_and_what_it_takes_on_the_disk() -> None:
    layout = half_zero(16)
    way = Way(direct_io=True, zero_pages="multifd", channels=8, preallocate=False)
    found = cost.predict(layout, probe.TYPICAL, way)
    assert found.written_bytes == found.file_bytes == 1 << 30
    for whole in (
        Way(direct_io=True, zero_pages="none", channels=8, preallocate=False),
        Way(direct_io=True, zero_pages="multifd", channels=8, preallocate=True),
    ):
        assert cost.predict(layout, probe.TYPICAL, whole).file_bytes == 2 << 30


@pytest.mark.parametrize(
    ("run", "zero_pages"), [(1, "none"), (4, "none"), (16, "legacy"), (512, "multifd")]
)
def test_the_choice_follows_the_layout(run: int, zero_pages: str) -> None:
    assert planned(SaveSettings(), half_zero(run)).chosen.way.zero_pages == zero_pages


def test_no_alternative_is_much_faster_than_the_choice() -> None:
    for run in (1, 2, 4, 8, 16, 32, 64, 128):
        found = planned(SaveSettings(), half_zero(run))
        assert found.chosen.seconds <= found.others[0].seconds * 1.1 + 0.02


def test_an_idle_guest_is_saved_as_ever() -> None:
    layout = Layout(1 << 18, (0,) * 63 + ((1 << WINDOW) - 1,), "test")
    way = planned(SaveSettings(), layout).chosen.way
    usual = strategy.choose(SaveSettings())
    assert (way.direct_io, way.zero_pages, way.channels, way.preallocate) == (
        *(usual.direct_io, usual.zero_pages),
        *(usual.channels, usual.preallocate),
    )


def test_what_the_settings_say_is_so() -> None:
    settings = SaveSettings(direct_io="off", zero_pages="legacy", channels=3, preallocate="on")
    way = planned(settings, half_zero(1)).chosen.way
    assert way == Way(direct_io=False, zero_pages="legacy", channels=3, preallocate=True)


def test_space_instead_of_time() -> None:
    layout = half_zero(1)
    small = planned(SaveSettings(prefer="space"), layout).chosen
    assert small.file_bytes == 1 << 30
    limited = planned(SaveSettings(max_file_bytes=3 << 29), layout)
    assert limited.chosen == small
    none = planned(SaveSettings(max_file_bytes=1 << 20), layout)
    assert none.chosen.file_bytes == 1 << 30
    assert "none is within max_file_bytes" in none.reason


def test_few_channels_where_the_limits_of_qemu_say_so() -> None:
    learned = Learned(half_zero(512), probe.TYPICAL)
    most = strategy.Most(3, "few threads left")
    assert strategy.choose(SaveSettings(), most=most, learned=learned).channels == 3
    assert strategy.choose(SaveSettings(), bandwidth=1 << 20, learned=learned).channels == 2


def test_a_directory_without_direct_io() -> None:
    learned = Learned(half_zero(1), probe.Probe({}, {}, {}, 1e-9, 1e-9, 1.0))
    chosen = strategy.choose(SaveSettings(), direct_io_refusal="none here", learned=learned)
    assert not chosen.direct_io


def test_a_file_of_all_pages_is_written_only_where_there_is_room_for_others_too() -> None:
    layout = half_zero(1)
    for free_bytes, size in ((4 << 30, 2 << 30), ((3 << 30) - 1, 1 << 30)):
        learned = Learned(layout, probe.TYPICAL, free_bytes=free_bytes)
        found = planner.plan(SaveSettings(), learned, planner.Bounds())
        assert found.chosen.file_bytes == size
    assert "free space" in found.reason


def test_memory_is_not_filled_with_zeros() -> None:
    learned = Learned(half_zero(1), probe.TYPICAL, in_memory=True)
    found = planner.plan(SaveSettings(), learned, planner.Bounds())
    assert found.chosen.way.zero_pages != "none"


def test_zeros_cost_bandwidth() -> None:
    learned = Learned(half_zero(1), probe.TYPICAL)
    found = planner.plan(SaveSettings(), learned, planner.Bounds(bandwidth=100 << 20))
    assert found.chosen.written_bytes == 1 << 30
    assert found.chosen.seconds >= 1024 / 100


def test_where_space_cannot_be_preallocated_it_is_not_planned() -> None:
    figures = msgspec.structs.replace(probe.TYPICAL, preallocated={})
    found = planner.plan(SaveSettings(), Learned(half_zero(1), figures), planner.Bounds())
    assert not any(each.way.preallocate for each in (found.chosen, *found.others))


def test_no_more_channels_than_the_limits_were_asked_for() -> None:
    found = planned(SaveSettings(), half_zero(512))
    most = max(each.way.channels for each in (found.chosen, *found.others))
    assert most == strategy.DEFAULT_CHANNELS


def test_what_is_not_known_is_said() -> None:
    chosen = strategy.choose(SaveSettings(), learned="QEMU's process cannot be seen")
    assert chosen == strategy.choose(SaveSettings())
    assert chosen.reasons["plan"] == "the usual choice: QEMU's process cannot be seen"
