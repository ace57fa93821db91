"""Migration capabilities: the list of QEMU 10.0.2 and which of them go together.

Source: QEMU's ``migration/options.c`` (``migrate_caps_check``) of 10.0; every text observed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapsave.emulator.faults import QmpError, report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapsave.emulator.migration_options import Parameters

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
