"""Sizes and durations: what people write, and what they read."""

import contextlib
import datetime
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
        ("5min 20s", 320.0),
        ("1 hour 2 minutes", 3720.0),
        ("1day", 86400.0),
        ("2 weeks", 1209600.0),
        ("1w1d", 691200.0),
        ("1M", 2629800.0),
        ("1 year", 31557600.0),
        ("55s500msec", 55.5),
        ("200 usec", 0.0002),
        ("3hr", 10800.0),
        (" 30s ", 30.0),
    ],
)
def test_duration(text: str | float, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "m", "-5", "-5s", "1:30", "1:15 minutes", "m15", "15m15", "5 S"]
)
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
        (3600, "1 h"),
        (0.9999, "1 s"),
        (5.0, "5 s"),
        (2.5, "2.5 s"),
        (59.999, "1 m"),
        (900, "15 m"),
        (7384, "2 h 03 m"),
        (172799, "47 h 59 m"),
        (187200, "2 d 04 h"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000+00:00"),
        (1795747752.319, "2026-11-27T02:49:12.319+00:00"),
        (-1.5, "1969-12-31T23:59:58.500+00:00"),
        (1e20, "9998-12-31T23:59:59.000+00:00"),
        (-1e20, "1000-01-01T00:00:00.000+00:00"),
    ],
)
def test_timestamp(seconds: float, text: str) -> None:
    assert units.timestamp(seconds) == text
    when = datetime.datetime.fromisoformat(text)
    assert datetime.datetime.fromisoformat(units.format_time(when, precisely=True)) == when


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 60), st.integers(1, 1 << 30))
def test_round_up_is_the_least_multiple(value: int, alignment: int) -> None:
    rounded = units.round_up(value, alignment)
    assert rounded % alignment == 0
    assert 0 <= rounded - value < alignment
