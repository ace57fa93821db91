"""What keeps a throwaway QEMU from the rest of the host: it may do what its guest may, or less.

SELinux: it runs in the guest's own context, categories included, as ``runcon`` would start it.
AppArmor: it gets a profile of its own, for one proof. The guest's profile has the guest's disks and
sockets, and that of a libvirt guest is loaded only as long as the guest runs. Where that cannot be
had, nothing is proven.

A profile is loaded from memory and removed at the end. One that a killed mapsave has left does
nothing by itself, and is removed by the next proof.
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mapsave import errors
from mapsave.labels import apparmor_rules, modules
from mapsave.labels.apparmor import FS, Confinement
from mapsave.labels.label import name_of
from mapsave.labels.policy import BUILT_IN, Policy
from mapsave.labels.selinux import Selinux
from mapsave.labels.selinuxfs import ATTRIBUTE, SelinuxFs
from mapsave.labels.system import CAP_MAC_ADMIN, System
from mapsave.monitor import process
from mapsave.proof.command_line import NAME, program_at

_HOST = System()
_LOADED = re.compile(rf"({re.escape(NAME)}-(\d+)-(\d+)-\w+) \(")
_PROFILE = """abi <abi/3.0>,
include <tunables/global>
profile {name} flags=(attach_disconnected) {{
  include <abstractions/base>
  {rules}
  /dev/kvm rw,
  /dev/net/tun rw,
  @{{PROC}}/@{{pid}}/{{cmdline,status}} r,
  @{{PROC}}/@{{pid}}/task/@{{tid}}/comm rw,
  @{{PROC}}/sys/vm/{{max_map_count,overcommit_memory}} r,
  @{{sys}}/kernel/mm/transparent_hugepage/{{,**}} r,
  @{{sys}}/devices/system/{{cpu,node}}/{{,**}} r,
  unix type=stream,
  ptrace (readby, tracedby),
  signal (receive),
}}
"""
# What svirt_t needs besides the image: the socket of its monitor, in a directory of that label.
_OF_LABEL = (
    ("file", ("read", "open", "map")),
    ("dir", ("search", "write", "add_name")),
    ("sock_file", ("create",)),
)


@dataclasses.dataclass(frozen=True)
class Kept:
    """How a throwaway QEMU is confined; without any of it, as we are.

    ``context``: of SELinux; ``label``: what it may use then. ``by_profile``: of AppArmor.
    """

    context: str | None = None
    label: str | None = None
    by_profile: bool = False

    def words(self) -> str:
        """Return how it is said; nothing where it is not confined."""
        if self.context is not None:
            return f"in {self.context}"
        return "in a profile of AppArmor that is made for it" if self.by_profile else ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a process writes to an ``attribute`` of its own for the program that it executes."""

    attribute: str = ""
    value: str = ""


def contexts_of(pid: int | None, system: System = _HOST) -> Mapping[str, str]:
    """Return in which context a process runs, by the security module. Raises NotProvable."""
    found = {}
    for module in modules.active(BUILT_IN["auto"], system) if pid is not None else ():
        try:
            context = module.process(pid)
        except (OSError, errors.MapsaveError) as error:
            raise _refused(f"how its QEMU is confined cannot be read: {error}", None) from None
        if context is not None:
            found[module.name] = context
    return found


def unwrapped(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command without ``runcon CONTEXT`` and ``aa-exec -p PROFILE``, and what these say.

    What else they may be called with is left where it is.
    """
    words, found = list(argv), {}
    names = [os.path.basename(word) for word in words]
    if "runcon" in names[:-1] and not words[at := names.index("runcon") + 1].startswith("-"):
        found["selinux"] = words[at]
        del words[at - 1 : at + 1], names[at - 1 : at + 1]
    if "aa-exec" in names[:-2] and words[at := names.index("aa-exec") + 1] in ("-p", "--profile"):
        found["apparmor"] = words[at + 1]
        del words[at - 1 : at + (3 if words[at + 2 : at + 3] == ["--"] else 2)]
    return words, found


def default_contexts(system: System = _HOST) -> dict[str, str]:
    """Return contexts as libvirt gives them to a guest at each start: with categories of its own.

    Of AppArmor none of its profiles, for it makes one then.
    """
    found = {"apparmor": "libvirt-unknown"}
    kind = Selinux(BUILT_IN["auto"], system).kind()
    file = f"/etc/selinux/{kind}/contexts/virtual_domain_context"
    first = (system.read_or_none(file) or "").split("\n")[0].split(":")[:3]
    if len(first) == 3:
        low, high = sorted(int.from_bytes(os.urandom(2)) % 512 for _ in range(2))
        found["selinux"] = f"{':'.join(first)}:s0:c{low},c{high + 512}"
    return found


def of(contexts: Mapping[str, str], policy: Policy, program: str, system: System = _HOST) -> Kept:
    """Return how a throwaway QEMU of a guest in these ``contexts`` is confined. Blocks.

    ``program`` is what is executed first, ``policy`` says how images are labelled. Raises
    NotProvable where it cannot be.
    """
    context, label = _selinux(contexts.get("selinux"), policy, program, system)
    by_profile = _needs_profile(contexts.get("apparmor"), system)
    smack = contexts.get("smack") if modules.is_active("smack", system) else None
    if smack not in (None, system.read_or_none("/proc/self/attr/current")):
        raise _refused(f"mapsave starts no QEMU with the label {smack!r} of Smack", None)
    is_confined = context is not None or by_profile
    if is_confined and process.status(os.getpid()).get("NoNewPrivs") == "1":
        raise _refused(
            "its QEMU is confined, and mapsave may start no other so (NoNewPrivileges)",
            "set NoNewPrivileges=no for the unit (docs/mac.md)",
        )
    return Kept(context, label, by_profile)


def _selinux(
    context: str | None, policy: Policy, program: str, system: System
) -> tuple[str | None, str | None]:
    kernel = SelinuxFs(system)
    if context is None or not modules.is_active("selinux", system):
        return None, None
    own = kernel.own() or ""
    if own == context:
        return None, None
    if policy.module in ("none", "dac"):  # of images; what is the proof's own has its label anyway
        policy = BUILT_IN["auto"]
    label = Selinux(policy, system).label_for(context)
    if label is None:
        raise _refused(
            f"the system does not say which files a QEMU in {context} may use",
            "name selinux.image_type in a policy",
        )
    found = shutil.which(program) or program
    asked = [(own, context, "process", "transition"), (context, own, "fd", "use")]
    with contextlib.suppress(OSError):
        of_program = system.get_attribute(os.path.realpath(found), ATTRIBUTE)
        asked += [(context, of_program, "file", "entrypoint")] if of_program else []
    asked += [(context, label, kind, each) for kind, names in _OF_LABEL for each in names]
    missing = [each for each in asked if kernel.allows(*each) is False]
    if not missing:
        return context, label
    if not kernel.enforcing():
        return None, None
    raise _refused(
        f"SELinux does not let mapsave start a QEMU in the guest's context {context}",
        f"mapsave setup selinux; it lacks: {' '.join(_rules(missing))}",
    )


def _rules(missing: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    for source, target, kind, name in missing:
        yield f"allow {source.split(':')[2]} {target.split(':')[2]}:{kind} {name};"


def check_image(kept: Kept, fd: int, path: str, system: System = _HOST) -> None:
    """Raise NotProvable where SELinux keeps the image from a QEMU that is confined so."""
    if kept.context is None:
        return
    kernel, label = SelinuxFs(system), system.get_attribute(fd, ATTRIBUTE)
    asked = [(kept.context, label or "", "file", each) for each in ("read", "open", "map")]
    missing = [each for each in asked if label and kernel.allows(*each) is False]
    if missing and kernel.enforcing():
        raise _refused(
            f"SELinux does not let a QEMU in {kept.context} open and map {path!r}, labelled "
            f"{label}",
            f"choose a policy that labels images, or add: {' '.join(_rules(missing))}",
        )


def _needs_profile(context: str | None, system: System) -> bool:
    if context is None or not modules.is_active("apparmor", system):
        return False
    if not Confinement.parse(context).binding:
        return False
    why = None
    if not system.capable(CAP_MAC_ADMIN):
        why = "mapsave lacks CAP_MAC_ADMIN, which loading a profile requires"
    elif apparmor_rules.parser() is None:
        why = "apparmor_parser is not installed"
    if why is not None:
        raise _refused(
            f"its QEMU is confined by AppArmor, and a profile for another cannot be loaded: {why}",
            "run mapsave as root",
        )
    return True


@contextlib.contextmanager
def applied(
    kept: Kept, directory: Path, image: int, argv: Sequence[str], written: int | None = None
) -> Iterator[Entry]:
    """Yield what the throwaway QEMU of ``argv`` is started with; it must be gone at the end.

    It may read the file ``image``, write the file ``written``, and use its own ``directory``.
    Blocks. Raises NotProvable.
    """
    with contextlib.ExitStack() as stack:
        if kept.label is not None and written is not None:
            stack.enter_context(_lent(written, kept.label))
        if kept.by_profile:
            rules = [
                f'{apparmor_rules.quote(str(directory))[:-1]}/{{,*}}" rw,',
                apparmor_rules.rule(name_of(image, ""), "r"),
            ]
            if written is not None:
                # It may have no name yet; to AppArmor it has that, without what proc(5) adds.
                path = os.readlink(f"/proc/self/fd/{written}").removesuffix(" (deleted)")
                rules.append(apparmor_rules.rule(path, "rw"))
            name = stack.enter_context(_profile(directory, [*rules, *_rules_for(argv)]))
            # The first is there since Linux 5.8, for this module alone.
            names = ("apparmor/exec", "exec")
            attribute = next(each for each in names if os.path.exists(f"/proc/self/attr/{each}"))
            yield Entry(attribute, f"exec {name}")
        elif kept.context is not None:
            yield Entry("exec", kept.context)
        else:
            yield Entry()


@contextlib.contextmanager
def _lent(fd: int, label: str) -> Iterator[None]:
    """Have a file labelled for QEMU to write to. Raises NotProvable."""
    before = os.getxattr(fd, ATTRIBUTE)
    try:
        os.setxattr(fd, ATTRIBUTE, os.fsencode(label) + b"\0")
    except OSError as error:
        raise _refused(
            f"SELinux lets no file be labelled {label}: {error.strerror}", None
        ) from None
    try:
        yield
    finally:
        os.setxattr(fd, ATTRIBUTE, before)


@contextlib.contextmanager
def _profile(directory: Path, rules: Sequence[str]) -> Iterator[str]:
    _sweep()
    pid, started = process.identity(os.getpid()) or (0, 0)
    name = f"{NAME}-{pid}-{started}-{directory.name}"
    text = _PROFILE.format(name=name, rules="\n  ".join(rules))
    if (complaint := apparmor_rules.parsed(_HOST, "-r", text)) is not None:
        raise _refused(f"AppArmor takes no profile for the throwaway QEMU: {complaint}", None)
    try:
        yield name
    finally:
        _remove(name)


def _rules_for(argv: Sequence[str]) -> Iterator[str]:
    """Yield rules for QEMU itself, and for the files that its machine is made of."""
    # What starts QEMU in this profile, if anything does, executes it.
    started = [
        os.path.realpath(shutil.which(word) or word) for word in argv[: program_at(argv) + 1]
    ]
    for each in started:
        yield apparmor_rules.rule(each, "mrix" if len(started) > 1 else "mr")
    for place in {"/usr", *map(str, Path(started[-1]).parents[1:2])} - {"/"}:
        yield f'{apparmor_rules.quote(place)[:-1]}/**" mr,'
    words = {piece for word in argv for piece in re.split(r'[,="\s]', word)}
    for piece in sorted(words):
        real = os.path.realpath(piece)
        if piece.startswith("/") and os.path.isfile(real) and not real.startswith("/proc/"):
            yield apparmor_rules.rule(real, "rk")
    if os.geteuid() == 0:
        yield "capability setgid, capability setuid, capability dac_read_search,"


def _sweep() -> None:
    """Remove profiles of proofs whose mapsave has died, and their QEMUs with it."""
    try:
        listed = _HOST.read_or_none(f"{FS}/profiles") or ""
    except OSError:
        return
    for found in _LOADED.finditer(listed):
        if not process.alive(int(found[2]), int(found[3])):
            _remove(found[1])


def _remove(name: str) -> None:
    apparmor_rules.parsed(_HOST, "-R", f"profile {name} {{}}\n")


def _refused(why: str, hint: str | None) -> errors.NotProvable:
    return errors.NotProvable(f"the image cannot be proven: {why}", hint=hint)
