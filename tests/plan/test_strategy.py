"""What is chosen for a save, and what the choice tells QEMU."""

from __future__ import annotations

from mapsave.plan import strategy
from mapsave.plan.strategy import Wishes


def test_without_wishes_the_directory_decides_about_direct_io() -> None:
    assert strategy.choose(Wishes(), None).direct_io
    refused = strategy.choose(Wishes(), "tmpfs takes none")
    assert not refused.direct_io
    assert refused.reasons["direct_io"] == "tmpfs takes none"


def test_a_limited_save_has_few_channels_and_tells_qemu_the_limit() -> None:
    limited = strategy.choose(Wishes(bandwidth=5 << 20), None)
    assert limited.parameters()["max-bandwidth"] == 5 << 20
    assert limited.channels == strategy.LIMITED_CHANNELS < strategy.DEFAULT_CHANNELS
    assert "bandwidth" in limited.reasons["channels"]
    assert limited.as_dict()["bandwidth"] == 5 << 20


def test_a_wish_wins_over_the_limit() -> None:
    assert strategy.choose(Wishes(bandwidth=1, channels=16), None).channels == 16


def test_without_a_limit_qemus_own_is_lifted() -> None:
    assert strategy.choose(Wishes(), None).parameters()["max-bandwidth"] == 0
