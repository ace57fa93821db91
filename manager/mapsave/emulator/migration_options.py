"""Migration parameters: defaults, types and limits of QEMU 10.0.2.

Source: QEMU's ``migration/options.c`` (``migrate_params_check``) of 10.0; every text observed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapsave.emulator import schema
from mapsave.emulator.faults import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mapsave.emulator.capabilities import Capabilities

MAX_DOWNTIME = 2000 * 1000  # milliseconds
_U8 = schema.unsigned(8)

DEFAULTS: dict[str, Any] = {
    "announce-initial": 50,
    "announce-max": 550,
    "announce-rounds": 5,
    "announce-step": 100,
    "throttle-trigger-threshold": 50,
    "cpu-throttle-initial": 20,
    "cpu-throttle-increment": 10,
    "cpu-throttle-tailslow": False,
    "tls-creds": "",
    "tls-hostname": "",
    "tls-authz": "",
    "max-bandwidth": 128 << 20,
    "avail-switchover-bandwidth": 0,
    "downtime-limit": 300,
    "x-checkpoint-delay": 20000,
    "multifd-channels": 2,
    "xbzrle-cache-size": 64 << 20,
    "max-postcopy-bandwidth": 0,
    "max-cpu-throttle": 99,
    "multifd-compression": "none",
    "multifd-zlib-level": 1,
    "multifd-qatzip-level": 1,
    "multifd-zstd-level": 1,
    "x-vcpu-dirty-limit-period": 1000,
    "vcpu-dirty-limit": 1,
    "mode": "normal",
    "zero-page-detection": "multifd",
    "direct-io": False,
}

TYPES: dict[str, schema.Type] = {
    **dict.fromkeys(DEFAULTS, schema.uint64),
    **dict.fromkeys(("tls-creds", "tls-hostname", "tls-authz"), schema.string_or_null),
    **dict.fromkeys(("cpu-throttle-tailslow", "direct-io"), schema.boolean),
    **dict.fromkeys(
        (
            "throttle-trigger-threshold",
            "cpu-throttle-initial",
            "cpu-throttle-increment",
            "max-cpu-throttle",
            "multifd-channels",
            "multifd-zlib-level",
            "multifd-qatzip-level",
            "multifd-zstd-level",
        ),
        _U8,
    ),
    "x-checkpoint-delay": schema.unsigned(32),
    # Debian's 10.0.2 is built with zlib and zstd; qatzip, qpl and uadk are not there.
    "multifd-compression": schema.enum("none", "zlib", "zstd"),
    "mode": schema.enum("normal", "cpr-reboot", "cpr-transfer"),
    "zero-page-detection": schema.enum("none", "legacy", "multifd"),
    "block-bitmap-mapping": schema.array(schema.anything),
}


def _percent(low: int, high: int) -> tuple[Callable[[int], bool], str]:
    text = f"expects an integer in the range of {low} to {high}"
    return (lambda value: low <= value <= high), text


def _between(low: int, high: int) -> tuple[Callable[[int], bool], str]:
    return (lambda value: low <= value <= high), f"expects a value between {low} and {high}"


def _is_cache_size(value: int) -> bool:
    return value >= 4096 and value & (value - 1) == 0


# Name and limits, in the order in which QEMU looks at them. Its texts spell most with underscores.
_LIMITS: dict[str, tuple[Callable[[int], bool], str]] = {
    "throttle-trigger-threshold": _percent(1, 100),
    "cpu-throttle-initial": _percent(1, 99),
    "cpu-throttle-increment": _percent(1, 99),
    "downtime-limit": (
        lambda value: value <= MAX_DOWNTIME,
        "expects an integer in the range of 0 to (2000 * 1000) ms",
    ),
    "multifd-channels": _between(1, 255),
    "multifd-zlib-level": _between(0, 9),
    "multifd-qatzip-level": _between(1, 9),
    "multifd-zstd-level": _between(0, 20),
    "xbzrle-cache-size": (
        _is_cache_size,
        "expects a power of two no less than the target page size",
    ),
    "announce-initial": _between(0, 100000),
    "announce-max": _between(0, 100000),
    "announce-rounds": _between(0, 1000),
    "announce-step": (lambda value: 1 <= value <= 10000, "expects a value between 0 and 10000"),
    "vcpu-dirty-limit": (lambda value: value >= 1, "must be greater than 1 MB/s"),
}


class Parameters:
    """The parameters' values, by their names on the wire."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = dict(DEFAULTS)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    @property
    def compressed(self) -> bool:
        """True if the channels would compress."""
        return bool(self._values["multifd-compression"] != "none")

    @property
    def encrypted(self) -> bool:
        """True if the channels would use TLS."""
        return bool(self._values["tls-creds"])

    def listing(self) -> dict[str, Any]:
        """Return what ``query-migrate-parameters`` answers."""
        return dict(self._values)

    def change(self, wanted: Mapping[str, Any], capabilities: Capabilities) -> None:
        """Set ``wanted``, checked by type before. Raises QmpError and sets nothing.

        As in QEMU 10.0.2 compression is not looked at in ``wanted`` but in what is in force: with
        mapped-ram it can be set once, and from then on every change is refused.
        """
        new = {**self._values, **wanted}
        self._check_limits(new)
        if capabilities["zero-copy-send"] and (
            new["multifd-compression"] != "none" or new["tls-creds"]
        ):
            raise QmpError("Zero copy only available for non-compressed non-TLS multifd migration")
        if capabilities["mapped-ram"] and (self.compressed or self.encrypted):
            raise QmpError("Mapped-ram only available for non-compressed non-TLS multifd migration")
        self._values = new

    @staticmethod
    def _check_limits(new: Mapping[str, Any]) -> None:
        for name, (allowed, text) in _LIMITS.items():
            if not allowed(new[name]):
                raise QmpError(f"Parameter '{name.replace('-', '_')}' {text}")
        if not new["cpu-throttle-initial"] <= new["max-cpu-throttle"] <= 99:
            raise QmpError(
                "Parameter 'max_cpu_throttle' expects an integer in the range of"
                " cpu_throttle_initial to 99"
            )
        if not 1 <= new["x-vcpu-dirty-limit-period"] <= 1000:
            raise QmpError(
                "Parameter 'x-vcpu-dirty-limit-period' expects a value between 1 and 1000"
            )
