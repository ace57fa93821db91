import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.labels import labelling
from mapsave.labels.policy import Policy, SelinuxOptions
from mapsave.labels.selinux import Selinux
from msgspec.structs import replace

from tests.kit import files
from tests.labels.conftest import BORN, IMAGE, OWN, PID, QEMU, Host, labelled

ATTRIBUTE = "security.selinux"
CONTEXTS = "/etc/selinux/default/contexts/virtual_image_context"


def policy(module: Any = "selinux", **options: Any) -> Policy:
    return Policy(module, name="mine", selinux=SelinuxOptions(**options))


def apply(host: Host, image: Path, access: Any = "save", **options: Any) -> labelling.Label:
    """Label the image, leave it so, and return what was reported."""
    with files.opened(image, os.O_WRONLY if access == "save" else os.O_RDONLY) as fd:
        work = labelling.Labelling(policy(**options), host)
        with work.applied(labelling.Target(fd, str(image), (), PID, access)) as applied:
            applied.keep()
            return applied.label


def test_label_follows_from_the_running_qemu(selinux: Host, image: Path) -> None:
    label = apply(selinux, image)
    assert selinux.of(image, ATTRIBUTE) == IMAGE + "\0"
    assert label == labelling.Label("selinux", IMAGE, QEMU, BORN, {"at_rest": "default"})


@pytest.mark.parametrize(
    ("process_level", "file_level"),
    [
        ("s0:c1,c2", "s0:c1,c2"),
        ("s0:c2,c1", "s0:c1,c2"),  # in the kernel's order
        ("s0-s0:c0,c9", "s0"),  # the low part of a range
        ("s0:c5-s0:c0,c9", "s0:c5"),
    ],
)
def test_categories(selinux: Host, process_level: str, file_level: str) -> None:
    module = Selinux(policy(), selinux)
    wanted = module.label_for(f"system_u:system_r:svirt_t:{process_level}")
    assert wanted == f"system_u:object_r:svirt_image_t:{file_level}"


def test_type_and_label_of_the_policy(selinux: Host) -> None:
    module = Selinux(policy(image_type="svirt_prot_exec_image_t"), selinux)
    assert module.label_for(QEMU) == "system_u:object_r:svirt_prot_exec_image_t:s0:c1,c2"
    module = Selinux(policy(label="u:object_r:virt_t:s0:c9,c3"), selinux)
    assert module.label_for(QEMU) == "u:object_r:virt_t:s0:c3,c9"
    assert module.label_for(None) == "u:object_r:virt_t:s0:c3,c9"


def test_type_without_the_context_file(selinux: Host) -> None:
    selinux.locate(CONTEXTS).unlink()
    module = Selinux(policy(image_type="virt_t"), selinux)
    assert module.label_for(QEMU) == "system_u:object_r:virt_t:s0:c1,c2"
    with pytest.raises(errors.PolicyViolation) as caught:
        Selinux(policy(), selinux).label_for(QEMU)
    assert caught.value.message == (
        f"policy mine: {CONTEXTS} does not define the label of guest images"
    )
    assert "selinux.image_type" in (caught.value.hint or "")
    assert Selinux(policy("auto"), selinux).label_for(QEMU) is None


def test_unknown_type_is_told_before_anything_is_written(selinux: Host, image: Path) -> None:
    with pytest.raises(errors.PolicyViolation) as caught:
        apply(selinux, image, image_type="svrit_image_t")
    assert caught.value.message == (
        "policy mine requires the label system_u:object_r:svrit_image_t:s0:c1,c2, which the "
        "loaded SELinux policy does not know"
    )
    assert selinux.of(image, ATTRIBUTE) == BORN


def test_refused_by_the_loaded_policy(selinux: Host, image: Path) -> None:
    wrong = "system_u:object_r:virt_image_t:s0:c1,c2"
    with pytest.raises(errors.LabelRefused) as caught:
        apply(selinux, image, image_type="virt_image_t")
    assert caught.value.message == (
        f"SELinux would refuse {image} to QEMU: its context {QEMU} may not write a file "
        f"labelled {wrong} (policy mine requires {wrong})"
    )
    assert caught.value.exit_code == 7
    assert "selinux.image_type" in (caught.value.hint or "")
    assert caught.value.data == {
        "file": str(image), "label": wrong, "process": QEMU, "wanted": wrong,
        "class": "file", "permission": "write",
    }  # fmt: skip
    assert selinux.of(image, ATTRIBUTE) == BORN + "\0"


def test_descriptors_of_mapsave_may_be_refused(selinux: Host, image: Path) -> None:
    selinux.allowed.remove((QEMU, OWN, "9", "1"))
    with pytest.raises(errors.LabelRefused) as caught:
        apply(selinux, image)
    assert f"{QEMU} may not use descriptors opened by mapsave, which runs as {OWN}" in str(
        caught.value
    )
    assert caught.value.hint == "add the rule: allow svirt_t initrc_t:fd use;"
    assert (caught.value.data["class"], caught.value.data["permission"]) == ("fd", "use")
    assert selinux.of(image, ATTRIBUTE) == BORN + "\0"


@pytest.mark.parametrize("how", ["permissive host", "permissive domain"])
def test_permissive_goes_on(
    selinux: Host, image: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    selinux.allowed.clear()
    if how == "permissive host":
        selinux.put("/sys/fs/selinux/enforce", "0")
    else:
        selinux.failures["flags"] = 1
    with caplog.at_level(logging.WARNING):
        apply(selinux, image)
    assert selinux.of(image, ATTRIBUTE) == IMAGE + "\0"
    assert ("SELinux is permissive, continuing" in caplog.text) is (how == "permissive host")


def test_relabelling_denied(selinux: Host, image: Path) -> None:
    selinux.failures["set"] = errno.EACCES
    with pytest.raises(errors.LabelRefused) as caught:
        apply(selinux, image)
    assert caught.value.message == (
        f"SELinux does not let mapsave label {image}: it is {BORN}, policy mine requires "
        f"{IMAGE}: Permission denied"
    )
    assert "relabelfrom" in (caught.value.hint or "")


def test_relabelling_denied_but_not_needed(
    selinux: Host, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    selinux.failures["set"] = errno.EACCES
    selinux.allowed.add((QEMU, BORN, "7", "4"))
    assert apply(selinux, image).value == BORN
    assert f"{image} keeps the label {BORN}: Permission denied" in caplog.text


@pytest.mark.parametrize("allowed", [True, False])
def test_label_of_the_mount_decides(selinux: Host, image: Path, allowed: bool) -> None:
    selinux.failures["set"] = errno.EOPNOTSUPP
    if allowed:
        selinux.allowed.add((QEMU, BORN, "7", "4"))
        assert apply(selinux, image).value == BORN
    else:
        with pytest.raises(errors.LabelRefused, match=f"may not write a file labelled {BORN}"):
            apply(selinux, image)


def test_restore_leaves_a_readable_image_alone(selinux: Host, image: Path) -> None:
    selinux.allowed.add((QEMU, BORN, "7", "2"))
    assert apply(selinux, image, "restore").value == BORN
    assert selinux.of(image, ATTRIBUTE) == BORN


def _expected(work: labelling.Labelling, image: Path, label: labelling.Label) -> str | None:
    with labelled(work, image, pid=None, access="restore", expected=label) as applied:
        return applied.label.value


def test_what_a_qemu_may_read_but_not_open_or_map(selinux: Host, image: Path) -> None:
    """It is labelled before QEMU is started, for the context that it is expected in."""
    expected = labelling.Label("selinux", process=QEMU)
    work = labelling.Labelling(policy(), selinux)
    with pytest.raises(errors.LabelRefused, match="may not open a file labelled") as found:
        _expected(work, image, expected)
    assert found.value.hint == "add the rule: allow svirt_t svirt_image_t:file { open map };"
    selinux.allowed.update(
        (QEMU, IMAGE, "7", f"{1 << permission - 1:x}") for permission in (18, 20)
    )
    for permission, value in ((2, IMAGE), (18, IMAGE), (20, BORN)):
        selinux.allowed.add((QEMU, BORN, "7", f"{1 << permission - 1:x}"))
        assert _expected(work, image, expected) == value
        assert str(selinux.of(image, ATTRIBUTE)).rstrip("\0") == BORN


def test_file_that_is_to_be_the_ram_of_a_guest(selinux: Host, image: Path) -> None:
    """QEMU opens and maps it to read and write; it keeps its label."""
    expected = labelling.Label("selinux", process=QEMU)
    work = labelling.Labelling(policy(), selinux)
    with image.open("rb") as file:
        for permission in (2, 18, 20):
            selinux.allowed.add((QEMU, IMAGE, "7", f"{1 << permission - 1:x}"))
        selinux.allowed.discard((QEMU, IMAGE, "7", f"{1 << 3 - 1:x}"))
        with pytest.raises(errors.LabelRefused, match="may not write a file labelled"):
            work.give(file.fileno(), "RAM", expected)
        assert str(selinux.of(image, ATTRIBUTE)).rstrip("\0") == BORN
        selinux.allowed.add((QEMU, IMAGE, "7", f"{1 << 3 - 1:x}"))
        work.give(file.fileno(), "RAM", expected)
    assert str(selinux.of(image, ATTRIBUTE)).rstrip("\0") == IMAGE


def test_restore_labels_what_qemu_may_not_read(selinux: Host, image: Path) -> None:
    assert apply(selinux, image, "restore").value == IMAGE
    assert selinux.of(image, ATTRIBUTE) == IMAGE + "\0"


@pytest.mark.parametrize(
    ("at_rest", "expected"),
    [
        ("default", BORN),
        ("previous", "system_u:object_r:var_lib_t:s0"),
        ("keep", IMAGE),
        ("u:object_r:virt_content_t:s0", "u:object_r:virt_content_t:s0"),
    ],
)
def test_label_for_rest(selinux: Host, image: Path, at_rest: str, expected: str) -> None:
    selinux.label(image, ATTRIBUTE, "system_u:object_r:var_lib_t:s0")
    work = labelling.Labelling(policy(at_rest=at_rest), selinux)
    with labelled(work, image) as applied:
        assert applied.at_rest() == []
    assert (selinux.of(image, ATTRIBUTE) or "").rstrip("\0") == expected


@pytest.mark.parametrize("born", [IMAGE, None])
def test_default_label_that_cannot_be_told(selinux: Host, image: Path, born: str | None) -> None:
    """A file that was born labelled keeps the guest's own label, and that is said."""
    selinux.failures["/sys/fs/selinux/create"] = errno.EACCES
    if born is None:
        selinux.attributes.pop((image.stat().st_ino, ATTRIBUTE))
    else:
        selinux.label(image, ATTRIBUTE, born)
    with labelled(labelling.Labelling(policy(), selinux), image) as applied:
        (problem,) = applied.at_rest()
    assert f"it keeps {IMAGE} (run: restorecon {image})" in problem.text
    assert not problem.recoverable
    assert (selinux.of(image, ATTRIBUTE) or "").rstrip("\0") == IMAGE


def test_label_from_before_stands_in_for_the_default(selinux: Host, image: Path) -> None:
    selinux.failures["/sys/fs/selinux/create"] = errno.EACCES
    with labelled(labelling.Labelling(policy(), selinux), image) as applied:
        assert applied.at_rest() == []
    assert selinux.of(image, ATTRIBUTE) == BORN + "\0"


def test_default_label_comes_from_the_directory(selinux: Host, image: Path) -> None:
    Selinux(policy(), selinux).kernel.default(str(image.parent))
    assert selinux.asked[-1] == ("/sys/fs/selinux/create", f"{OWN} {BORN} 7".encode())


def test_check_touches_nothing(selinux: Host, image: Path) -> None:
    work = labelling.Labelling(policy(), selinux)
    label = work.check(str(image.parent), PID, "save")
    assert label == labelling.Label("selinux", IMAGE, QEMU)
    before = dict(selinux.attributes)
    selinux.allowed.clear()
    with pytest.raises(errors.LabelRefused, match="may not write a file labelled"):
        work.check(str(image.parent), PID, "save")
    assert selinux.attributes == before
    assert selinux.written == []


def test_files_are_born_with_the_label(selinux: Host) -> None:
    work = labelling.Labelling(policy(), selinux)
    with pytest.raises(ZeroDivisionError), work.creating(PID):
        assert selinux.written == [("/proc/thread-self/attr/fscreate", IMAGE.encode() + b"\0")]
        raise ZeroDivisionError
    assert selinux.written[1:] == [("/proc/thread-self/attr/fscreate", b"\0")]


def test_earlier_fscreate_is_put_back(selinux: Host) -> None:
    selinux.put("/proc/thread-self/attr/fscreate", BORN + "\0")
    with labelling.Labelling(policy(), selinux).creating(PID):
        pass
    assert selinux.written[-1] == ("/proc/thread-self/attr/fscreate", BORN.encode() + b"\0")


@pytest.mark.parametrize("why", ["no pid", "may not create", "cannot write"])
def test_creating_without_effect(selinux: Host, why: str) -> None:
    if why == "may not create":
        selinux.allowed.remove((OWN, IMAGE, "7", "8"))
    if why == "cannot write":
        selinux.failures["/proc/thread-self/attr/fscreate"] = errno.EACCES
    with labelling.Labelling(policy(), selinux).creating(None if why == "no pid" else PID):
        pass
    assert selinux.written == []


def test_kernel_without_a_loaded_policy(selinux: Host) -> None:
    selinux.put(f"/proc/{PID}/attr/current", "kernel\0")
    with pytest.raises(errors.LabelUnavailable) as caught:
        labelling.Labelling(policy(), selinux).check("/tmp", PID, "save")
    assert caught.value.message == f"SELinux is on but has no policy: pid {PID} runs as 'kernel'"


def test_descriptors_that_qemu_may_not_use_are_named(selinux: Host, image: Path) -> None:
    """Handed over without being asked about: the label would do, the descriptor would not."""
    selinux.label(image, "security.selinux", IMAGE)
    rule = "(add the rule: allow svirt_t initrc_t:fd use;)"
    with open(image, "wb") as file:
        refused = labelling.describe_refusal("no", file.fileno(), str(image), PID, selinux)
        assert rule not in refused.message
        selinux.allowed.remove((QEMU, OWN, "9", "1"))
        refused = labelling.describe_refusal("no", file.fileno(), str(image), PID, selinux)
        missing = (
            "may write such a file, and may not use descriptors opened by mapsave, which runs "
            f"as {OWN}"
        )
        assert f"{missing} {rule}" in refused.message


def test_qemu_that_is_gone(selinux: Host, image: Path) -> None:
    selinux.locate(f"/proc/{PID}/attr/current").unlink()
    with pytest.raises(errors.Unreachable, match=f"there is no process {PID}"):
        apply(selinux, image)


def test_policy_that_may_not_be_asked(selinux: Host, image: Path) -> None:
    """A manager without the right to use selinuxfs labels all the same."""
    selinux.failures["/sys/fs/selinux/access"] = errno.EACCES
    selinux.failures["/sys/fs/selinux/context"] = errno.EACCES
    assert apply(selinux, image).value == IMAGE


def test_mcs_free_policy(selinux: Host) -> None:
    module = Selinux(replace(policy(), module="selinux"), selinux)
    selinux.failures["/sys/fs/selinux/context"] = errno.EACCES
    assert module.label_for("user_u:user_r:svirt_t") == "system_u:object_r:svirt_image_t"


def test_after_a_restore_the_image_has_the_label_it_had(selinux: Host, image: Path) -> None:
    before = "system_u:object_r:var_lib_t:s0"
    selinux.label(image, ATTRIBUTE, before)
    work = labelling.Labelling(policy(at_rest="default"), selinux)
    with labelled(work, image, access="restore") as applied:
        assert selinux.of(image, ATTRIBUTE) == IMAGE + "\0"
        assert applied.at_rest() == []
    assert selinux.of(image, ATTRIBUTE) == before + "\0"
