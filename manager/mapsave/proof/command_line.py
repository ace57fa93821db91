"""The command line of a throwaway QEMU: the guest's own, with nothing of the guest's behind it.

Each option is known here: it shapes the machine and stays, or opens something and becomes a null
backend of the same shape, or is about neither and goes. One that is not known is refused, for it
could open what belongs to the guest: a socket that is taken over, a tap, a disk. Files that are
read only and that the machine is made of (firmware, kernel, ROMs, ACPI tables) stay.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

from mapsave import errors, qemu_options
from mapsave.plan import instant
from mapsave.proof.disks import SHORT, Disks
from mapsave.qemu_options import Option, Properties

NAME = "mapsave-proof"  # the guest's name is its own QEMU's

# QEMU's qemu-options.hx of 10.0; options with a value unless said otherwise.
_STAY = frozenset(
    (
        *("accel", "acpitable", "action", "append", "bios", "boot", "compat", "cpu", "dtb"),
        *("fw_cfg", "g", "global", "initrd", "k", "kernel", "L", "m", "msg", "numa", "option-rom"),
        *("prom-env", "rtc", "seed", "shim", "smbios", "smp", "tb-size"),
        *("uuid", "usbdevice", "vga", "watchdog-action"),
    )
)
_STAY_ALONE = frozenset(
    (
        *("enable-kvm", "no-fd-bootchk", "no-reboot", "no-shutdown", "nodefaults", "nographic"),
        *("no-user-config", "nouserconfig", "only-migratable", "usb", "win2k-hack"),
    )
)
_GO = frozenset(
    (
        *("add-fd", "chroot", "d", "D", "dfilter", "display", "echr", "gdb", "incoming", "iscsi"),
        *("mem-path", "mon", "monitor", "name", "overcommit", "pidfile", "plugin", "qmp"),
        *("qmp-pretty", "trace", "vnc"),
    )
)
_GO_ALONE = frozenset(
    (
        *("S", "s", "daemonize", "enable-sync-profile", "full-screen", "jitdump", "mem-prealloc"),
        *("perfmap", "snapshot"),
    )
)
_OBJECTS_STAY = frozenset(
    (
        *("acpi-generic-initiator", "acpi-generic-port", "can-bus", "cryptodev-backend-builtin"),
        *("iothread", "main-loop", "rng-builtin"),
    )
)
# What serves backends that are null now; none of them has a state of its own.
_OBJECTS_GO = frozenset(
    (
        *("authz-list", "authz-list-file", "authz-pam", "authz-simple", "can-host-socketcan"),
        *("colo-compare", "filter-buffer", "filter-dump", "filter-mirror", "filter-redirector"),
        *("filter-replay", "filter-rewriter", "input-barrier", "input-linux", "pr-manager-helper"),
        *("secret", "secret_keyring", "thread-context", "throttle-group", "tls-cipher-suites"),
        *("tls-creds-anon", "tls-creds-psk", "tls-creds-x509"),
    )
)
_RANDOM = frozenset(("rng-egd", "rng-random"))
_MEMORY = frozenset(f"memory-backend-{kind}" for kind in ("file", "memfd", "ram", "shm"))
_CANONICAL = "x-use-canonical-path-for-ramblock-id"
# Devices with something of the host behind them, for which there is no null backend.
_DEVICES = {
    "vfio-": "is a device of the host",
    "vhost-": "is served by the host's kernel or by another process",
    "tpm-": "has its state in another process (a TPM)",
    "usb-host": "is a device of the host",
    "usb-mtp": "serves files of the host",
    "scsi-block": "is a device of the host",
    "scsi-generic": "is a device of the host",
    "ivshmem-doorbell": "shares memory with other guests by a server",
    "u2f-passthru": "is a device of the host",
    "u2f-emulated": "has its state in files of the host",
    "ccid-card-emulated": "is a card of the host",
    "virtio-gpu-gl": "draws with the host's GPU",
    "virtio-vga-gl": "draws with the host's GPU",
    "virtio-gpu-rutabaga": "draws with the host's GPU",
    "virtio-vga-rutabaga": "draws with the host's GPU",
    "xen-": "is served by Xen",
    "x-pci-proxy-dev": "is in another process",
}
_CHARACTERS = frozenset(("debugcon", "parallel", "serial", "virtioconsole"))
_SERVICES = frozenset(("bootfile", "hostfwd", "tftp"))  # of slirp, which opens them on the host
_STATEFUL_SERVICES = frozenset(("guestfwd", "smb"))
_WITH_HEADERS = frozenset(("bridge", "tap", "vhost-user"))
_HUBS = 1 << 20  # hubs that a guest has are numbered from 0


@dataclasses.dataclass(frozen=True)
class Start:
    """How a guest's command line is taken: by another ``program``, and as another ``user``."""

    is_emulated: bool = False
    program: str | None = None
    user: str | None = None


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """The words of a throwaway QEMU, and what was replaced: what it is, and by what."""

    argv: tuple[str, ...]
    replaced: tuple[str, ...]


def program_at(argv: Sequence[str]) -> int:
    """Return where QEMU is on a command line: other programs may start it. Raises NotProvable."""
    for at, word in enumerate(argv):
        name = os.path.basename(word)
        if name.startswith("qemu-system-") or name in ("qemu-kvm", "kvm"):
            return at
    raise _refused("the command that starts the guest names no QEMU, so what it opens is unknown")


def rewritten(
    argv: Sequence[str],
    start: Start = Start(),
    *,
    cwd: str | None = None,
    blocks: Sequence[str] = (),
    tap: Callable[[int], Sequence[int]],
) -> Rewritten:
    """Return the command line of a throwaway QEMU for the guest that ``argv`` starts. Blocks.

    ``blocks`` are the names of the image's RAM blocks. ``tap`` makes one of so many queues and
    returns their descriptors. Raises NotProvable.
    """
    at = program_at(argv)
    for word in argv[:at]:
        if os.path.basename(word) in instant.CLOSING:
            raise _refused(f"the guest is started by {word}, which closes descriptors")
    work = _Rewriting(argv[at + 1 :], cwd, frozenset(blocks), tap)
    work.user = start.user
    words = list(work.words())
    added = ["-name", NAME, "-display", "none", "-monitor", "none"]
    if work.user is not None:
        added += ["-run-with", f"user={work.user}"]
    head = (*argv[:at], start.program or argv[at])
    return Rewritten((*head, *words, *added), tuple(work.replaced))


class _Rewriting:
    def __init__(
        self,
        words: Sequence[str],
        cwd: str | None,
        blocks: frozenset[str],
        tap: Callable[[int], Sequence[int]],
    ) -> None:
        self._words = list(words)
        self._disks = Disks(self._words, cwd)
        self._blocks = blocks
        self._tap = tap
        self._hubs = 0
        self.user: str | None = None  # that it becomes, unless it does so anyway
        self.replaced: list[str] = []
        # Each returns the properties that the option has instead; None where it goes.
        self._known: dict[str, Callable[[Option], Properties | None]] = {
            "audio": self._audio,
            "audiodev": self._audio,
            "blockdev": self._blockdev,
            "chardev": self._chardev,
            "device": self._device,
            "drive": self._drive,
            "fsdev": self._file_system,
            "icount": self._icount,
            "M": self._machine,
            "machine": self._machine,
            "net": self._net,
            "netdev": self._netdev,
            "nic": self._nic,
            "object": self._object,
            "run-with": self._run_with,
            "runas": self._run_as,
            "sandbox": self._sandbox,
            "spice": self._spice,
            "virtfs": self._file_system,
        }

    def words(self) -> Iterator[str]:
        """Yield the words of the throwaway QEMU's command line, its program left out."""
        left = iter(self._words)
        for word in left:
            name = word.removeprefix("-").removeprefix("-")
            if not word.startswith("-"):
                yield from self._short("hda", word)
            elif name in _STAY_ALONE:
                yield word
            elif name not in _GO_ALONE:
                if (value := next(left, None)) is None:
                    raise _refused(f"the option {word} is not known, or has no value")
                yield from self._with_value(name, value)

    def _with_value(self, name: str, value: str) -> Sequence[str]:
        if name in _STAY:
            return (f"-{name}", value)
        if name in _GO:
            return ()
        if name in SHORT:
            return self._short(name, value)
        if name in _CHARACTERS:
            if value not in ("none", "null") and not value.startswith("chardev:"):
                value = self._by(name, None, value.partition(":")[0], "null")
            return (f"-{name}", value)
        if name not in self._known:
            raise _refused(f"the option -{name} is not known: it could open what is the guest's")
        option = next(qemu_options.options((f"-{name}", value), name), None)
        if option is None:
            raise _refused(f"the value of -{name} cannot be read")
        now = self._known[name](option)
        if now is option.properties:
            return (f"-{name}", value)  # the same key may be there several times
        return () if now is None else (f"-{name}", option.replaced(now))

    def _by(self, what: str, id: str | None, was: str, now: str) -> str:
        """Note that something is replaced, and return by what."""
        self.replaced.append(f"{what} {id}: {was} by {now}" if id else f"{what}: {was} by {now}")
        return now

    def _short(self, name: str, path: str) -> Sequence[str]:
        self._by(name, None, "a file", "null-co")
        return ("-drive", self._disks.short(name, path))

    def _drive(self, option: Option) -> Properties:
        found = self._disks.drive(option.properties)
        if "driver" in found:
            self._by("drive", option.text("id"), "a file", "null-co")
        return found

    def _blockdev(self, option: Option) -> Properties:
        self._by("blockdev", option.text("node-name"), str(option.text("driver")), "null-co")
        return self._disks.node(option.properties)

    def _chardev(self, option: Option) -> Properties:
        kind, kept = str(option.text("backend")), _only(option, "id", "mux")
        if kind == "qemu-vdagent":  # a display's clipboard: opens nothing, has a state of its own
            return {"backend": kind, **kept, **_only(option, "clipboard", "mouse")}
        if kind != "null":
            self._by("chardev", option.text("id"), kind, "null")
        return {"backend": "null", **kept}

    def _audio(self, option: Option) -> Properties:
        self._by(option.name, option.text("id"), str(option.text("driver")), "none")
        return {"driver": "none", **_only(option, "id", "model")}

    def _spice(self, option: Option) -> Properties:
        # qxl needs a server; without a port it opens nothing.
        self._by("spice", None, "a server", "one without a port")
        return {"port": 0, "disable-ticketing": True}

    def _device(self, option: Option) -> Properties:
        driver = str(option.text("driver"))
        for beginning, why in _DEVICES.items():
            if driver.startswith(beginning):
                raise _refused(f"the device {option.text('id') or driver!r} ({driver}) {why}")
        return option.properties

    def _file_system(self, option: Option) -> Properties:
        was = str(option.text("fsdriver"))
        now = self._by(option.name, option.text("id") or option.text("mount_tag"), was, "synth")
        return {"fsdriver": now, **_only(option, "id", "mount_tag")}

    def _icount(self, option: Option) -> Properties:
        if option.text("rr") is not None:
            raise _refused("QEMU records or replays the guest in a file (-icount rr)")
        return option.properties

    def _machine(self, option: Option) -> Properties:
        for key in ("confidential-guest-support", "memory-encryption"):
            if option.text(key):
                raise _refused("the guest's memory is encrypted")
        return option.properties

    def _null_network(self, what: str, option: Option) -> Properties:
        """Return the properties of one that nothing is behind; see ``taps.py`` for its kind."""
        kind = str(option.text("type"))
        if kind in _WITH_HEADERS and option.is_on("vnet_hdr", default=True):
            queues = (option.text("fds") or "").count(":") + 1
            fds = self._tap(int(option.text("queues") or queues))
            self._by(what, option.text("id"), kind, "a tap of its own")
            return {"type": "tap", "fds" if len(fds) > 1 else "fd": ":".join(map(str, fds))}
        self._by(what, option.text("id"), kind, "hubport")
        self._hubs += 1
        return {"type": "hubport", "hubid": _HUBS + self._hubs}

    def _user_network(self, option: Option) -> Properties:
        """Return the properties of slirp, which has a section of its own, without services."""
        for key in _STATEFUL_SERVICES & option.properties.keys():
            raise _refused(f"QEMU runs programs or connects for the guest's network ({key}=)")
        found = {key: value for key, value in option.properties.items() if key not in _SERVICES}
        return option.properties if len(found) == len(option.properties) else found

    def _netdev(self, option: Option) -> Properties:
        if option.text("type") == "user":
            return self._user_network(option)
        return self._null_network("netdev", option) | _only(option, "id")

    def _nic(self, option: Option) -> Properties:
        if option.text("type") in ("user", "none"):
            return self._user_network(option)
        null = self._null_network("nic", option)
        return null | _only(option, "id", "model", "mac", "macaddr", "addr")

    def _net(self, option: Option) -> Properties | None:
        kind = str(option.text("type"))
        if kind in ("nic", "none"):
            return option.properties
        if kind == "user":
            return self._user_network(option)
        self._by("net", option.text("id"), kind, "nothing")
        return None

    def _object(self, option: Option) -> Properties | None:
        kind, id = str(option.text("qom-type")), str(option.text("id"))
        if kind in _OBJECTS_STAY:
            return option.properties
        if kind in _OBJECTS_GO:
            return None
        if kind in _RANDOM:
            return {"qom-type": self._by("object", id, kind, "rng-builtin"), "id": id}
        if kind not in _MEMORY:
            raise _refused(f"the object {id!r} ({kind}) has no null one of the same shape")
        kept = _only(option, "id", "size", "merge", "dump")
        # Old machine types name the blocks of files by their path.
        canonical = {_CANONICAL: True} if f"{instant.OBJECTS}{id}" in self._blocks else {}
        return {"qom-type": "memory-backend-ram", **kept, "reserve": False, **canonical}

    def _run_with(self, option: Option) -> Properties | None:
        if found := _only(option, "user"):
            self.user = None
        return found or None

    def _run_as(self, option: Option) -> Properties:
        self.user = None
        return option.properties

    def _sandbox(self, option: Option) -> Properties:
        if self.user is None:
            return option.properties
        known = option.properties  # it could not become that user
        return {key: value for key, value in known.items() if key != "elevateprivileges"}


def _only(option: Option, *keys: str) -> Properties:
    return {key: option.properties[key] for key in keys if key in option.properties}


def _refused(why: str) -> errors.NotProvable:
    return errors.NotProvable(
        f"the image cannot be proven: {why}",
        hint="'mapsave verify' looks at its structure; a restore loads it",
    )
