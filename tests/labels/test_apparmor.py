import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mapsave import errors
from mapsave.labels import labelling, recovery
from mapsave.labels.label import Label, Target
from mapsave.labels.policy import ApparmorOptions, Policy

from tests.labels.conftest import PID, Host, labelled

RULES = "/etc/apparmor.d/local/mapsave-vmq"
ACCESS = "/sys/kernel/security/apparmor/.access"


def work(host: Host, **options: Any) -> labelling.Labelling:
    return labelling.Labelling(
        Policy("apparmor", name="mine", apparmor=ApparmorOptions(**options)), host
    )


def rules(host: Host, path: str = RULES) -> list[str]:
    file = host.locate(path)
    return [line.strip() for line in file.read_text().splitlines()] if file.exists() else []


def use(host: Host, image: Path, access: Any = "save", *others: str, **options: Any) -> list[str]:
    """Label the image; return the lines that QEMU's profile had in the meantime."""
    with labelled(work(host, **options), image, others=others, access=access):
        return rules(host)


def test_rule_for_every_name_while_the_save_lasts(apparmor: Host, image: Path) -> None:
    final = str(image.with_name("a"))
    assert use(apparmor, image, "save", final) == [
        f'"{image}" rw,  # mapsave',
        f'"{final}" rw,  # mapsave',
    ]
    assert rules(apparmor) == []
    profile = str(apparmor.locate("/etc/apparmor.d/vmq"))
    assert [command[1:] for command in apparmor.commands] == [["-r", "-K", profile]] * 2


def test_path_is_the_real_one(apparmor: Host, image: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(image.parent)
    with open(image, "wb") as file:
        through = str(tmp_path / "link" / "a.partial")
        others = (str(tmp_path / "link" / "b"), str(image))
        with work(apparmor).applied(Target(file.fileno(), through, others, PID, "save")):
            assert rules(apparmor) == [
                f'"{image}" rw,  # mapsave',
                f'"{image.parent}/b" rw,  # mapsave',
            ]


@pytest.mark.parametrize(
    "current", ["unconfined\n", "vmq (complain)\n", "vmq (unconfined)\n"], ids=str.strip
)
def test_nothing_to_do_for(apparmor: Host, image: Path, current: str) -> None:
    apparmor.put(f"/proc/{PID}/attr/apparmor/current", current)
    assert use(apparmor, image) == []
    assert apparmor.commands == []


@pytest.mark.parametrize(
    ("own", "expected"), [("unconfined", 0), ("mapsave (enforce)", 1), ("mapsave (complain)", 1)]
)
def test_restore_needs_a_rule_only_if_mapsave_is_confined(
    apparmor: Host, image: Path, own: str, expected: int
) -> None:
    apparmor.put("/proc/self/attr/apparmor/current", own)
    assert use(apparmor, image, "restore") == [f'"{image}" r,  # mapsave'] * expected


def test_a_qemu_that_is_to_open_it_needs_a_rule(apparmor: Host, image: Path) -> None:
    """It is not started yet, and no descriptor of mapsave's will do."""
    expected = Label("apparmor", process="vmq (enforce)")
    with labelled(work(apparmor), image, pid=None, access="restore", expected=expected):
        assert rules(apparmor) == [f'"{image}" r,  # mapsave']
    assert rules(apparmor) == []


def test_rule_that_is_there_already(apparmor: Host, image: Path) -> None:
    apparmor.put(ACCESS, "")
    apparmor.allowed.add(("vmq", str(image)))
    assert use(apparmor, image) == []
    assert apparmor.commands == []


def test_profile_of_libvirt(apparmor: Host, image: Path) -> None:
    apparmor.put(f"/proc/{PID}/attr/apparmor/current", "libvirt-1 (enforce)")
    files = "/etc/apparmor.d/libvirt/libvirt-1.files"
    apparmor.put("/etc/apparmor.d/libvirt/libvirt-1", "#include <libvirt/libvirt-1.files>\n")
    apparmor.put(files, '"/disk" rwk,\n')
    with labelled(work(apparmor), image) as applied:
        assert rules(apparmor, files) == ['"/disk" rwk,', f'"{image}" rw,  # mapsave']
        assert applied.label.process == "libvirt-1 (enforce)"
        applied.at_rest()
    assert rules(apparmor, files) == ['"/disk" rwk,']


def test_profile_named_by_a_path(apparmor: Host, image: Path) -> None:
    apparmor.put(f"/proc/{PID}/attr/apparmor/current", "/usr/bin/qemu (enforce)")
    apparmor.put("/etc/apparmor.d/usr.bin.qemu", "include <local/mapsave-usr.bin.qemu>\n")
    with labelled(work(apparmor), image):
        assert len(rules(apparmor, "/etc/apparmor.d/local/mapsave-usr.bin.qemu")) == 1


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("no profile file", "{root}/etc/apparmor.d/vmq: No such file or directory"),
        (
            "no include",
            "{root}/etc/apparmor.d/vmq lacks the line: include if exists <local/mapsave-vmq>",
        ),
        ("no capability", "mapsave lacks CAP_MAC_ADMIN, which loading a profile requires"),
        ("stack", "the policy names no rules file for a profile of that name"),
    ],
)
def test_no_way_to_add_the_rule(apparmor: Host, image: Path, obstacle: str, reason: str) -> None:
    profile = "vmq"
    if obstacle == "no profile file":
        apparmor.locate("/etc/apparmor.d/vmq").unlink()
    if obstacle == "no include":
        apparmor.put("/etc/apparmor.d/vmq", "profile vmq {\n}\n")
    if obstacle == "no capability":
        apparmor.failures["capable"] = (33,)
    if obstacle == "stack":
        profile = "vmq//&other"
        apparmor.put(f"/proc/{PID}/attr/apparmor/current", f"{profile} (enforce)")
    rule = f'"{image}" rw,'
    reason = reason.format(root=apparmor.root)
    with pytest.raises(errors.LabelRefused) as caught:
        use(apparmor, image)
    assert caught.value.message == (
        f"AppArmor would refuse {image} to QEMU: its profile {profile} (enforce) has no rule "
        f"for it (policy mine requires {rule}), and mapsave cannot add it: {reason}"
    )
    assert caught.value.hint == f"add to the profile {profile}: {rule}"
    assert caught.value.exit_code == 7
    with pytest.raises(errors.LabelRefused) as caught:
        work(apparmor).check(str(image.parent), PID, "save")
    assert caught.value.hint == f'add to the profile {profile}: "{image.parent}/*" rw,'
    assert rules(apparmor) == []
    assert apparmor.commands == []


def test_rules_left_to_the_administrator(apparmor: Host, image: Path) -> None:
    assert use(apparmor, image, profiles=()) == []  # the kernel cannot be asked: go on
    apparmor.put(ACCESS, "")
    with pytest.raises(errors.LabelRefused, match="the policy does not let mapsave add rules"):
        use(apparmor, image, profiles=())
    apparmor.allowed.add(("vmq", str(image)))
    assert use(apparmor, image, profiles=()) == []


def test_check_is_content_where_a_rule_can_be_added(apparmor: Host, image: Path) -> None:
    label = work(apparmor).check(str(image.parent), PID, "save")
    assert label == labelling.Label("apparmor", None, "vmq (enforce)")
    assert rules(apparmor) == []


def test_parser_fails(apparmor: Host, image: Path) -> None:
    apparmor.failures["run"] = "syntax error in line 3"
    with pytest.raises(errors.LabelRefused) as caught:
        use(apparmor, image)
    assert "vmq failed: syntax error in line 3" in caught.value.message
    assert rules(apparmor) == []


def test_deny_rule(apparmor: Host, image: Path) -> None:
    apparmor.put(ACCESS, "")
    with pytest.raises(errors.LabelRefused) as caught:
        use(apparmor, image)
    assert (
        "the profile still refuses it with the rule added: look for a deny rule"
        in caught.value.message
    )
    assert rules(apparmor) == []
    assert len(apparmor.commands) == 2  # with the rule, and without it again


@pytest.mark.parametrize("gone", ["profile file", "loaded profile"])
def test_guest_that_ended_meanwhile(apparmor: Host, image: Path, gone: str) -> None:
    with labelled(work(apparmor), image):
        if gone == "profile file":
            apparmor.locate("/etc/apparmor.d/vmq").unlink()
        else:
            apparmor.put("/sys/kernel/security/apparmor/profiles", "other (enforce)\n")
    assert rules(apparmor) == []
    assert len(apparmor.commands) == 1  # not loaded again for no one


def test_loaded_profile_is_loaded_anew(apparmor: Host, image: Path) -> None:
    apparmor.put("/sys/kernel/security/apparmor/profiles", "other (enforce)\nvmq (enforce)\n")
    use(apparmor, image)
    assert len(apparmor.commands) == 2


@pytest.mark.parametrize("died", ["before adding", "before loading", "while taking out"])
def test_what_was_journalled_before_is_taken_out(apparmor: Host, image: Path, died: str) -> None:
    """The journal is written before the rule is; whoever dies at whatever point leaves none."""
    final = str(image.with_name("a"))
    with open(image, "wb") as file:
        target = Target(file.fileno(), str(image), (final,), PID, "save")
        intended = work(apparmor).intended(target)
        assert intended is not None
        assert (rules(apparmor), apparmor.commands) == ([], [])
        if died != "before adding":
            with work(apparmor).applied(target) as applied:
                assert applied.label == intended
                applied.keep()
        if died == "while taking out":  # the lines are gone, but the profile is loaded with them
            apparmor.locate(RULES).write_text("")
    loads = len(apparmor.commands)
    journalled = msgspec.convert(intended.as_dict(), labelling.Label)
    assert recovery.take_out(journalled, str(image), apparmor) == []
    assert rules(apparmor) == []
    assert len(apparmor.commands) == loads + 1
    assert recovery.take_out(journalled, str(image), apparmor) == []


@pytest.mark.parametrize("when", ["at rest", "after a failure", "by recover"])
def test_rules_that_stay_loaded_are_told(apparmor: Host, image: Path, when: str) -> None:
    left: list[labelling.Problem] = []
    with labelled(work(apparmor), image, on_left=left.extend) as applied:
        apparmor.failures["run"] = "syntax error"
        if when == "at rest":
            left += applied.at_rest()
        if when == "by recover":
            applied.keep()
            left += recovery.take_out(applied.label, str(image), apparmor)
    (problem,) = left
    profile = apparmor.locate("/etc/apparmor.d/vmq")
    assert problem.recoverable
    assert f"loading {profile} failed: syntax error (run: apparmor_parser -r {profile})" in (
        problem.text
    )
    apparmor.failures.clear()
    loads = len(apparmor.commands)
    assert recovery.take_out(applied.label, str(image), apparmor) == []
    assert len(apparmor.commands) == loads + 1


def test_nothing_is_intended_where_nothing_is_missing(apparmor: Host, image: Path) -> None:
    with open(image, "rb") as file:  # to restore takes no rule: mapsave is not confined
        assert (
            work(apparmor).intended(Target(file.fileno(), str(image), (), PID, "restore")) is None
        )
    apparmor.put(f"/proc/{PID}/attr/apparmor/current", "vmq (complain)\n")
    with open(image, "wb") as file:
        assert work(apparmor).intended(Target(file.fileno(), str(image), (), PID, "save")) is None


def apart(host: Host) -> list[Path]:
    """Put mapsave and QEMU into mount namespaces of their own; return where these are named."""
    spaces = [host.locate(f"/proc/{pid}/ns/mnt") for pid in ("self", PID)]
    for number, space in enumerate(spaces):
        space.parent.mkdir(parents=True)
        space.symlink_to(f"mnt:[{number}]")
    return spaces


def test_another_mount_namespace_is_named(apparmor: Host, image: Path) -> None:
    """A rule is there, and still it was refused: the profile lacks the flag."""
    apparmor.put(ACCESS, "")
    apparmor.allowed.add(("vmq", str(image)))
    spaces = apart(apparmor)
    with open(image, "wb") as file:
        refused = labelling.describe_refusal("no", file.fileno(), str(image), PID, apparmor)
        assert "flags=(attach_disconnected)" in refused.message
        spaces[0].unlink()
        spaces[0].symlink_to("mnt:[1]")
        refused = labelling.describe_refusal("no", file.fileno(), str(image), PID, apparmor)
        assert "attach_disconnected" not in refused.message


def test_another_mount_namespace_takes_the_flag(apparmor: Host, image: Path) -> None:
    """Refused before, whether there is a rule or not; not where the file does not tell."""
    profile = "/etc/apparmor.d/vmq"
    spaces = apart(apparmor)
    for allowed in ((), [("vmq", str(image))]):
        apparmor.put(ACCESS, "")
        apparmor.allowed.update(allowed)
        with pytest.raises(errors.LabelRefused, match="lacks flags=") as found:
            use(apparmor, image)
        assert found.value.hint == (
            f"add flags=(attach_disconnected) to the profile in {apparmor.locate(profile)}, and "
            f"run: apparmor_parser -r {apparmor.locate(profile)}"
        )
        with pytest.raises(errors.LabelRefused, match=f"images in {image.parent} to QEMU: it is"):
            work(apparmor).check(str(image.parent), PID, "save")
    assert use(apparmor, image, "restore") == []  # what an unconfined mapsave has opened
    apparmor.put(profile, "profile vmq flags=(attach_disconnected) {\n}\n")
    assert use(apparmor, image) == []
    apparmor.put(profile, "include <elsewhere>\n")
    assert use(apparmor, image) == []
    apparmor.locate(profile).unlink()
    assert use(apparmor, image) == []
    apparmor.put(profile, "profile vmq {\n}\n")
    spaces[0].unlink()
    spaces[0].symlink_to("mnt:[1]")
    assert use(apparmor, image) == []


def test_no_attribute_is_written(apparmor: Host, image: Path) -> None:
    use(apparmor, image)
    assert apparmor.attributes == {}
    assert not [name for name in os.listxattr(image) if name.startswith("security.")]


def test_directory_with_a_rule_of_the_administrator(apparmor: Host, image: Path) -> None:
    apparmor.put("/etc/apparmor.d/vmq", "profile vmq {\n}\n")
    apparmor.put(ACCESS, "")
    names = ("a.partial", "a")
    refused = f"would refuse images in {image.parent} to"
    apparmor.allowed.add(("vmq", f"{image.parent}/a.partial"))
    with pytest.raises(errors.LabelRefused, match=refused):
        work(apparmor).check(str(image.parent), PID, "save", names)
    apparmor.allowed.add(("vmq", f"{image.parent}/a"))
    work(apparmor).check(str(image.parent), PID, "save", names)
    apparmor.failures["deny"] = 0x4  # reading
    work(apparmor).check(str(image.parent), PID, "save", names)
    apparmor.failures["deny"] = 0x2  # writing
    with pytest.raises(errors.LabelRefused, match=refused):
        work(apparmor).check(str(image.parent), PID, "save", names)
