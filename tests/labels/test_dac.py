"""Owner, group and mode on real files."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.labels import labelling
from mapsave.labels.label import Target
from mapsave.labels.policy import Policy, load
from mapsave.labels.system import System

from tests.labels.conftest import Host, labelled

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
OTHER = 65533


def work(**options: Any) -> labelling.Labelling:
    return labelling.Labelling(Policy("dac", name="mine", **options), System())


def state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@root_only
@pytest.mark.parametrize("end", ["undo", "at_rest", "keep"])
def test_owner_group_and_mode(image: Path, end: str) -> None:
    before = state(image)
    labeller = work(owner=str(OTHER), group=str(OTHER), mode=0o440)
    with labelled(labeller, image, pid=None) as applied:
        assert state(image) == (OTHER, OTHER, 0o440)
        assert applied.label.value == f"{OTHER}:{OTHER} 0440"
        assert applied.label.previous == "0:0 0600"
        assert applied.label.module == "dac"
        if end == "at_rest":
            image.chmod(0o666)  # somebody changed it in the meantime
            assert applied.at_rest() == []
        if end == "keep":
            applied.keep()
    assert state(image) == (before if end == "undo" else (OTHER, OTHER, 0o440))


def test_mode_alone_leaves_the_owner(image: Path) -> None:
    image.chmod(0o644)
    with open(image, "wb") as file:
        policy = load("dac-private")
        labeller = labelling.Labelling(policy)
        with labeller.applied(Target(file.fileno(), str(image), (), None, "save")) as applied:
            assert state(image) == (os.geteuid(), os.getegid(), 0o600)
            applied.at_rest()
    assert stat.S_IMODE(image.stat().st_mode) == 0o600


def test_descriptor_may_be_closed_and_the_name_changed_meanwhile(image: Path) -> None:
    renamed = image.with_name("a")
    fd = os.open(image, os.O_WRONLY)
    with work(mode=0o640).applied(Target(fd, str(image), (), None, "save")):
        os.close(fd)
        image.rename(renamed)
        assert stat.S_IMODE(renamed.stat().st_mode) == 0o640
    assert stat.S_IMODE(renamed.stat().st_mode) == 0o600


def test_restore_changes_nothing(image: Path) -> None:
    before = state(image)
    with open(image, "rb") as file:
        labeller = work(owner="1234567", mode=0o777)
        with labeller.applied(Target(file.fileno(), str(image), (), None, "restore")) as applied:
            applied.at_rest()
    assert state(image) == before


@pytest.mark.parametrize("what", ["owner", "group"])
def test_unknown_names_do_not_count_for_a_restore(image: Path, what: str) -> None:
    labeller = work(**{what: "no-such-one"})
    assert labeller.check(str(image.parent), None, "restore") == labelling.Label("dac")
    with open(image, "rb") as file:
        target = Target(file.fileno(), str(image), (), None, "restore")
        assert labeller.intended(target) is None
        with labeller.applied(target):
            pass


@pytest.mark.parametrize(("what", "kind"), [("owner", "user"), ("group", "group")])
def test_unknown_names(image: Path, what: str, kind: str) -> None:
    labeller = work(**{what: "no-such-one"})
    with pytest.raises(errors.PolicyViolation) as caught:
        labeller.check(str(image.parent), None, "save")
    assert caught.value.message == (
        f"policy mine requires the {what} 'no-such-one', but this host has no such {kind}"
    )


def test_giving_away_without_the_capability(plain: Host, image: Path) -> None:
    plain.failures["capable"] = (0,)
    labeller = labelling.Labelling(Policy("dac", name="mine", owner=str(OTHER)), plain)
    with pytest.raises(errors.NotPermitted) as caught:
        labeller.check(str(image.parent), None, "save")
    assert caught.value.message == (
        f"policy mine gives images in {image.parent} to {OTHER}:-, which mapsave is not "
        f"permitted to do as uid {os.geteuid()}"
    )
    assert caught.value.exit_code == 7


@root_only
def test_refused_by_the_kernel(image: Path) -> None:
    """A real refusal: as another user, in a child, on a file of root's."""
    image.chmod(0o666)
    image.parent.chmod(0o755)
    fd = os.open(image, os.O_WRONLY)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(OTHER, OTHER, OTHER)
        said = "nothing was raised"
        try:
            with work(mode=0o600).applied(Target(fd, str(image), (), None, "save")):
                pass
        except errors.NotPermitted as error:
            said = error.message
        os.write(writer, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    message = os.read(reader, 4096).decode()
    for each in (fd, reader, writer):
        os.close(each)
    assert message == (
        f"cannot set owner and mode of {image} as policy mine requires: it has 0:0 0666, "
        "required is -:- 0600: Operation not permitted"
    )
