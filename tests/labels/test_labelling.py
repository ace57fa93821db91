import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.labels import labelling
from mapsave.labels.policy import Policy, load
from mapsave.labels.system import System

from tests.labels.conftest import BORN, IMAGE, PID, QEMU, Host, labelled

ATTRIBUTE = "security.selinux"
NO_DESCRIPTOR = "No file descriptor supplied via SCM_RIGHTS"


def security_attributes(file: Path) -> list[str]:
    return [name for name in os.listxattr(file) if name.startswith("security.")]


@pytest.mark.parametrize("name", ["auto", "none", "dac-private"])
def test_no_attribute_where_no_module_is_active(image: Path, name: str, plain: Host) -> None:
    """The real System: such a kernel would store security.selinux if it were asked to."""
    system = System(plain.root)  # real calls on the file, /sys and /proc of a host without modules
    with open(image, "wb") as file:
        labeller = labelling.Labelling(load(name), system)
        with labeller.creating(PID):
            pass
        target = labelling.Target(file.fileno(), str(image), (), PID, "save")
        with labeller.applied(target) as applied:
            assert security_attributes(image) == []
            applied.at_rest()
    assert security_attributes(image) == []


@pytest.mark.parametrize(
    ("name", "module"),
    [("selinux-svirt", "selinux"), ("apparmor-qemu", "apparmor"), ("smack", "smack")],
)
def test_module_that_is_not_active(plain: Host, name: str, module: str) -> None:
    with pytest.raises(errors.LabelUnavailable) as caught:
        labelling.Labelling(load(name), plain)
    assert caught.value.message == (
        f"policy {name} needs {module}, which is not active on this host"
    )
    assert caught.value.hint == (
        f"active security modules: none; use the policy auto, or boot with security={module}"
    )
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("host", ["plain", "selinux", "apparmor", "smack"])
def test_auto_takes_what_is_active(request: pytest.FixtureRequest, host: str) -> None:
    labeller = labelling.Labelling(load("auto"), request.getfixturevalue(host))
    assert [module.name for module in labeller.modules] == ([] if host == "plain" else [host])


def test_apparmor_that_is_compiled_in_but_off(plain: Host) -> None:
    plain.put("/sys/module/apparmor/parameters/enabled", "N\n")
    assert labelling.Labelling(load("auto"), plain).modules == []


def test_none_labels_nothing_on_an_selinux_host(selinux: Host, image: Path) -> None:
    with open(image, "wb") as file:
        labeller = labelling.Labelling(load("none"), selinux)
        target = labelling.Target(file.fileno(), str(image), (), PID, "save")
        with labeller.applied(target) as applied:
            assert applied.label == labelling.Label("none")
    assert selinux.of(image, ATTRIBUTE) == BORN


@pytest.mark.parametrize("inside", ["", "sub", "sub/deeper"])
def test_directories_and_what_is_below(tmp_path: Path, inside: str) -> None:
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    labeller = labelling.Labelling(Policy("none", name="mine", directories=(str(tmp_path),)))
    assert labeller.check(str(tmp_path / inside), None, "save").module == "none"


@pytest.mark.parametrize("how", ["beside", "link", "dots", "prefix"])
def test_directories_that_are_forbidden(tmp_path: Path, how: str) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for each in (allowed, outside, tmp_path / "allowed-not"):
        each.mkdir()
    (allowed / "link").symlink_to(outside)
    asked = {
        "beside": str(outside),
        "link": str(allowed / "link"),
        "dots": f"{allowed}/../outside",
        "prefix": str(tmp_path / "allowed-not"),
    }[how]
    labeller = labelling.Labelling(Policy("none", name="mine", directories=(str(allowed),)))
    with pytest.raises(errors.PolicyViolation) as caught:
        labeller.check(asked, None, "save")
    link = f" (which is {outside})" if how == "link" else ""
    assert caught.value.message == f"policy mine forbids images in {asked}{link}"
    assert caught.value.hint == f"it allows {allowed} and everything below"
    assert caught.value.exit_code == 7
    # The descriptor counts, whatever path comes with it.
    image = outside / "image"
    image.touch()
    with (
        pytest.raises(errors.PolicyViolation),
        labelled(labeller, image, path=str(allowed / "image"), pid=None),
    ):
        pytest.fail("not reached")


def boom() -> None:
    raise ZeroDivisionError


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("inside", "raised"), [(boom, ZeroDivisionError), (interrupt, KeyboardInterrupt)]
)
def test_undone_when_something_is_raised(
    selinux: Host, image: Path, inside: Any, raised: type[BaseException]
) -> None:
    labeller = labelling.Labelling(Policy("selinux", name="mine", mode=0o640), selinux)
    with pytest.raises(raised), labelled(labeller, image) as applied:
        assert (selinux.of(image, ATTRIBUTE) or "").rstrip("\0") == IMAGE
        assert image.stat().st_mode & 0o777 == 0o640
        assert [part.module for part in applied.label.parts()] == ["selinux", "dac"]
        inside()
    assert selinux.of(image, ATTRIBUTE) == BORN + "\0"
    assert image.stat().st_mode & 0o777 == 0o600


async def test_undone_when_cancelled(selinux: Host, image: Path) -> None:
    is_labelled = asyncio.Event()

    async def save() -> None:
        labeller = labelling.Labelling(load("auto"), selinux)
        with labelled(labeller, image):
            is_labelled.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(save())
    await is_labelled.wait()
    assert (selinux.of(image, ATTRIBUTE) or "").rstrip("\0") == IMAGE
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert selinux.of(image, ATTRIBUTE) == BORN + "\0"


def test_failed_undo_hides_nothing_and_stops_nothing(
    selinux: Host, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second module's undo runs although the first one's fails, and the error comes through."""
    labeller = labelling.Labelling(Policy("selinux", name="mine", mode=0o640), selinux)
    left: list[labelling.Problem] = []
    with pytest.raises(ZeroDivisionError), labelled(labeller, image, on_left=left.extend):
        selinux.failures["set"] = errno.EIO
        boom()
    (problem,) = left
    assert problem.recoverable
    assert problem.text.endswith("(run 'mapsave recover')")
    assert "selinux: cannot restore the label of" in caplog.text
    assert "Input/output error" in caplog.text
    assert image.stat().st_mode & 0o777 == 0o600


def test_failed_rest_is_reported_not_raised(selinux: Host, image: Path) -> None:
    labeller = labelling.Labelling(Policy("selinux", name="mine", mode=0o640), selinux)
    with labelled(labeller, image) as applied:
        selinux.failures["set"] = errno.EIO
        words = f"selinux: cannot set the final label of {image}: [Errno 5] Input/output error"
        problem = labelling.Problem(f"{words} (set it by hand)", recoverable=False)
        assert applied.at_rest() == [problem]
    assert image.stat().st_mode & 0o777 == 0o640


def test_first_module_is_undone_when_the_second_fails(selinux: Host, image: Path) -> None:
    labeller = labelling.Labelling(Policy("selinux", name="mine", owner="no-such-one"), selinux)
    with pytest.raises(errors.PolicyViolation), labelled(labeller, image):
        pytest.fail("not reached")
    assert selinux.of(image, ATTRIBUTE) == BORN + "\0"


def test_no_descriptor_is_left_open(selinux: Host, image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    labeller = labelling.Labelling(load("auto"), selinux)
    with labelled(labeller, image) as applied:
        applied.keep()
    selinux.allowed.clear()
    with pytest.raises(errors.LabelRefused), labelled(labeller, image):
        pytest.fail("not reached")
    assert len(os.listdir("/proc/self/fd")) == before


def test_unforeseen_refusal_of_the_kernel(selinux: Host, image: Path) -> None:
    selinux.failures["get"] = errno.EACCES
    labeller = labelling.Labelling(load("auto"), selinux)
    with pytest.raises(errors.LabelRefused) as caught, labelled(labeller, image):
        pytest.fail("not reached")
    assert caught.value.message == (
        f"selinux: cannot label {image} for QEMU (pid {PID}): [Errno 13] Permission denied"
    )


def test_refusal_on_selinux(selinux: Host, image: Path) -> None:
    fd = os.open(image, os.O_WRONLY)
    error = labelling.describe_refusal(NO_DESCRIPTOR, fd, str(image), PID, selinux)
    os.close(fd)
    assert error.message == (
        f"QEMU (pid {PID}) could not use {image}: SELinux (enforcing): the file is labelled "
        f"{BORN}, QEMU (pid {PID}) runs as {QEMU}, which may not write such a file; the file "
        f"has {os.geteuid()}:{os.getegid()} 0600 (QEMU's message: {NO_DESCRIPTOR})"
    )
    assert error.exit_code == 7
    assert error.data["process"] == QEMU


def test_refusal_on_selinux_of_a_reader(selinux: Host, image: Path) -> None:
    selinux.allowed.add((QEMU, BORN, "7", "2"))
    fd = os.open(image, os.O_RDONLY)
    error = labelling.describe_refusal(NO_DESCRIPTOR, fd, str(image), PID, selinux)
    os.close(fd)
    assert "which may read such a file" in error.message


def test_refusal_on_apparmor(apparmor: Host, image: Path) -> None:
    apparmor.put("/sys/kernel/security/apparmor/.access", "")
    fd = os.open(image, os.O_WRONLY)
    said = "failed to truncate migration file to offset 100000: Permission denied"
    error = labelling.describe_refusal(said, fd, str(image), PID, apparmor)
    os.close(fd)
    assert (
        f"AppArmor: QEMU (pid {PID}) runs as vmq (enforce), which has no rule to write the file: "
        f'"{image}" rw;'
    ) in error.message
    assert f"(QEMU's message: {said})" in error.message


def test_refusal_on_smack(smack: Host, image: Path) -> None:
    fd = os.open(image, os.O_WRONLY)
    error = labelling.describe_refusal(NO_DESCRIPTOR, fd, str(image), PID, smack)
    os.close(fd)
    assert (
        f"Smack: the file is labelled System, QEMU (pid {PID}) runs as Guest1, which may not "
        "write such a file"
    ) in error.message


@pytest.mark.parametrize("words", ["ram_save_setup failed: Input/output error", "no reason given"])
def test_refusal_is_seen_whatever_qemu_says(selinux: Host, image: Path, words: str) -> None:
    """BORN is a label that QEMU may neither read nor write."""
    with open(image, "wb") as file:
        error = labelling.refusal(words, file.fileno(), str(image), PID, selinux)
    assert error is not None
    assert error.message.endswith(
        f"which may not write such a file; the file has {os.geteuid()}:{os.getegid()} 0600 "
        f"(QEMU's message: {words})"
    )


@pytest.mark.parametrize("why", ["allowed", "permissive", "QEMU is gone", "cannot be asked"])
def test_other_failures_are_no_refusals(selinux: Host, image: Path, why: str) -> None:
    pid = PID
    match why:
        case "allowed":
            selinux.allowed.add((QEMU, BORN, "7", "4"))
        case "permissive":
            selinux.put("/sys/fs/selinux/enforce", "0")
        case "QEMU is gone":
            pid = 999_999_999
        case "cannot be asked":
            selinux.failures["/sys/fs/selinux/access"] = errno.EACCES
    with open(image, "wb") as file:
        said = "ram_save_setup failed: Input/output error"
        assert labelling.refusal(said, file.fileno(), str(image), pid, selinux) is None
        said = "Unable to write to file: Permission denied"
        assert labelling.refusal(said, file.fileno(), str(image), pid, selinux) is not None


def test_refusal_is_seen_on_apparmor(apparmor: Host, image: Path) -> None:
    apparmor.put("/sys/kernel/security/apparmor/.access", "")
    with open(image, "wb") as file:
        asked = ("no reason given", file.fileno(), str(image), PID, apparmor)
        assert "has no rule to write" in str(labelling.refusal(*asked))
        apparmor.allowed.add(("vmq", str(image)))
        assert labelling.refusal(*asked) is None


def test_refusal_is_seen_on_smack(smack: Host, image: Path) -> None:
    with open(image, "wb") as file:
        asked = ("no reason given", file.fileno(), str(image), PID, smack)
        assert "may not write" in str(labelling.refusal(*asked))
        smack.allowed.add(("Guest1", "System", "w"))
        assert labelling.refusal(*asked) is None


def test_refusal_without_any_module(plain: Host, image: Path) -> None:
    fd = os.open(image, os.O_WRONLY)
    error = labelling.describe_refusal("Permission denied", fd, str(image), None, plain)
    os.close(fd)
    assert "no security module is active on this host" in error.message


@pytest.mark.parametrize(
    ("host", "context"),
    [("plain", None), ("selinux", QEMU), ("apparmor", "vmq (enforce)"), ("smack", "Guest1")],
)
def test_process_context(request: pytest.FixtureRequest, host: str, context: str | None) -> None:
    system = request.getfixturevalue(host)
    assert labelling.system_process_context(PID, system) == context
    assert labelling.system_process_context(None, system) is None
