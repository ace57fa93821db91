"""What is chosen for a save, and what the choice tells QEMU."""

from mapsave.config import SaveSettings
from mapsave.plan import strategy

DEFAULT = SaveSettings()


def test_by_default_the_directory_decides_about_direct_io() -> None:
    assert strategy.choose(DEFAULT).direct_io
    refused = strategy.choose(DEFAULT, direct_io_refusal="tmpfs takes none")
    assert not refused.direct_io
    assert refused.reasons["direct_io"] == "tmpfs takes none"


def test_a_limited_save_has_few_channels_and_tells_qemu_the_limit() -> None:
    limited = strategy.choose(DEFAULT, bandwidth=5 << 20)
    assert limited.parameters()["max-bandwidth"] == 5 << 20
    assert limited.channels == strategy.LIMITED_CHANNELS < strategy.DEFAULT_CHANNELS
    assert "bandwidth" in limited.reasons["channels"]
    assert limited.as_dict()["bandwidth_bytes_per_s"] == 5 << 20


def test_a_setting_wins_over_the_limit() -> None:
    assert strategy.choose(SaveSettings(channels=16), bandwidth=1).channels == 16


def test_without_a_limit_qemus_own_is_lifted() -> None:
    assert strategy.choose(DEFAULT).parameters()["max-bandwidth"] == 0
