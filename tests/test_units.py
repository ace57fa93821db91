"""Sizes and durations: what people write, and what they read."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("64K", 65536),
        ("64k", 65536),
        ("64KB", 65536),
        ("64KiB", 65536),
        ("1M", 1 << 20),
        (" 4 GiB ", 4 << 30),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("9007199254740993", 9007199254740993),  # a float would lose the last bit
        ("9007199254740993K", 9007199254740993 << 10),
    ],
)
def test_size(text: str | int, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "K", "-1", "-1K", "1.5", "1.0001K", "1e3", "1X", "1KK", "1 2", "0x10", "1,5G", "inf"],
)
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        units.parse_size(text)


def test_size_beyond_all_floats_is_exact() -> None:
    assert units.parse_size("9" * 400 + ".5K") == int("9" * 400) * 1024 + 512
    with pytest.raises(ValueError, match="not a whole number"):
        units.parse_size("9" * 400 + ".3")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("0", 0.0),
        ("15m", 900.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        (" 30s ", 30.0),
    ],
)
def test_duration(text: str | float, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "-5s", "1:30", "15 minutes", "m15", "15m15", "5w"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        units.parse_duration(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "9" * 400, "9" * 400 + "h"])
def test_duration_is_finite(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        units.parse_duration(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12) | st.text("0123456789.kKmMgGtTpPiBsdh -+e_", max_size=12))
def test_random_text_is_a_number_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert units.parse_size(text) >= 0
    with contextlib.suppress(ValueError):
        assert 0 <= units.parse_duration(text) < math.inf


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (4 << 30, "4.0 GiB"),
        (1536 << 20, "1.5 GiB"),
        (5000 << 40, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (3.414, "3.41 s"),
        (125, "2 m 05 s"),
        (3599.4, "59 m 59 s"),
        (3600, "1 h 00 m"),
        (7384, "2 h 03 m"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 60), st.integers(1, 1 << 30))
def test_round_up_is_the_least_multiple(value: int, alignment: int) -> None:
    rounded = units.round_up(value, alignment)
    assert rounded % alignment == 0
    assert 0 <= rounded - value < alignment
