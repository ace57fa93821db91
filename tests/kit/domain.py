"""Guests of a private libvirtd (``tests/kit/libvirtd.py``), looked at from outside.

    with domain.running(daemon, 'web "01" <é>', ram=patterns.dense) as guest:
        before = guest.snapshot_ram(tmp_path / "before")

A guest is firmware only, as those of ``tests/kit/qemu.py`` are; ``linux()`` is the one with Linux.
Whatever becomes of the domain, the same ``Domain`` shows it: saved, restored, started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax import saxutils

from tests.kit import linux_guest, need, patterns, processes, qemu, state, wait
from tests.kit import ram as guest_ram
from tests.kit.libvirtd import Daemon
from tests.kit.qmp import QmpError

MIB = patterns.MIB
GONE = "gone"
_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


@dataclass(frozen=True)
class Domain:
    """A domain, whether or not libvirt knows it at the moment.

    It serves as a monitor of its QEMU too: ``execute()`` is that of ``qmp.Client``.
    """

    daemon: Daemon
    name: str
    uuid: str

    @property
    def address(self) -> str:
        """The guest as ``mapsave save`` takes it: ``libvirt+URI#DOMAIN``."""
        return f"libvirt+{self.daemon.uri}#{self.name}"

    @property
    def pid(self) -> int:
        """The process id of its QEMU: the one whose threads are the guest's processors."""
        (processor, *_) = self.execute("query-cpus-fast")
        with open(f"/proc/{processor['thread-id']}/status") as status:
            (group,) = (line.split()[1] for line in status if line.startswith("Tgid:"))
        return int(group)

    @property
    def ram(self) -> guest_ram.LiveRam:
        """The RAM of its QEMU of now."""
        return guest_ram.LiveRam(self.pid, self)

    def virsh(
        self, command: str, *arguments: str | os.PathLike[str], check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``virsh COMMAND`` on this domain; see ``Daemon.virsh``."""
        return self.daemon.virsh(command, self.uuid, *arguments, check=check)

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run a QMP command through libvirt and return what it returned.

        Underscores in argument names become dashes. Raises QmpError.
        """
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = {
                name.replace("_", "-"): value for name, value in arguments.items()
            }
        answer = json.loads(self.virsh("qemu-monitor-command", json.dumps(message)).stdout)
        if "error" in answer:
            raise QmpError(command, answer["error"]["class"], answer["error"]["desc"])
        return answer["return"]

    def state(self) -> str:
        """Return state and reason as ``virsh domstate`` does: ``paused (user)``; or ``gone``."""
        done = self.virsh("domstate", "--reason", check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        unknown = ("failed to get domain", "Domain not found")
        assert any(words in done.stderr for words in unknown), done.stderr
        return GONE

    def wait_state(self, *wanted: str, timeout: float = wait.LONG) -> str:
        """Wait until the state is or begins with one of ``wanted``; return it."""
        found = ""

        def is_there() -> bool:
            nonlocal found
            found = self.state()
            return found.startswith(wanted)

        try:
            wait.until(is_there, timeout=timeout, what=f"state {wanted}")
        except AssertionError as late:
            raise AssertionError(f"{late}; the state was {found!r}") from None
        return found

    def xml(self, *options: str) -> str:
        """Return the definition as ``virsh dumpxml`` does: of now, while the domain is active."""
        return self.virsh("dumpxml", *options).stdout

    def status(self) -> state.State:
        """Return what mapsave must leave in QEMU as it was; see ``state.assert_left_as_found``."""
        return state.of(self)

    def fill_ram(self, pattern: patterns.Pattern) -> None:
        """Fill its RAM with a pattern; see ``qemu.fill_ram``."""
        qemu.fill_ram(self.ram, pattern)

    def snapshot_ram(self, directory: Path) -> guest_ram.Snapshot:
        """Copy the RAM of the guest, which must not be running, into ``directory``."""
        status = self.execute("query-status")["status"]
        assert status != "running", "the RAM of a running guest changes while it is copied"
        return guest_ram.snapshot(self.ram, directory)

    def ram_digests(self) -> dict[str, str]:
        """Return the SHA-256 of every RAM block, by name."""
        return guest_ram.digests(self.ram)

    def open_files(self) -> list[str]:
        """Return what its QEMU has open (``/proc/PID/fd``), deleted files included."""
        directory = f"/proc/{self.pid}/fd"
        return [os.readlink(f"{directory}/{number}") for number in os.listdir(directory)]

    def kill(self) -> None:
        """Kill its QEMU (SIGKILL), and wait until that is gone."""
        processes.end(self.pid)

    def remove(self) -> None:
        """End the domain and forget it, whatever state it is in."""
        if self.state() != GONE:
            self.virsh("destroy", check=False)
        if self.state() != GONE:
            self.virsh("undefine", "--managed-save", "--snapshots-metadata", check=False)
        assert self.state() == GONE


class LinuxDomain(NamedTuple):
    """A live Linux libvirt guest, and its serial line (see ``tests/kit/linux_guest.py``)."""

    domain: Domain
    serial: linux_guest.Serial


def definition(
    name: str,
    *,
    identity: str | None = None,
    memory: int = 64 * MIB,
    kvm: bool = False,
    machine: str = "pc",
    boot: str = "",
    devices: str = "",
    more: str = "",
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> str:
    """Return the XML of a guest without disk or network, ready for ``virsh define``.

    ``identity``: its uuid. ``memory`` in bytes. ``kvm``: instead of TCG. ``boot`` and
    ``devices``: more XML within ``<os>`` and ``<devices>``, ``more``: within ``<domain>``.
    ``arguments``: passed to QEMU as they are (``<qemu:commandline>``), as ``env`` is added to its
    environment.
    """
    kind = "kvm" if kvm else "qemu"
    passed = "".join(f"<qemu:arg value={saxutils.quoteattr(each)}/>" for each in arguments)
    for key, value in (env or {}).items():
        passed += f"<qemu:env name='{key}' value={saxutils.quoteattr(value)}/>"
    passed = f"<qemu:commandline>{passed}</qemu:commandline>" if passed else ""
    return f"""\
<domain type='{kind}' xmlns:qemu='{_NAMESPACE}'>
  <name>{saxutils.escape(name)}</name>
  <uuid>{identity or uuid.uuid4()}</uuid>
  <memory unit='b'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type>{boot}</os>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
  {more}
  {passed}
</domain>
"""


@contextmanager
def running(
    daemon: Daemon,
    name: str = "guest",
    *,
    memory: int = 64 * MIB,
    ram: patterns.Pattern | None = None,
    ram_file: Path | None = None,
    kvm: bool = False,
    transient: bool = True,
    paused: bool = True,
    machine: str = "pc",
    boot: str = "",
    devices: str = "",
    more: str = "",
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Domain]:
    """Run a guest of ``daemon``; at the end it is neither running nor defined.

    ``ram``: see ``Domain.fill_ram``. ``ram_file``: its RAM starts as a private copy of this
    file, of ``memory`` bytes: for big guests, as their definition then says so forever.
    ``transient``: libvirt forgets it when it ends. See ``definition()`` for the rest.
    """
    if ram_file is not None:
        arguments = [*arguments, *_from_file(ram_file, memory)]
    text = definition(
        name,
        identity=str(uuid.uuid4()),
        memory=memory,
        kvm=kvm,
        machine=machine,
        boot=boot,
        devices=devices,
        more=more,
        arguments=arguments,
        env=env,
    )
    with defined(daemon, text, name, transient=transient) as guest:
        if not transient:
            guest.virsh("start", "--paused")
        if ram is not None:
            guest.fill_ram(ram)
        if not paused:
            guest.virsh("resume")
        yield guest


@contextmanager
def defined(daemon: Daemon, text: str, name: str, *, transient: bool = False) -> Iterator[Domain]:
    """Define the domain of the XML ``text`` with a uuid; if ``transient``, start it paused.

    At the end it is gone.
    """
    identity = text.partition("<uuid>")[2].partition("</uuid>")[0].strip()
    file = daemon.directory / f"{identity}.xml"
    file.write_text(text, encoding="utf-8")
    guest = Domain(daemon, name, identity)
    try:
        daemon.virsh(*(("create", file, "--paused") if transient else ("define", file)))
        yield guest
    finally:
        file.unlink()
        guest.remove()


@contextmanager
def linux(
    daemon: Daemon, name: str = "linux", *, log: Path, transient: bool = True
) -> Iterator[LinuxDomain]:
    """Run the live Linux guest under TCG; it boots in about five seconds.

    Its serial line is appended to ``log``, by a QEMU that restores it too.
    """
    need.skip_if(linux_guest.unavailable())
    kernel, initrd = (saxutils.escape(str(path)) for path in linux_guest.files())
    with running(
        daemon,
        name,
        memory=linux_guest.MEMORY_BYTES,
        transient=transient,
        paused=False,
        boot=f"<kernel>{kernel}</kernel><initrd>{initrd}</initrd>"
        f"<cmdline>{linux_guest.COMMAND_LINE}</cmdline>",
        devices="<serial type='file'>"
        f"<source path={saxutils.quoteattr(str(log))} append='on'/></serial>",
    ) as guest:
        yield LinuxDomain(guest, linux_guest.Serial(log))


def _from_file(path: Path, size: int) -> list[str]:
    # A comma within a value of an option is doubled (QEMU's documentation of -drive and -object).
    place = str(path).replace(",", ",,")
    backend = f"memory-backend-file,id=m,size={size},mem-path={place},share=off"
    return ["-object", backend, "-machine", "memory-backend=m"]
