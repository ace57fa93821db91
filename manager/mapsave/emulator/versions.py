"""Where the versions of QEMU differ that the emulator can play: here, and nowhere else.

All of it observed: of 10.0 on 10.0.2, of 11.1 on 11.1.3.
"""

import dataclasses
import errno
from collections.abc import Mapping
from typing import get_args

from mapsave.config import EmulatedVersion
from mapsave.emulator.faults import LoadError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Json:
    """The JSON parser."""

    # Errors name line and column, and come at once instead of at the end of the bad message.
    has_positions: bool
    expecting_key: str | None  # None: anything may be a key until it has been read
    expecting_colon: str
    expected_separators: Mapping[str, str]  # by the closing bracket


@dataclasses.dataclass(frozen=True)
class Load:
    """One way to fail to load: its errno, the causes that follow it, and lines for stderr."""

    number: int = errno.EINVAL
    causes: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """One version of QEMU."""

    number: tuple[int, int, int]
    json: Json
    capabilities: tuple[str, ...]
    has_multifd_postcopy: bool
    colo_needs_return_path: bool
    parameters: Mapping[str, int | list[object]]  # those that the other version lacks
    modes: tuple[str, ...]
    has_detach: bool  # an argument of `migrate`
    statuses: tuple[str, ...]  # that the other version lacks
    out_of_range: str  # with the parameter's name, and what it expects
    underscored: bool  # the parameters' names, in these errors
    # The save.
    tells_first_pass: bool
    syncs_before_stop: bool  # and after that no more; else after it
    fails_in_two_steps: bool  # `failing`, the guest back in its state, `failed`
    waits_for_acknowledgement: bool  # with switchover-ack, though a file never gives it
    reports_remaining: bool  # in query-migrate, beside that of `ram`
    interrupted: str  # by a cancel in pre-switchover
    channel_reports: tuple[str, ...]  # on stderr, before the error of a channel
    # The load.
    checks_page_size: bool
    knows_left_out: bool  # shared memory, with mapped-ram as well: writes and loads such images
    partial_read: str
    load: Mapping[str, Load]

    @property
    def reply(self) -> dict[str, object]:
        """What ``query-version`` returns."""
        major, minor, micro = self.number
        qemu = {"micro": micro, "minor": minor, "major": major}
        return {"qemu": qemu, "package": "mapsave emulator"}

    def load_error(
        self, name: str, inner: LoadError | None = None, /, **facts: object
    ) -> LoadError:
        """Return the error ``name`` of ``load``, around ``inner``; its texts name ``facts``."""
        text = self.load[name]
        number = text.number if inner is None else inner.number
        facts = {**facts, "number": number}
        return LoadError(
            number,
            [*(cause.format(**facts) for cause in text.causes), *(inner.causes if inner else ())],
            [*(inner.reports if inner else ()), *(line.format(**facts) for line in text.reports)],
        )


_CAPABILITIES = (
    *("xbzrle", "rdma-pin-all", "auto-converge", "zero-blocks", "events", "postcopy-ram"),
    *("x-colo", "release-ram", "return-path", "pause-before-switchover", "multifd"),
    *("dirty-bitmaps", "postcopy-blocktime", "late-block-activate", "x-ignore-shared"),
    *("validate-uuid", "background-snapshot", "zero-copy-send", "postcopy-preempt"),
    *("switchover-ack", "dirty-limit", "mapped-ram"),
)
_CAPABILITIES_SUBSECTION = (
    "Loading VM subsection 'configuration/capabilities' in 'configuration' failed: "
)
_HINT = (
    "Make sure that your current VM setup matches your saved VM setup, including any hotplugged "
    "devices"
)
_DIFFER = "Capability {name} is {here}, but received capability is {there}"
_STATE_OF_RAM = "error while loading state for instance 0x0 of device 'ram'"
_STATE_OF_DEVICE = "error while loading state for instance 0x{instance:x} of device '{name}'"
_VMSTATE = "Failed to load vmstate version_id: 4, ret: -{number}"
_EIO = errno.EIO

_10_0 = Version(
    number=(10, 0, 2),
    json=Json(
        has_positions=False,
        expecting_key=None,
        expecting_colon="missing : in object pair",
        expected_separators={
            "}": "expected separator in dict",
            "]": "expected separator in list",
        },
    ),
    capabilities=_CAPABILITIES,
    has_multifd_postcopy=False,
    colo_needs_return_path=False,
    parameters={},
    modes=("normal", "cpr-reboot", "cpr-transfer"),
    has_detach=True,
    statuses=(),
    out_of_range="Parameter '{}' {}",
    underscored=True,
    tells_first_pass=True,
    syncs_before_stop=False,
    fails_in_two_steps=False,
    waits_for_acknowledgement=True,
    reports_remaining=False,
    interrupted="Channel error: Input/output error",
    channel_reports=(),
    checks_page_size=False,
    knows_left_out=False,
    partial_read="Partial read of size {got}, expected {expected}",
    load={
        "magic": Load(reports=("Not a migration stream",)),
        "version": Load(errno.ENOTSUP, reports=("Unsupported migration stream version",)),
        "no-configuration": Load(reports=("Configuration section missing",)),
        "configuration-ended": Load(_EIO, reports=("Failed to load configuration:{field}",)),
        "unknown-subsection": Load(errno.ENOENT),
        "unknown-capability": Load(
            reports=(
                "Received unknown capability {name}",
                "Failed to load configuration/capabilities:capabilities",
            )
        ),
        "capabilities-ended": Load(
            _EIO, reports=("Failed to load configuration/capabilities:caps_count",)
        ),
        "capabilities-differ": Load(reports=(_DIFFER,)),
        "section-ended": Load(_EIO),
        "unknown-type": Load(reports=("Unknown savevm section type {kind}",)),
        "command-ended": Load(_EIO),
        "part-ended": Load(
            _EIO, reports=("qemu_loadvm_section_part_end: Failed to read section ID: -5",)
        ),
        "unknown-part": Load(reports=("Unknown savevm section {id}",)),
        "head-ended": Load(
            _EIO,
            reports=("qemu_loadvm_section_start_full: Failed to read instance/version ID: -5",),
        ),
        "unknown-section": Load(
            reports=(f"Unknown savevm section or instance '{{name}}' {{instance}}. {_HINT}",)
        ),
        "ram": Load(reports=(_STATE_OF_RAM,)),
        "ram-part": Load(reports=("error while loading state section id {id}(ram)",)),
        "device-ended": Load(_EIO, reports=("Failed to load {name}:{field}", _STATE_OF_DEVICE)),
        "footer": Load(),
    },
)

_11_1 = Version(
    number=(11, 1, 3),
    json=Json(
        has_positions=True,
        expecting_key="expecting key",
        expecting_colon="expecting ':'",
        expected_separators={"}": "expected ',' or '}'", "]": "expected ',' or ']'"},
    ),
    capabilities=tuple(name for name in _CAPABILITIES if name != "zero-blocks"),
    has_multifd_postcopy=True,
    colo_needs_return_path=True,
    parameters={"cpr-exec-command": [], "x-rdma-chunk-size": 1 << 20},
    modes=("normal", "cpr-reboot", "cpr-transfer", "cpr-exec"),
    has_detach=False,
    statuses=("failing",),
    out_of_range="Option {} {}",
    underscored=False,
    tells_first_pass=False,
    syncs_before_stop=True,
    fails_in_two_steps=True,
    waits_for_acknowledgement=False,
    reports_remaining=True,
    interrupted="Switchover is interrupted",
    channel_reports=("failed to save SaveStateEntry with id(name): 1(ram): -1",),
    checks_page_size=True,
    knows_left_out=True,
    partial_read="Unexpected end-of-file before all data were read",
    load={
        "magic": Load(causes=("Not a migration stream, magic: {found:x} != 5145564d",)),
        "version": Load(
            errno.ENOTSUP,
            causes=("Unsupported migration stream version, file version {found:x} != 3",),
        ),
        "no-configuration": Load(causes=("Configuration section missing, {found:x} != 7",)),
        "configuration-ended": Load(
            causes=("Failed to load configuration state: stream error: -5",)
        ),
        "unknown-subsection": Load(
            causes=("VM subsection '{name}' in 'configuration' does not exist",)
        ),
        "unknown-capability": Load(
            causes=(f"{_CAPABILITIES_SUBSECTION}Received unknown capability {{name}}",)
        ),
        "capabilities-ended": Load(
            causes=(
                f"{_CAPABILITIES_SUBSECTION}Failed to load configuration/capabilities state: "
                "stream error: -5",
            )
        ),
        "capabilities-differ": Load(
            causes=(
                "post load hook failed for: configuration, version_id: 1, minimum_version: 0: "
                "Failed to validate capabilities",
            ),
            reports=(_DIFFER,),
        ),
        "section-ended": Load(
            _EIO,
            causes=(
                "Failed to load section ID: stream error: -5",
                "Channel error: Input/output error",
            ),
        ),
        "unknown-type": Load(causes=("Unknown section type {kind}",)),
        "command-ended": Load(
            _EIO, causes=("Failed to load VM process command: stream error: -5",)
        ),
        "part-ended": Load(_EIO, causes=("Failed to read section ID: -5",)),
        "unknown-part": Load(causes=("Unknown section {id}",)),
        "head-ended": Load(_EIO, causes=("Failed to read instance/version ID: -5",)),
        "unknown-section": Load(
            causes=(f"Unknown section or instance '{{name}}' {{instance}}. {_HINT}",)
        ),
        "ram": Load(causes=(_STATE_OF_RAM, _VMSTATE)),
        "ram-part": Load(causes=(_VMSTATE,)),
        "device-ended": Load(
            causes=(_STATE_OF_DEVICE, "Failed to load {name} state: stream error: -5")
        ),
        "footer": Load(causes=("Section footer error, section_id: {id}",)),
    },
)

VERSIONS: dict[EmulatedVersion, Version] = dict(
    zip(get_args(EmulatedVersion), (_10_0, _11_1), strict=True)
)
