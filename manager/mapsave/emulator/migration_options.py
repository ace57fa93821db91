"""Migration capabilities and parameters: names, defaults, limits, and which of them go together.

Source: QEMU's ``migration/options.c`` (``migrate_caps_check``, ``migrate_params_check``) of 10.0;
every text observed on 10.0.2; where 11.1 differs is in ``versions``.
"""

from __future__ import annotations

from collections.abc import Mapping

from mapsave.emulator import schema
from mapsave.emulator.faults import QmpError, report
from mapsave.emulator.versions import Version

Value = int | str | list[object]  # of a parameter; a switch is 0 or 1
_ZERO_COPY = "Zero copy only available for non-compressed non-TLS multifd migration"

_NOT_WITH_SNAPSHOT = (
    *("postcopy-ram", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate"),
    *("return-path", "multifd", "pause-before-switchover", "auto-converge", "release-ram"),
    *("rdma-pin-all", "xbzrle", "x-colo", "validate-uuid", "zero-copy-send"),
)


class Capabilities:
    def __init__(self, version: Version) -> None:
        self._version = version
        self._on: dict[str, bool] = dict.fromkeys(version.capabilities, False)

    def __getitem__(self, name: str) -> bool:
        return self._on[name]

    def listing(self) -> list[dict[str, object]]:
        return [{"state": state, "capability": name} for name, state in self._on.items()]

    def change(self, wanted: Mapping[str, bool], parameters: Parameters) -> None:
        """Set ``wanted`` all at once, or none. Raises QmpError if they do not go together."""
        new = {**self._on, **wanted}
        check(new, parameters, self._version)
        if wanted.get("zero-blocks"):
            report("warning: zero-blocks capability is deprecated")
        self._on = new


def check(on: Mapping[str, bool], parameters: Parameters, version: Version) -> None:
    """Raise QmpError for the first pair in ``on`` that QEMU does not allow."""
    if version.colo_needs_return_path and on["x-colo"] and not on["return-path"]:
        raise QmpError("Capability 'x-colo' requires capability 'return-path'")
    if on["postcopy-ram"]:
        _refuse(on["x-ignore-shared"], "Postcopy is not compatible with ignore-shared")
        if not version.has_multifd_postcopy:
            _refuse(on["multifd"], "Postcopy is not yet compatible with multifd")
    if on["background-snapshot"]:
        for name in _NOT_WITH_SNAPSHOT:
            _refuse(on[name], f"Background-snapshot is not compatible with {name}")
    if on["zero-copy-send"] and (
        not on["multifd"] or on["xbzrle"] or parameters.compressed or parameters.encrypted
    ):
        raise QmpError(_ZERO_COPY)
    if on["postcopy-preempt"]:
        _refuse(not on["postcopy-ram"], "Postcopy preempt requires postcopy-ram")
    if on["multifd"]:
        _refuse(on["xbzrle"], "Multifd is not compatible with xbzrle")
    if on["switchover-ack"]:
        _refuse(
            not on["return-path"], "Capability 'switchover-ack' requires capability 'return-path'"
        )
    if on["dirty-limit"]:
        _refuse(
            on["auto-converge"],
            "dirty-limit conflicts with auto-converge either of then available currently",
        )
        raise QmpError("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set")
    if on["mapped-ram"]:
        _refuse(on["xbzrle"], "Mapped-ram migration is incompatible with xbzrle")
        _refuse(on["postcopy-ram"], "Mapped-ram migration is incompatible with postcopy")


def _refuse(condition: bool, desc: str) -> None:
    if condition:
        raise QmpError(desc)


MAX_DOWNTIME = 2000 * 1000  # milliseconds
_U8 = schema.unsigned(8)
_CACHE = "xbzrle-cache-size"
_CHUNK = "x-rdma-chunk-size"

DEFAULTS: dict[str, Value] = {
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
    _CACHE: 64 << 20,
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
    "zero-page-detection": schema.enum("none", "legacy", "multifd"),
    "block-bitmap-mapping": schema.array(schema.anything),
    "cpr-exec-command": schema.array(schema.string),
    _CHUNK: schema.uint64,
}


def types(version: Version) -> dict[str, schema.Type]:
    """Return the types of the parameters that ``version`` has."""
    there = {*DEFAULTS, *version.parameters, "block-bitmap-mapping"}
    known = {name: kind for name, kind in TYPES.items() if name in there}
    return {**known, "mode": schema.enum(*version.modes)}


_PERCENT = "expects an integer in the range of {} to {}"
_TOO_LOW = "Parameter '{}' {}"
_BETWEEN = "expects a value between {} and {}"
# Least and most, and what is said of others, in the order in which QEMU looks at them.
_LIMITS: dict[str, tuple[int, int, str]] = {
    "throttle-trigger-threshold": (1, 100, _PERCENT),
    "cpu-throttle-initial": (1, 99, _PERCENT),
    "cpu-throttle-increment": (1, 99, _PERCENT),
    "downtime-limit": (0, MAX_DOWNTIME, _PERCENT.format(0, "(2000 * 1000) ms")),
    "multifd-channels": (1, 255, _BETWEEN),
    "multifd-zlib-level": (0, 9, _BETWEEN),
    "multifd-qatzip-level": (1, 9, _BETWEEN),
    "multifd-zstd-level": (0, 20, _BETWEEN),
    _CACHE: (4096, schema.U64, "expects a power of two no less than the target page size"),
    "announce-initial": (0, 100000, _BETWEEN),
    "announce-max": (0, 100000, _BETWEEN),
    "announce-rounds": (0, 1000, _BETWEEN),
    "announce-step": (1, 10000, _BETWEEN.format(0, 10000)),  # as QEMU has it
    "vcpu-dirty-limit": (1, schema.U64, "must be greater than 1 MB/s"),
}


class Parameters:
    """The parameters' values, by their names on the wire."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._values: dict[str, Value] = {**DEFAULTS, **version.parameters}

    def __getitem__(self, name: str) -> int:
        """Return a number, or whether a switch is on."""
        return _number(self._values, name)

    @property
    def zero_page_detection(self) -> str:
        """Who looks for zero pages: ``none``, ``legacy`` or ``multifd``."""
        return str(self._values["zero-page-detection"])

    @property
    def compressed(self) -> bool:
        return self._values["multifd-compression"] != "none"

    @property
    def encrypted(self) -> bool:
        return bool(self._values["tls-creds"])

    def listing(self) -> dict[str, Value]:
        return dict(self._values)

    def change(self, wanted: Mapping[str, Value], capabilities: Capabilities) -> None:
        """Set ``wanted``, checked by type before. Raises QmpError and sets nothing.

        As in QEMU compression is not looked at in ``wanted`` but in what is in force: with
        mapped-ram it can be set once, and from then on every change is refused.
        """
        new = {**self._values, **wanted}
        _check_limits(new, self._version)
        if capabilities["zero-copy-send"] and (
            new["multifd-compression"] != "none" or new["tls-creds"]
        ):
            raise QmpError(_ZERO_COPY)
        if capabilities["mapped-ram"] and (self.compressed or self.encrypted):
            raise QmpError("Mapped-ram only available for non-compressed non-TLS multifd migration")
        self._values = new


def _number(values: Mapping[str, Value], name: str) -> int:
    value = values[name]
    assert isinstance(value, int)
    return value


def _check_limits(new: Mapping[str, Value], version: Version) -> None:
    def written(name: str) -> str:
        return name.replace("-", "_") if version.underscored else name

    for name, (least, most, expects) in _LIMITS.items():
        value = _number(new, name)
        if not least <= value <= most or (name == _CACHE and value & (value - 1)):
            text = _TOO_LOW if name == "vcpu-dirty-limit" else version.out_of_range
            raise QmpError(text.format(written(name), expects.format(least, most)))
    if not _number(new, "cpu-throttle-initial") <= _number(new, "max-cpu-throttle") <= 99:
        expects = _PERCENT.format(written("cpu-throttle-initial"), 99)
        raise QmpError(version.out_of_range.format(written("max-cpu-throttle"), expects))
    name = "x-vcpu-dirty-limit-period"  # with hyphens in all versions
    if not 1 <= _number(new, name) <= 1000:
        raise QmpError(version.out_of_range.format(name, _BETWEEN.format(1, 1000)))
    if _CHUNK in new:
        chunk = _number(new, _CHUNK)
        if not 1 << 20 <= chunk <= 1 << 30 or chunk & (chunk - 1):
            expects = "expects a power of 2 in the range 1MiB to 1024MiB"
            raise QmpError(version.out_of_range.format(_CHUNK.replace("-", "_"), expects))
