"""Migration capabilities and parameters: names, defaults, limits, and which of them go together.

Source: QEMU's ``migration/options.c`` (``migrate_caps_check``, ``migrate_params_check``) of 10.0;
every text observed on 10.0.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapsave.emulator import schema
from mapsave.emulator.faults import QmpError, report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAMES = (
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
    "switchover-ack",
    "dirty-limit",
    "mapped-ram",
)

_NOT_WITH_SNAPSHOT = (
    "postcopy-ram",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "return-path",
    "multifd",
    "pause-before-switchover",
    "auto-converge",
    "release-ram",
    "rdma-pin-all",
    "xbzrle",
    "x-colo",
    "validate-uuid",
    "zero-copy-send",
)


class Capabilities:
    """The switches, all off at the start."""

    def __init__(self) -> None:
        self._on: dict[str, bool] = dict.fromkeys(NAMES, False)

    def __getitem__(self, name: str) -> bool:
        return self._on[name]

    def listing(self) -> list[dict[str, object]]:
        """Return what ``query-migrate-capabilities`` answers."""
        return [{"state": state, "capability": name} for name, state in self._on.items()]

    def change(self, wanted: Mapping[str, bool], parameters: Parameters) -> None:
        """Set ``wanted`` all at once, or none. Raises QmpError if they do not go together."""
        new = {**self._on, **wanted}
        check(new, parameters)
        if wanted.get("zero-blocks"):
            report("warning: zero-blocks capability is deprecated")
        self._on = new


def check(on: Mapping[str, bool], parameters: Parameters) -> None:
    """Raise QmpError for the first pair in ``on`` that QEMU 10.0.2 does not allow."""
    if on["postcopy-ram"]:
        _refuse(on["x-ignore-shared"], "Postcopy is not compatible with ignore-shared")
        _refuse(on["multifd"], "Postcopy is not yet compatible with multifd")
    if on["background-snapshot"]:
        for name in _NOT_WITH_SNAPSHOT:
            _refuse(on[name], f"Background-snapshot is not compatible with {name}")
    if on["zero-copy-send"] and (
        not on["multifd"] or on["xbzrle"] or parameters.compressed or parameters.encrypted
    ):
        raise QmpError("Zero copy only available for non-compressed non-TLS multifd migration")
    if on["postcopy-preempt"]:
        _refuse(not on["postcopy-ram"], "Postcopy preempt requires postcopy-ram")
    if on["multifd"]:
        _refuse(on["xbzrle"], "Multifd is not compatible with xbzrle")
    if on["switchover-ack"] and not on["return-path"]:
        raise QmpError("Capability 'switchover-ack' requires capability 'return-path'")
    if on["dirty-limit"]:
        _check_dirty_limit(on)
    if on["mapped-ram"]:
        _refuse(on["xbzrle"], "Mapped-ram migration is incompatible with xbzrle")
        _refuse(on["postcopy-ram"], "Mapped-ram migration is incompatible with postcopy")


def _check_dirty_limit(on: Mapping[str, bool]) -> None:
    _refuse(
        on["auto-converge"],
        "dirty-limit conflicts with auto-converge either of then available currently",
    )
    raise QmpError("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set")


def _refuse(condition: bool, desc: str) -> None:
    if condition:
        raise QmpError(desc)


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
