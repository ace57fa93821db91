"""How the QEMU of a proof is confined: where that is known from, and what is asked beforehand."""

from pathlib import Path

import pytest
from mapsave import errors
from mapsave.labels.policy import Policy
from mapsave.proof import confinement

from tests.labels.conftest import IMAGE, OWN, QEMU, Host

PROGRAM = "/usr/bin/qemu-system-x86_64"


@pytest.mark.parametrize(
    ("words", "left", "contexts"),
    [
        (["runcon", QEMU, PROGRAM, "-m", "1"], [PROGRAM, "-m", "1"], {"selinux": QEMU}),
        (["aa-exec", "-p", "web", "--", PROGRAM], [PROGRAM], {"apparmor": "web"}),
        (["/usr/bin/aa-exec", "--profile", "web", PROGRAM], [PROGRAM], {"apparmor": "web"}),
        (["nice", "runcon", QEMU, PROGRAM], ["nice", PROGRAM], {"selinux": QEMU}),
        # What else these programs can do stays theirs.
        (["runcon", "-t", "svirt_t", PROGRAM], ["runcon", "-t", "svirt_t", PROGRAM], {}),
        (["aa-exec", "-d", "-p", "web", PROGRAM], ["aa-exec", "-d", "-p", "web", PROGRAM], {}),
        ([PROGRAM, "runcon"], [PROGRAM, "runcon"], {}),
    ],
)
def test_what_a_launch_is_confined_by(
    words: list[str], left: list[str], contexts: dict[str, str]
) -> None:
    assert confinement.unwrapped(words) == (left, contexts)


@pytest.fixture
def ready(selinux: Host) -> Host:
    """A policy that has the rules that ship."""
    for kind, number, names in (
        ("process", 2, ("transition",)),
        ("dir", 3, ("search", "write", "add_name")),
        ("sock_file", 4, ("create",)),
    ):
        selinux.put(f"/sys/fs/selinux/class/{kind}/index", str(number))
        for at, name in enumerate(names, 1):
            selinux.put(f"/sys/fs/selinux/class/{kind}/perms/{name}", str(at))
            pair = (OWN, QEMU) if kind == "process" else (QEMU, IMAGE)
            selinux.allowed.add((*pair, str(number), f"{1 << at - 1:x}"))
    for number in (18, 20):  # open, map
        selinux.allowed.add((QEMU, IMAGE, "7", f"{1 << number - 1:x}"))
    return selinux


def of(host: Host, **contexts: str) -> confinement.Kept:
    return confinement.of(contexts, Policy("selinux", name="mine"), PROGRAM, host)


def test_in_the_context_of_the_guest(ready: Host) -> None:
    assert of(ready, selinux=QEMU) == confinement.Kept(QEMU, IMAGE)
    assert of(ready, selinux=OWN) == of(ready) == confinement.Kept()


def test_a_rule_that_is_missing_is_named(ready: Host) -> None:
    ready.allowed.remove((OWN, QEMU, "2", "1"))
    with pytest.raises(errors.NotProvable) as caught:
        of(ready, selinux=QEMU)
    assert "allow initrc_t svirt_t:process transition;" in str(caught.value.hint)
    ready.put("/sys/fs/selinux/enforce", "0")  # where nothing is refused, nothing is confined
    assert of(ready, selinux=QEMU) == confinement.Kept()


def test_by_a_profile_where_the_guest_has_one(apparmor: Host) -> None:
    assert of(apparmor, apparmor="vmq (enforce)").by_profile
    for free in ("unconfined", "vmq (complain)"):
        assert of(apparmor, apparmor=free) == confinement.Kept()
    apparmor.failures["capable"] = (33,)
    with pytest.raises(errors.NotProvable, match="CAP_MAC_ADMIN"):
        of(apparmor, apparmor="libvirt-8a4a3a4c (enforce)")


def test_a_label_of_smack_cannot_be_had(smack: Host) -> None:
    with pytest.raises(errors.NotProvable, match="Smack"):
        of(smack, smack="Guest1")


def test_contexts_as_libvirt_chooses_them(selinux: Host) -> None:
    file = "/etc/selinux/default/contexts/virtual_domain_context"
    selinux.put(file, "system_u:system_r:svirt_t:s0\nsystem_u:system_r:svirt_tcg_t:s0\n")
    found = confinement.default_contexts(selinux)
    context, _, categories = found["selinux"].rpartition(":")
    assert context == "system_u:system_r:svirt_t:s0"
    first, second = (int(each.removeprefix("c")) for each in categories.split(","))
    assert 0 <= first < second < 1024


def test_image_that_may_not_be_mapped(ready: Host, image: Path) -> None:
    kept = confinement.Kept(QEMU, IMAGE)
    with image.open("rb") as file, pytest.raises(errors.NotProvable, match="open and map"):
        confinement.check_image(kept, file.fileno(), str(image), ready)
    ready.label(image, "security.selinux", IMAGE)
    with image.open("rb") as file:
        confinement.check_image(kept, file.fileno(), str(image), ready)
