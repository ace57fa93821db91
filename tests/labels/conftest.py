"""A host of another kind: a tree of attribute files, and a kernel that answers from tables.

Only what the kernel would do is replaced; everything of mapsave runs as it is.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mapsave.labels import labelling
from mapsave.labels.label import Access, Label
from mapsave.labels.system import System

from tests.kit import files

PID = 4242
OWN = "system_u:system_r:initrc_t:s0"
QEMU = "system_u:system_r:svirt_t:s0:c1,c2"
IMAGE = "system_u:object_r:svirt_image_t:s0:c1,c2"
BORN = "system_u:object_r:virt_image_t:s0"


@dataclass(frozen=True)
class Host(System):
    """A :class:`System` with a kernel made of tables, and a record of what was written to it."""

    attributes: dict[tuple[int, str], bytes] = field(default_factory=dict)
    allowed: set[tuple[str, ...]] = field(default_factory=set)  # what the access files say yes to
    written: list[tuple[str, bytes]] = field(default_factory=list)
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    failures: dict[str, object] = field(default_factory=dict)  # operation or command -> what fails

    def put(self, path: str, text: str) -> None:
        """Create an attribute file."""
        file = self.locate(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def label(self, path: Path, name: str, value: str) -> None:
        self.attributes[os.stat(path).st_ino, name] = value.encode()

    def of(self, path: Path, name: str) -> str | None:
        value = self.attributes.get((os.stat(path).st_ino, name))
        return None if value is None else value.decode()

    def _fail(self, operation: str) -> None:
        number = self.failures.get(operation)
        if isinstance(number, int):
            raise OSError(number, os.strerror(number))

    def write(self, path: str, data: bytes) -> None:
        self._fail(path)
        self.written.append((path, data))

    def get_attribute(self, target: int | str, name: str) -> str | None:
        self._fail("get")
        value = self.attributes.get((os.stat(target).st_ino, name))
        return None if value is None else value.rstrip(b"\0").decode()

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        self._fail("set")
        self._fail("set " + value.rstrip(b"\0").decode())
        self.attributes[os.fstat(fd).st_ino, name] = value

    def remove_attribute(self, fd: int, name: str) -> None:
        del self.attributes[os.fstat(fd).st_ino, name]

    def capable(self, capability: int) -> bool:
        return capability not in self.failures.get("capable", ())  # type: ignore[operator]

    def run(self, command: Sequence[str], given: bytes = b"") -> str | None:
        self.commands.append(list(command))
        complaint = self.failures.get("run")
        return complaint if isinstance(complaint, str) else None

    def ask(self, path: str, question: bytes) -> str:
        self._fail(path)
        self.asked.append((path, question))
        match path:
            case "/sys/fs/selinux/context":
                return _canonical(question.rstrip(b"\0").decode())
            case "/sys/fs/selinux/access":
                process, label, kind, mask = question.decode().split()
                yes = int(mask, 16) if (process, label, kind, mask) in self.allowed else 0
                return f"{yes:x} ffffffff 0 ffffffff 7 {self.failures.get('flags', 0):x}"
            case "/sys/fs/selinux/create":
                return BORN
            case "/sys/fs/smackfs/access2":
                return "1" if tuple(question.decode().split()) in self.allowed else "0"
            case "/sys/kernel/security/apparmor/.access":
                return self._apparmor(question)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    def _apparmor(self, question: bytes) -> str:
        if not self.exists("/sys/kernel/security/apparmor/.access"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        prefix, profile, rest = question.split(b"\0", 2)
        assert prefix == b"label"
        assert rest[:1] == b"\x02"
        yes = (profile.decode(), rest[1:].decode()) in self.allowed
        deny = self.failures.get("deny", 0)
        return (
            f"allow 0x{6 if yes else 0:08x}\ndeny 0x{deny:08x}\naudit 0x{0:08x}\nquiet 0x{0:08x}\n"
        )


def _canonical(label: str) -> str:
    """Do what the kernel does with a context: order the categories, refuse unknown types."""
    user, role, kind, level = label.split(":", 3)
    if not re.fullmatch(r"(virt|svirt|var_lib|initrc|rest)\w*_t", kind):
        raise OSError(errno.EINVAL, "Invalid argument")
    sensitivity, colon, categories = level.partition(":")
    numbers = sorted(int(each[1:]) for each in categories.split(",") if each)
    return f"{user}:{role}:{kind}:{sensitivity}{colon}{','.join(f'c{n}' for n in numbers)}"


@contextlib.contextmanager
def labelled(
    labeller: labelling.Labelling,
    image: Path,
    *,
    path: str | None = None,
    others: Sequence[str] = (),
    pid: int | None = PID,
    access: Access = "save",
    on_left: Callable[[list[labelling.Problem]], object] | None = None,
    expected: Label | None = None,
) -> Iterator[labelling.Applied]:
    """Open the image as a save or a restore does, and label it."""
    with files.opened(image, os.O_WRONLY if access == "save" else os.O_RDONLY) as fd:
        target = labelling.Target(fd, path or str(image), tuple(others), pid, access, expected)
        with labeller.applied(target, on_left) as applied:
            yield applied


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image file in a directory of its own."""
    directory = tmp_path / "images"
    directory.mkdir()
    file = directory / "a.partial"
    file.write_bytes(b"x")
    file.chmod(0o600)
    return file


@pytest.fixture
def plain(tmp_path: Path) -> Host:
    """A host without any security module, where attributes can be stored all the same."""
    host = Host(tmp_path / "root")
    host.put(f"/proc/{PID}/status", "Name:\tqemu\n")
    return host


@pytest.fixture
def selinux(plain: Host, image: Path) -> Host:
    """An enforcing host whose policy lets svirt_t use its own svirt_image_t."""
    plain.put("/sys/fs/selinux/enforce", "1")
    plain.put("/sys/fs/selinux/class/file/index", "7")
    plain.put("/sys/fs/selinux/class/fd/index", "9")
    permissions = {"read": 2, "write": 3, "create": 4, "open": 18, "map": 20}
    for permission, number in permissions.items():
        plain.put(f"/sys/fs/selinux/class/file/perms/{permission}", str(number))
    plain.put("/sys/fs/selinux/class/fd/perms/use", "1")
    plain.put("/etc/selinux/config", "# a comment\nSELINUX=enforcing\nSELINUXTYPE=default\n")
    plain.put(
        "/etc/selinux/default/contexts/virtual_image_context",
        "system_u:object_r:svirt_image_t:s0\nsystem_u:object_r:virt_content_t:s0\n",
    )
    plain.put("/proc/thread-self/attr/current", OWN + "\0")
    plain.put("/proc/thread-self/attr/fscreate", "")
    plain.put(f"/proc/{PID}/attr/current", QEMU + "\0")
    plain.label(image.parent, "security.selinux", BORN)
    plain.label(image, "security.selinux", BORN)
    plain.allowed.update(
        [
            (QEMU, IMAGE, "7", "2"),
            (QEMU, IMAGE, "7", "4"),
            (QEMU, OWN, "9", "1"),
            (OWN, IMAGE, "7", "8"),
        ]
    )
    return plain


@pytest.fixture
def apparmor(plain: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """A host where QEMU runs in the enforcing profile vmq, which includes mapsave's rules."""
    plain.put("/sys/module/apparmor/parameters/enabled", "Y\n")
    plain.put("/proc/self/attr/apparmor/current", "unconfined\n")
    plain.put(f"/proc/{PID}/attr/apparmor/current", "vmq (enforce)\n")
    plain.put("/etc/apparmor.d/local/README", "")
    plain.put("/etc/apparmor.d/vmq", "profile vmq {\n  include if exists <local/mapsave-vmq>\n}\n")
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    parser = bin_directory / "apparmor_parser"
    parser.write_text("#!/bin/sh\n")
    parser.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_directory), prepend=":")
    return plain


@pytest.fixture
def smack(plain: Host, image: Path) -> Host:
    """A host with Smack, where QEMU runs as Guest1 and files are born as System."""
    plain.put("/sys/fs/smackfs/access2", "")
    plain.put(f"/proc/{PID}/attr/smack/current", "Guest1")
    plain.label(image, "security.SMACK64", "System")
    plain.allowed.update([("Guest1", "Guest1", "w"), ("Guest1", "Guest1", "r")])
    return plain
